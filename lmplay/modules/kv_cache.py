"""Keys and values of the positions already seen, so that generation computes each position once.

B sequences, H heads, T positions, t new positions, K width of a head.
"""

import torch
from torch import Tensor


class KVCache:
    """One layer's keys and values, (B, H, T, K). Room doubles when used up: appending is amortised O(1)."""

    def __init__(self):
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values (B, H, t, K) of new positions; returns those of all positions so far."""
        start, self.length = self.length, self.length + key.shape[2]
        self._keys = self._extended(self._keys, key, start)
        self._values = self._extended(self._values, value, start)
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def reorder_cache(self, rows: Tensor) -> None:
        """Keeps these rows, (B,) indices, in this order, as beam search asks."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = (t.index_select(0, rows) for t in (self._keys, self._values))

    def _extended(self, old: Tensor | None, new: Tensor, start: int) -> Tensor:
        """`old`, in a larger tensor if it has no room left, with `new` from position `start` on."""
        if old is None or self.length > old.shape[2]:
            room = max(64, 2 * self.length)
            grown = torch.empty(*new.shape[:2], room, new.shape[3], dtype=new.dtype, device=new.device)
            if old is not None:
                grown[:, :, :start] = old[:, :, :start]
            old = grown
        old[:, :, start : self.length] = new
        return old


def layer_cache(cache: list | None, layer: int) -> KVCache | None:
    """The cache of block `layer` in a model's list of them, made where it is missing; None stays None."""
    if cache is None:
        return None
    while len(cache) <= layer:
        cache.append(KVCache())
    return cache[layer]


def cached_length(cache: list | None) -> int:
    """Number of positions that a model's cache holds."""
    return cache[0].length if cache else 0
