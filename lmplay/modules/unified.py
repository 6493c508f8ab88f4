"""Layers with sacrificial parameters, which help in training and are folded into a plain layer afterwards.

The ideas are those of the original lmplay (jmward01/lmplay: Unified Embeddings, Unified Weights); what is
computed follows its lmplay/modules/embeddings.py and weights.py.

V vocabulary, D width of the model, M width of an embedding before it is projected, I inputs, O outputs.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@runtime_checkable
class Foldable(Protocol):
    """A layer that equals a plain one once it is trained."""

    def folded(self) -> nn.Module: ...


def fold(module: nn.Module) -> nn.Module:
    """Replaces every foldable layer inside `module` by its plain equivalent; returns the module."""
    for name, child in module.named_children():
        if isinstance(child, Foldable):
            setattr(module, name, child.folded())
        else:
            fold(child)
    return module


class UnifiedEmbedding(nn.Module):
    """(B, T) token ids to (B, T, D): a wider embedding, projected by two linear layers with a GELU between.

    So what is learned of one token moves all others as well. front_embed_mul: M / D.
    """

    def __init__(self, vocab_size: int, embed_dim: int, *, front_embed_mul: float = 8.0):
        super().__init__()
        self.front = nn.Embedding(vocab_size, int(embed_dim * front_embed_mul))
        self.integration1 = nn.Linear(self.front.embedding_dim, embed_dim)
        self.integration2 = nn.Linear(embed_dim, embed_dim)

    def project(self, front: Tensor) -> Tensor:
        """(..., M) to (..., D)."""
        return self.integration2(F.gelu(self.integration1(front)))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:  # which tokens differ is not known
            return self.project(self.front(x))
        tokens, inverse = x.unique(return_inverse=True)
        return F.embedding(inverse, self.project(self.front(tokens)))

    @torch.no_grad()
    def folded(self) -> nn.Embedding:
        return nn.Embedding.from_pretrained(self.project(self.front.weight), freeze=False)


class _FoldableLinear(nn.Module):
    """A linear layer whose weight (O, I) and bias (O,) are computed from more parameters."""

    def effective(self) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        weight, bias = self.effective()
        return F.linear(x, weight, bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        weight, bias = self.effective()
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
        plain.weight.copy_(weight)
        if bias is not None:
            plain.bias.copy_(bias)
        return plain


class ULinear(_FoldableLinear):
    """A linear layer whose outputs are scaled by a learned vector; it starts as nn.Linear.

    The effective weight of output o and input i is ((W_oi mbias_o + ambias_o) imbias_i + iambias_i), the
    effective bias b_o + bias_bias; each of the four vectors has a scalar added to it that all its entries
    share.

    imbias    scale the inputs too
    ambias    add to the weights of an output
    iambias   add to the weights of an input
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        imbias: bool = False,
        ambias: bool = False,
        iambias: bool = False,
    ):
        super().__init__()
        plain = nn.Linear(in_features, out_features, bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.bias_bias = nn.Parameter(torch.zeros(1)) if bias else None
        vectors = {
            'mbias': torch.ones(out_features),
            'ambias': torch.zeros(out_features) if ambias else None,
            'imbias': torch.ones(in_features) if imbias else None,
            'iambias': torch.zeros(in_features) if iambias else None,
        }
        for name, value in vectors.items():
            self.register_parameter(name, None if value is None else nn.Parameter(value))
            shared = None if value is None else nn.Parameter(torch.zeros(1))
            self.register_parameter(f'{name}_bias', shared)

    def _vector(self, name: str) -> Tensor | None:
        value = getattr(self, name)
        return None if value is None else value + getattr(self, f'{name}_bias')

    def effective(self) -> tuple[Tensor, Tensor | None]:
        mbias, ambias, imbias, iambias = map(self._vector, ('mbias', 'ambias', 'imbias', 'iambias'))
        assert mbias is not None
        weight = self.weight * mbias[:, None]
        weight = weight if ambias is None else weight + ambias[:, None]
        weight = weight if imbias is None else weight * imbias
        weight = weight if iambias is None else weight + iambias
        return weight, self._vector('bias')


class DULinear(_FoldableLinear):
    """A linear layer whose bias and input scales a small network predicts from a learned vector.

    mid = GELU(network(expansion)); the effective weight is W_oi (mbias(mid)_i + 1), the bias bias(mid)_o, a
    scalar added to each. (The original adds 0 instead of 1 at the start, so that its weights start near 0.)
    exp_mul: entries of the learned vector, in units of I.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, exp_mul: float = 16.0):
        super().__init__()
        plain, expanded = nn.Linear(in_features, out_features, bias=False), int(in_features * exp_mul)
        hidden = min(in_features, out_features)
        self.weight = plain.weight
        self.expansion = nn.Parameter(torch.empty(expanded).uniform_(-(in_features**-0.5), in_features**-0.5))
        self.network = nn.Linear(expanded, hidden)
        self.mbias = nn.Linear(hidden, in_features)
        self.mbias_bias = nn.Parameter(torch.ones(1))
        self.bias = nn.Linear(hidden, out_features) if bias else None
        self.bias_bias = nn.Parameter(torch.zeros(1)) if bias else None

    def effective(self) -> tuple[Tensor, Tensor | None]:
        mid = F.gelu(self.network(self.expansion))
        weight = self.weight * (self.mbias(mid) + self.mbias_bias)
        return weight, None if self.bias is None else self.bias(mid) + self.bias_bias
