"""gpt2ish: the baseline and the template, in the style of GPT-2 (Radford et al. 2019).

It differs in three details: the GELU is exact, and the output head is untied and has a bias, unless it is
asked to be tied.

B sequences, T positions, D = embed_dim, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lmplay.base.base_model import LMBase
from lmplay.modules import Block, cached_length, layer_cache
from lmplay.tokenizers import get_tokenizer
from lmplay.utils import to_name


class GPT2(LMBase):
    """Pre-norm transformer with learned positions.

    norm_eps and gelu ('none' exact, 'tanh' GPT-2's approximation) are what weights from elsewhere may need
    changed. tie_head: the head is the token embedding's weight, without a bias, as in GPT-2.
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
        norm_eps=1e-5,
        gelu='none',
        tie_head=False,
        tokenizer='gpt2',
        version='gpt2ish',
        **ignore,
    ):
        super().__init__(to_name(version, num_blocks=num_blocks, max_len=max_len), max_len=max_len)
        self.tokenizer = get_tokenizer(tokenizer)
        vocab_size = self.tokenizer.n_vocab

        self.tok_embed = nn.Embedding(vocab_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, max_len, embed_dim))
        self.dropout = nn.Dropout(embed_dropout)
        self.blocks = nn.ModuleList(
            Block(
                max_len,
                num_heads,
                embed_dim,
                attn_dropout=attn_dropout,
                ff_dropout=ff_dropout,
                norm_eps=norm_eps,
                gelu=gelu,
            )
            for _ in range(num_blocks)
        )
        self.ln = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.fc = nn.Linear(embed_dim, vocab_size, bias=not tie_head)
        if tie_head:
            self.fc.weight = self.tok_embed.weight
        self.apply(self._init_weights)
        # Radford et al. 2019, section 2.3: layers that write to the residual stream, scaled by 1 / sqrt(their
        # number). Those of Block are marked; mark those of a block of your own: `self.out.to_residual = True`
        for module in self.modules():
            if getattr(module, 'to_residual', False):
                nn.init.normal_(module.get_parameter('weight'), std=0.02 / (2 * num_blocks) ** 0.5)
        nn.init.normal_(self.pos_embed, std=0.02)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def features(self, x: Tensor, cache: list | None = None) -> Tensor:
        """(B, T) token ids to (B, T, D), ready for the head `fc`."""
        start = cached_length(cache)
        x = self.dropout(self.tok_embed(x) + self.pos_embed[:, start : start + x.shape[1]])
        for i, block in enumerate(self.blocks):
            x = block(x, cache=layer_cache(cache, i))
        return self.ln(x)

    def import_pretrained(self, source: str | LMBase) -> list[str]:
        """Warm start from 'pretrained:NAME' (hub or its cache), a folder in GPT-2's format, or a like model.

        GPT-2's head is tied and its GELU an approximation: it needs tie_head=True and gelu='tanh'. Raises
        CheckpointError for what does not fit.
        """
        if isinstance(source, LMBase):
            return super().import_pretrained(source)
        from .pretrained import import_gpt2

        return import_gpt2(self, str(source))

    def can_start_from(self, source: LMBase) -> bool:
        return self.is_like(source)

    def as_transformers(self) -> Any | None:
        """A GPT2LMHeadModel; None for a head that is not tied, whose bias GPT-2 lacks."""
        from .pretrained import as_gpt2

        return as_gpt2(self)
