"""Causal self-attention.

B sequences, T positions, D width of the model, H heads, G heads of keys and values, K = D / H width of a
head.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .kv_cache import KVCache
from .rotary import Rotary

# Up to that many positions, attention in bf16 on a CPU is 1.5 to 3 times faster written out than fused.
PLAIN = 1024


def attend(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, visible: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(K)) v, each position seeing itself and those before it: (B, H, T, K).

    q is (B, H, T, K), k and v are (B, G, T, K). visible (B, 1, T, T) bool: what a position sees instead.
    """
    T, K = q.shape[-2:]
    shared = q.shape[1] // k.shape[1]
    if T > PLAIN or q.device.type != 'cpu' or q.dtype is not torch.bfloat16:
        # a branch, since a comparison of dynamic shapes is symbolic, which the operator does not take
        causal, grouped = True if T > 1 and visible is None else False, True if shared > 1 else False
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
        )
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if visible is None else ~visible
    hidden = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, float('-inf'))
    p = torch.softmax((q * K**-0.5) @ k.transpose(-2, -1) + hidden, dim=-1)
    return F.dropout(p, dropout) @ v if dropout else p @ v


def head_width(embed_dim: int, num_heads: int) -> int:
    """embed_dim / num_heads. Raises UserError where that is not whole."""
    if embed_dim % num_heads:
        raise UserError(
            f'embed_dim must be a multiple of num_heads; given: embed_dim {embed_dim}, num_heads {num_heads}.'
        )
    return embed_dim // num_heads


def default_kv_heads(num_heads: int) -> int:
    """A third of `num_heads`, or the next smaller number that divides it."""
    return max(n for n in range(1, max(1, num_heads // 3) + 1) if num_heads % n == 0)


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each position to itself and those before it (Vaswani et al. 2017, section 3.2).

    num_kv_heads  G: each head of keys and values serves H / G heads of queries (Ainslie et al. 2023)
    rotary        turns queries and keys by their position
    qk_norm       normalises the queries and keys of each head, before they are turned (Henry et al. 2020; in
                  this form Qwen3)

    One matrix product gives queries, keys and values. Raises UserError where num_heads does not divide
    embed_dim, or num_kv_heads num_heads.
    """

    visible: Tensor | None = None  # set by DocumentMask

    def __init__(
        self,
        *,
        num_heads: int,
        embed_dim: int,
        num_kv_heads: int | None = None,
        bias: bool = True,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        attn_dropout: float = 0.0,
        out_dropout: float = 0.0,
    ):
        super().__init__()
        self.head_dim = head_dim = head_width(embed_dim, num_heads)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if kv_heads < 1 or num_heads % kv_heads:
            raise UserError(
                f'num_heads must be a multiple of num_kv_heads; '
                f'given: num_heads {num_heads}, num_kv_heads {kv_heads}.'
            )
        self.num_heads, self.heads = num_heads, (num_heads, kv_heads, kv_heads)  # queries, keys, values
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(embed_dim, sum(self.heads) * head_dim, bias=bias)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.proj.to_residual = True  # type: ignore[assignment]  a mark: models may start it smaller
        self.rotary = rotary
        self.q_norm = nn.RMSNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.out_dropout = nn.Dropout(out_dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D). With a cache, x holds the positions that follow the cached ones."""
        B, T, D = x.shape
        parts = self.qkv(x).view(B, T, -1, self.head_dim).transpose(1, 2).split(self.heads, dim=1)
        q, k, v = self.q_norm(parts[0]), self.k_norm(parts[1]), parts[2]  # (B, H or G, T, K)
        dropout = self.attn_dropout if self.training else 0.0
        past = cache.length if cache is not None else 0
        if self.rotary is not None:
            q, k = self.rotary(q, past), self.rotary(k, past)
        if cache is not None:
            k, v = cache.append(k, v)
        if past:
            # new position i sees the past and the new ones up to i
            mask = x.new_ones(T, past + T, dtype=torch.bool).tril(past) if T > 1 else None
            grouped = k.shape[1] < q.shape[1]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped)
        else:
            y = attend(q, k, v, dropout=dropout, visible=self.visible)
        return self.out_dropout(self.proj(y.transpose(1, 2).reshape(B, T, D)))


class DocumentMask:
    """Keeps the documents of packed sequences apart, in models whose attention is CausalSelfAttention.

    end: the token that stands between documents; the one that follows is predicted from it alone.
    """

    def __init__(self, model: nn.Module, end: int):
        self.layers = [m for m in model.modules() if isinstance(m, CausalSelfAttention)]
        self.end = end

    @contextlib.contextmanager
    def over(self, x: Tensor) -> Iterator[None]:
        """Inside it, no position of x (B, T) sees another document."""
        document = (x == self.end).cumsum(1)
        visible = (document[:, None, :, None] == document[:, None, None, :]).tril()
        for layer in self.layers:
            layer.visible = visible
        try:
            yield
        finally:
            for layer in self.layers:
                layer.visible = None
