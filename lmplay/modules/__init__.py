"""Building blocks of models."""

from .attention import CausalSelfAttention
from .block import Block, FeedForward
from .kv_cache import KVCache, cached_length, layer_cache
from .residual import LRAdd
from .unified import DULinear, ULinear, UnifiedEmbedding, fold
from .value_norm import ValueNorm

__all__ = [
    'Block',
    'CausalSelfAttention',
    'DULinear',
    'FeedForward',
    'KVCache',
    'LRAdd',
    'ULinear',
    'UnifiedEmbedding',
    'ValueNorm',
    'cached_length',
    'fold',
    'layer_cache',
]
