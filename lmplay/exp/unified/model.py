"""unified: gpt2ish with parts of the original lmplay, each by itself or together.

B sequences, T positions, D = embed_dim, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lmplay.base.base_model import LMBase
from lmplay.errors import ExperimentError, unknown
from lmplay.modules import (
    Block,
    DULinear,
    LRAdd,
    ULinear,
    UnifiedEmbedding,
    ValueNorm,
    cached_length,
    layer_cache,
)
from lmplay.tokenizers import get_tokenizer
from lmplay.utils import to_name

LINEARS = ('plain', 'ulinear', 'ulinear_all', 'dulinear')
RESIDUALS = ('plain', 'lradd', 'lradd_simple')
OWN_INIT = (UnifiedEmbedding, DULinear, LRAdd)  # what is inside them starts as they say


class UnifiedBlock(Block):
    """The pre-norm block with learned residual connections: add(x, attention(norm(x))), so too the MLP."""

    def __init__(self, max_len: int, num_heads: int, embed_dim: int, *, simple: bool, **dropouts):
        super().__init__(max_len, num_heads, embed_dim, **dropouts)
        self.add1, self.add2 = (LRAdd(embed_dim, simple=simple) for _ in range(2))

    def forward(self, x: Tensor, cache=None) -> Tensor:
        x = self.add1(x, self.attn(self.ln1(x), cache=cache))
        return self.add2(x, self.ff(self.ln2(x)))


class UnifiedGPT2(LMBase):
    """gpt2ish, with nothing changed by default.

    embedding        of the tokens: 'plain', or 'unified'
    front_embed_mul  width of a unified embedding before it is projected, in units of embed_dim
    linear           layers of the blocks: 'plain', 'ulinear', 'ulinear_all' (all of its vectors), 'dulinear'
    exp_mul          size of the vector that 'dulinear' predicts from, in units of a layer's inputs
    residual         'plain', 'lradd', or 'lradd_simple' (two weights a position)
    value_norm       LayerNorm of each head's values
    """

    def __init__(
        self,
        max_len=1024,
        num_heads=12,
        num_blocks=6,
        embed_dim=768,
        attn_dropout=0.1,
        ff_dropout=0.1,
        embed_dropout=0.1,
        embedding='plain',
        front_embed_mul=8.0,
        linear='plain',
        exp_mul=16.0,
        residual='plain',
        value_norm=False,
        tokenizer='gpt2',
        version='unified',
    ):
        for name, value, allowed in (
            ('embedding', embedding, ('plain', 'unified')),
            ('linear', linear, LINEARS),
            ('residual', residual, RESIDUALS),
        ):
            if value not in allowed:
                raise ExperimentError(unknown(name, value, allowed, version))
        super().__init__(to_name(version, num_blocks=num_blocks, max_len=max_len), max_len=max_len)
        self.tokenizer = get_tokenizer(tokenizer)
        vocab_size = self.tokenizer.n_vocab

        if embedding == 'unified':
            self.tok_embed = UnifiedEmbedding(vocab_size, embed_dim, front_embed_mul=front_embed_mul)
        else:
            self.tok_embed = nn.Embedding(vocab_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, max_len, embed_dim))
        self.dropout = nn.Dropout(embed_dropout)
        dropouts: dict[str, Any] = {'attn_dropout': attn_dropout, 'ff_dropout': ff_dropout}
        blocks = [
            Block(max_len, num_heads, embed_dim, **dropouts)
            if residual == 'plain'
            else UnifiedBlock(max_len, num_heads, embed_dim, simple=residual == 'lradd_simple', **dropouts)
            for _ in range(num_blocks)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.ln = nn.LayerNorm(embed_dim)
        self.fc = nn.Linear(embed_dim, vocab_size)
        for block in blocks:
            replace_linears(block, linear, exp_mul)
            if value_norm:
                attn: Any = block.attn
                attn.qkv = ValueNorm(attn.qkv, num_heads, embed_dim)
        self._init_weights(num_blocks)

    def _init_weights(self, num_blocks: int) -> None:
        """As gpt2ish starts; what is inside a part that has its own initialisation keeps that."""
        inner = {id(m) for part in self.modules() if isinstance(part, OWN_INIT) for m in part.children()}
        for module in self.modules():
            if id(module) not in inner and isinstance(module, (nn.Linear, nn.Embedding, ULinear, DULinear)):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, (nn.Linear, ULinear)):
                    nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name.endswith(('attn.proj.weight', 'ff.2.weight')):
                nn.init.normal_(weight, std=0.02 / (2 * num_blocks) ** 0.5)
        nn.init.normal_(self.pos_embed, std=0.02)

    def features(self, x: Tensor, cache: list | None = None) -> Tensor:
        """(B, T) token ids to (B, T, D), ready for the head `fc`."""
        start = cached_length(cache)
        x = self.dropout(self.tok_embed(x) + self.pos_embed[:, start : start + x.shape[1]])
        for i, block in enumerate(self.blocks):
            x = block(x, cache=layer_cache(cache, i))
        return self.ln(x)


def replace_linears(block: Block, kind: str, exp_mul: float) -> None:
    """Replaces the four linear layers of a block by layers of that kind."""
    if kind == 'plain':
        return
    for parent, name in ((block.attn, 'qkv'), (block.attn, 'proj'), (block.ff, '0'), (block.ff, '2')):
        shape = (getattr(parent, name).in_features, getattr(parent, name).out_features)
        if kind == 'dulinear':
            layer = DULinear(*shape, exp_mul=exp_mul)
        else:
            every = kind == 'ulinear_all'
            layer = ULinear(*shape, imbias=every, ambias=every, iambias=every)
        setattr(parent, name, layer)
