"""Building blocks of models."""

from .attention import CausalSelfAttention
from .block import Block, FeedForward, GatedFeedForward
from .kv_cache import KVCache, cached_length, layer_cache
from .rotary import Rotary

__all__ = [
    'Block',
    'CausalSelfAttention',
    'FeedForward',
    'GatedFeedForward',
    'KVCache',
    'Rotary',
    'cached_length',
    'layer_cache',
]
