"""The pre-norm transformer block.

B sequences, T positions, D width of the model.
"""

from torch import Tensor, nn

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


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) (Radford et al. 2019, section 2.3).

    gelu is 'none' (exact) or 'tanh' (GPT-2's approximation); norm_eps and gelu default to torch's values, not
    GPT-2's. max_len is the longest sequence the block is meant for; nothing in it depends on that.
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
    ):
        super().__init__()
        self.max_len = max_len
        self.ln1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = CausalSelfAttention(
            num_heads=num_heads, embed_dim=embed_dim, attn_dropout=attn_dropout, out_dropout=ff_dropout
        )
        self.ln2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.ff = FeedForward(embed_dim, ff_dropout=ff_dropout, gelu=gelu)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln1(x), cache=cache)
        return x + self.ff(self.ln2(x))
