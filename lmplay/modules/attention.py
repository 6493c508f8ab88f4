"""Causal self-attention.

B sequences, T positions, D width of the model, H heads, K = D / H width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .kv_cache import KVCache

# Up to that many positions, attention in bf16 on a CPU is 1.5 to 3 times faster written out than fused.
PLAIN = 1024


def attend(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
    """softmax(q k' / sqrt(K)) v, each position seeing itself and those before it; all (B, H, T, K)."""
    T, K = q.shape[-2:]
    if T > PLAIN or q.device.type != 'cpu' or q.dtype is not torch.bfloat16:
        # a branch, since a comparison of dynamic shapes is symbolic, which the operator does not take
        causal = True if T > 1 else False
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
    future = torch.full((T, T), float('-inf'), dtype=q.dtype).triu(1)
    p = torch.softmax((q * K**-0.5) @ k.transpose(-2, -1) + future, dim=-1)
    return F.dropout(p, dropout) @ v if dropout else p @ v


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each position to itself and those before it (Vaswani et al. 2017, section 3.2).

    One matrix product gives queries, keys and values. Raises UserError where num_heads does not divide
    embed_dim.
    """

    def __init__(
        self, *, num_heads: int, embed_dim: int, attn_dropout: float = 0.0, out_dropout: float = 0.0
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(
                f'embed_dim must be a multiple of num_heads; '
                f'given: embed_dim {embed_dim}, num_heads {num_heads}.'
            )
        self.num_heads = num_heads
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.out_dropout = nn.Dropout(out_dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D). With a cache, x holds the positions that follow the cached ones."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        dropout = self.attn_dropout if self.training else 0.0
        past = cache.length if cache is not None else 0
        if cache is not None:
            k, v = cache.append(k, v)
        if past:
            # new position i sees the past and the new ones up to i
            mask = x.new_ones(T, past + T, dtype=torch.bool).tril(past) if T > 1 else None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        else:
            y = attend(q, k, v, dropout=dropout)
        return self.out_dropout(self.proj(y.transpose(1, 2).reshape(B, T, D)))
