"""Keys and values of the positions already seen, so that generation computes each position once.

B batch, H heads, T positions, K width of a head.
"""

import torch
from torch import Tensor


class KVCache:
    """One layer's keys and values, (B, H, T, K). Room doubles when it runs out, so appending is O(1) on average."""

    def __init__(self):
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (B, H, t, K) of t new positions and returns those of all positions so far."""
        start, self.length = self.length, self.length + key.shape[2]
        if self._keys is None or self.length > self._keys.shape[2]:
            room = max(64, 2 * self.length)
            self._keys, self._values = (
                self._grow(old, new, start, room) for old, new in ((self._keys, key), (self._values, value))
            )
        self._keys[:, :, start : self.length] = key
        self._values[:, :, start : self.length] = value
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    @staticmethod
    def _grow(old: Tensor | None, new: Tensor, used: int, room: int) -> Tensor:
        grown = torch.empty(*new.shape[:2], room, new.shape[3], dtype=new.dtype, device=new.device)
        if old is not None:
            grown[:, :, :used] = old[:, :, :used]
        return grown


def layer_cache(cache: list | None, layer: int) -> KVCache | None:
    """The cache of block `layer` within a model's cache list, made where it is not there yet. None stays None."""
    if cache is None:
        return None
    while len(cache) <= layer:
        cache.append(KVCache())
    return cache[layer]


def cached_length(cache: list | None) -> int:
    """Number of positions that the cache of a model holds."""
    return cache[0].length if cache else 0
