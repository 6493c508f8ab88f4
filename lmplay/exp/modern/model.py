"""modern: the shape of today's open models, after Llama (Touvron et al. 2023).

RMSNorm, SwiGLU, rotary positions, grouped keys and values, no biases; no dropout by default.

B sequences, T positions, D = embed_dim, V vocabulary.
"""

from typing import Any

from torch import Tensor, nn

from lmplay.base.base_model import LMBase
from lmplay.modules import (
    Block,
    CausalSelfAttention,
    GatedFeedForward,
    Rotary,
    layer_cache,
)
from lmplay.modules.attention import default_kv_heads, head_width
from lmplay.tokenizers import get_tokenizer, padded_vocab
from lmplay.utils import to_name


class Modern(LMBase):
    """Pre-norm transformer with rotary positions.

    num_kv_heads  heads of keys and values; None for a third of num_heads, or the next divisor below
    ff_dim        width inside the MLP; None for 8/3 of embed_dim, rounded up to a multiple of 64
    qk_norm       normalises queries and keys
    tied_head     whether the output head's weight is the token embedding's
    vocab_size    rows of the embedding, where it is padded beyond the tokenizer's vocabulary
    """

    def __init__(
        self,
        max_len=1024,
        num_heads=12,
        num_kv_heads: int | None = None,
        num_blocks=6,
        embed_dim=768,
        ff_dim: int | None = None,
        attn_dropout=0.0,
        ff_dropout=0.0,
        embed_dropout=0.0,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        qk_norm=False,
        tied_head=False,
        vocab_size: int | None = None,
        tokenizer='gpt2',
        version='modern',
    ):
        super().__init__(to_name(version, num_blocks=num_blocks, max_len=max_len), max_len=max_len)
        self.tokenizer = get_tokenizer(tokenizer)
        vocab_size = padded_vocab(self.tokenizer, vocab_size)
        self.tok_embed = nn.Embedding(vocab_size, embed_dim)
        self.dropout = nn.Dropout(embed_dropout)
        rotary = Rotary(max_len, head_width(embed_dim, num_heads), theta=rope_theta)
        self.blocks = nn.ModuleList(
            Block(
                max_len,
                num_heads,
                embed_dim,
                norm=nn.RMSNorm,
                norm_eps=norm_eps,
                attn=CausalSelfAttention(
                    num_heads=num_heads,
                    num_kv_heads=default_kv_heads(num_heads) if num_kv_heads is None else num_kv_heads,
                    embed_dim=embed_dim,
                    bias=False,
                    rotary=rotary,
                    qk_norm=qk_norm,
                    attn_dropout=attn_dropout,
                    out_dropout=ff_dropout,
                    norm_eps=norm_eps,
                ),
                ff=GatedFeedForward(embed_dim, ff_dim=ff_dim, ff_dropout=ff_dropout),
            )
            for _ in range(num_blocks)
        )
        self.ln = nn.RMSNorm(embed_dim, eps=norm_eps)
        self.fc = nn.Linear(embed_dim, vocab_size, bias=False)
        if tied_head:
            self.fc.weight = self.tok_embed.weight
        # layers that write to the residual stream are scaled down, as in gpt2ish; mark your own block's
        marked = {id(m.weight) for m in self.modules() if getattr(m, 'to_residual', False)}
        for weight in self.parameters():
            if weight.ndim > 1:
                scale = (2 * num_blocks) ** -0.5 if id(weight) in marked else 1
                nn.init.normal_(weight, std=0.02 * scale)

    def features(self, x: Tensor, cache: list | None = None) -> Tensor:
        """(B, T) token ids to (B, T, D), ready for the head `fc`."""
        x = self.dropout(self.tok_embed(x))
        for i, block in enumerate(self.blocks):
            x = block(x, cache=layer_cache(cache, i))
        return self.ln(x)

    def import_pretrained(self, source: str | LMBase) -> list[str]:
        """Warm start from 'pretrained:NAME' (hub or its cache), a folder in Llama's format, or a like model.

        A tokenizer.json beside the weights becomes the model's. Raises CheckpointError for what does not fit.
        """
        if isinstance(source, LMBase):
            return super().import_pretrained(source)
        from .pretrained import import_llama

        return import_llama(self, str(source))

    def as_transformers(self) -> Any | None:
        """A LlamaForCausalLM; None with qk_norm, which Llama lacks."""
        from .pretrained import as_llama

        return None if self.hyperparameters['qk_norm'] else as_llama(self)

    def can_start_from(self, source: LMBase) -> bool:
        return self.is_like(source)
