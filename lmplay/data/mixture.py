"""A stage's endless stream of training samples, drawn from one or several sources of sequences."""

from typing import Any

import numpy as np

from ..errors import DataError
from .rows import Batch, make_batch, permutation


class Mixture:
    """An endless stream of samples, each a sequence of T tokens, from one or several sources.

    Weights are shares of samples. Within each block of BLOCK samples every source has exactly its share, in
    an order that depends on (seed, stage, block) alone, so sample i is found in constant time. A source that
    runs out starts its next epoch. Raises DataError for a weight too small to get one sample per block.
    """

    BLOCK = 1000

    def __init__(
        self,
        sources: list[Any],
        weights: list[float],
        *,
        seed: int,
        stage: str,
        exhaust: str = 'first_exhausted',
    ):
        self.sources, self.seed, self.stage = sources, seed, stage
        shares = np.asarray(weights, float) / sum(weights)
        quota = np.floor(shares * self.BLOCK).astype(int)
        for i in np.argsort(-(shares * self.BLOCK - quota), kind='stable')[: self.BLOCK - quota.sum()]:
            quota[i] += 1
        if (quota == 0).any():
            raise DataError(f'A weight of a data mixture is below 1 in {self.BLOCK}; given: {list(weights)}.')
        self.quota = quota
        lengths = [rows.count / share for rows, share in zip(sources, quota / self.BLOCK)]
        whole = min(lengths) if exhaust == 'first_exhausted' else max(lengths)
        self.epoch_samples = max(1, sources[0].count if len(sources) == 1 else int(whole))
        self.tokens_per_row = float(sum(q * r.tokens_per_row for q, r in zip(quota, sources)) / self.BLOCK)
        self.length = sources[0].length
        self._orders: dict[int, tuple] = {}
        self._block: tuple | None = None

    def locate(self, sample: int) -> tuple[int, int, int]:
        """(source, epoch, place in that epoch's order) of a sample."""
        if len(self.sources) == 1:
            epoch, row = divmod(sample, self.sources[0].count)
            return 0, epoch, row
        block, at = divmod(sample, self.BLOCK)
        if self._block is None or self._block[0] != block:
            draw = np.repeat(np.arange(len(self.quota)), self.quota)[
                permutation(self.BLOCK, self.seed, self.stage, 'mix', block)
            ]
            rank = np.zeros(self.BLOCK, int)
            for i in range(len(self.quota)):
                rank[draw == i] = np.arange(self.quota[i])
            self._block = (block, draw, rank)
        source = int(self._block[1][at])
        epoch, row = divmod(
            block * int(self.quota[source]) + int(self._block[2][at]), self.sources[source].count
        )
        return source, epoch, row

    def batch(self, start: int, count: int) -> Batch:
        """The samples from `start` on; padded columns that none of them needs are left out."""
        x, y = np.empty((count, self.length), np.int64), np.empty((count, self.length), np.int64)
        lengths = np.empty(count, np.int64)
        for i in range(count):
            source, epoch, row = self.locate(start + i)
            cached = self._orders.get(source)
            if cached is None or cached[0] != epoch:
                self._orders[source] = cached = (
                    epoch,
                    self.sources[source].order(self.seed, self.stage, source, epoch),
                )
            lengths[i] = self.sources[source].fill(cached[1], row, x[i], y[i])
        return make_batch(x, y, lengths)
