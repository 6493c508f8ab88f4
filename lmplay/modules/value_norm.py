"""LayerNorm of the values in attention.

B sequences, T positions, D width of the model, H heads, K = D / H width of a head.
"""

import torch
from torch import Tensor, nn


class ValueNorm(nn.Module):
    """Wraps the layer that gives queries, keys and values, and normalises each head's values.

    Value Norm of the original lmplay (jmward01/lmplay, lmplay/exp/attn_norm). One norm serves all heads.

        block.attn.qkv = ValueNorm(block.attn.qkv, num_heads, embed_dim)
    """

    def __init__(self, qkv: nn.Module, num_heads: int, embed_dim: int):
        super().__init__()
        self.qkv, self.num_heads = qkv, num_heads
        self.norm = nn.LayerNorm(embed_dim // num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, 3 D): queries, keys, values."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads)
        v = self.norm(qkv[:, :, 2])
        return torch.cat([qkv[:, :, :2].flatten(2), v.flatten(2).to(qkv.dtype)], dim=-1)
