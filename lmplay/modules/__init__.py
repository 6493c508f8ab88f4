"""Building blocks of models."""

from .attention import CausalSelfAttention
from .block import Block, FeedForward, GatedFeedForward
from .kv_cache import KVCache, cached_length, layer_cache
from .residual import LRAdd
from .rotary import Rotary
from .unified import DULinear, ULinear, UnifiedEmbedding, fold
from .value_norm import ValueNorm

__all__ = [
    'Block',
    'CausalSelfAttention',
    'DULinear',
    'FeedForward',
    'GatedFeedForward',
    'KVCache',
    'LRAdd',
    'Rotary',
    'ULinear',
    'UnifiedEmbedding',
    'ValueNorm',
    'cached_length',
    'fold',
    'layer_cache',
]
