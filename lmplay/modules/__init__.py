"""Building blocks of models."""

from .attention import CausalSelfAttention
from .block import Block, FeedForward
from .kv_cache import KVCache, cached_length, layer_cache

__all__ = ['Block', 'CausalSelfAttention', 'FeedForward', 'KVCache', 'cached_length', 'layer_cache']
