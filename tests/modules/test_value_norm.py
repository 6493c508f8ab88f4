import torch
from torch import nn

from lmplay.modules import CausalSelfAttention, KVCache, ValueNorm


def attention():
    torch.manual_seed(0)
    attn = CausalSelfAttention(num_heads=2, embed_dim=8).double()
    attn.qkv = ValueNorm(attn.qkv, 2, 8).double()
    nn.init.normal_(attn.qkv.norm.weight)
    nn.init.normal_(attn.qkv.norm.bias)
    return attn


def test_attention_with_it_equals_attention_written_out_with_normalised_values():
    attn, x = attention(), torch.randn(3, 5, 8, dtype=torch.float64)
    q, k, v = attn.qkv.qkv(x).split(8, dim=2)
    norm, heads = attn.qkv.norm, []
    for h in (slice(0, 4), slice(4, 8)):
        value = v[..., h]
        value = (value - value.mean(-1, keepdim=True)) / (
            value.var(-1, correction=0, keepdim=True) + norm.eps
        ).sqrt()
        scores = q[..., h] @ k[..., h].transpose(1, 2) / 2
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        heads.append(scores.softmax(-1) @ (value * norm.weight + norm.bias))
    torch.testing.assert_close(attn(x), attn.proj(torch.cat(heads, dim=2)))


def test_it_works_with_a_cache():
    attn, x, cache = attention(), torch.randn(1, 5, 8, dtype=torch.float64), KVCache()
    parts = torch.cat([attn(x[:, :3], cache=cache), attn(x[:, 3:], cache=cache)], dim=1)
    torch.testing.assert_close(parts, attn(x))
