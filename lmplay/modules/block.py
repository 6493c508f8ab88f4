"""The pre-norm transformer block.

B sequences, T positions, D width of the model.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .attention import CausalSelfAttention
from .kv_cache import KVCache


class FeedForward(nn.Sequential):
    """Linear, GELU, linear, dropout: (B, T, D) to (B, T, D), `ff_dim` wide in between (default 4 D)."""

    def __init__(
        self, embed_dim: int, *, ff_dim: int | None = None, ff_dropout: float = 0.0, gelu: str = 'none'
    ):
        ff_dim = ff_dim or 4 * embed_dim
        super().__init__(
            nn.Linear(embed_dim, ff_dim),
            nn.GELU(approximate=gelu),
            nn.Linear(ff_dim, embed_dim),
            nn.Dropout(ff_dropout),
        )
        self[2].to_residual = True  # type: ignore[assignment]


def default_gated_dim(embed_dim: int) -> int:
    """8/3 of embed_dim, rounded up to a multiple of 64: as many weights as FeedForward has."""
    return -(-8 * embed_dim // (3 * 64)) * 64


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x)), dropout; (B, T, D) to (B, T, D), without biases.

    ff_dim is the width in between; None for `default_gated_dim`. Raises UserError where it is below 1.
    """

    def __init__(self, embed_dim: int, *, ff_dim: int | None = None, ff_dropout: float = 0.0):
        super().__init__()
        ff_dim = default_gated_dim(embed_dim) if ff_dim is None else ff_dim
        if ff_dim < 1:
            raise UserError(f'ff_dim must be a whole number of at least 1; given: {ff_dim}.')
        self.gate = nn.Linear(embed_dim, ff_dim, bias=False)
        self.up = nn.Linear(embed_dim, ff_dim, bias=False)
        self.down = nn.Linear(ff_dim, embed_dim, bias=False)
        self.down.to_residual = True  # type: ignore[assignment]
        self.dropout = nn.Dropout(ff_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) (Radford et al. 2019, section 2.3).

    norm makes a norm from a width and its `eps`; attn and ff replace attention and feed-forward, and what is
    said of the replaced part is then without effect. gelu is 'none' (exact) or 'tanh' (GPT-2's
    approximation); norm_eps and gelu default to torch's values, not GPT-2's. max_len is the longest sequence
    the block is meant for; nothing in it depends on that.
    """

    def __init__(
        self,
        max_len: int,
        num_heads: int,
        embed_dim: int,
        *,
        attn_dropout: float = 0.1,
        ff_dropout: float = 0.1,
        norm_eps: float = 1e-5,
        gelu: str = 'none',
        norm: Callable[..., nn.Module] = nn.LayerNorm,
        attn: nn.Module | None = None,
        ff: nn.Module | None = None,
    ):
        super().__init__()
        self.max_len = max_len
        self.ln1 = norm(embed_dim, eps=norm_eps)
        self.attn = attn or CausalSelfAttention(
            num_heads=num_heads, embed_dim=embed_dim, attn_dropout=attn_dropout, out_dropout=ff_dropout
        )
        self.ln2 = norm(embed_dim, eps=norm_eps)
        self.ff = ff or FeedForward(embed_dim, ff_dropout=ff_dropout, gelu=gelu)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln1(x), cache=cache)
        return x + self.ff(self.ln2(x))
