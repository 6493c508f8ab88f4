"""Parts to build models from."""
from .attention import CausalSelfAttention
from .block import FeedForward, Block
from .kv_cache import KVCache, cached_length, layer_cache

__all__ = ['Block', 'CausalSelfAttention', 'FeedForward', 'KVCache', 'cached_length', 'layer_cache']
