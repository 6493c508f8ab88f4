"""A stage's endless stream of training samples, drawn from one or several sources of sequences."""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import DataError
from .rows import Batch, Whole, make_batch

LEAST = 1000  # samples of a block; every source has at least one of them
MOST = 10_000


class Mixture:
    """An endless stream of samples, each a sequence of T tokens, from one or several sources.

    Weights are shares of samples, kept exactly: after any number of samples each source has had its share of
    them to within one sample. That holds for weights whose smallest whole-number ratio adds up to at most
    MOST; with others it is two. Which source sample i is from depends on the weights alone, which of its
    sequences on (seed, stage) too, and both are found in constant time. A source whose sequences have all
    been seen starts its next epoch, in another order.

    An epoch of the mixture ends where the first source would repeat a sequence ('first_exhausted'), or where
    every source has been seen whole ('all_exhausted'). Raises DataError for a weight below 1 in LEAST.
    """

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
        self.weights = whole_ratio(weights)
        total = sum(self.weights)
        if min(self.weights) * LEAST < total:
            raise DataError(f'A weight of a data mixture is below 1 in {LEAST}; given: {list(weights)}.')
        self.block = total * -(-LEAST // total) if total <= MOST else MOST
        self.length = sources[0].length
        drawn = zip(self.weights, sources, strict=True)
        self.tokens_per_row = float(sum(w * rows.tokens_per_row for w, rows in drawn) / total)
        self._orders: dict[int, tuple] = {}
        self._block: tuple | None = None
        counts = [rows.count for rows in sources]
        if exhaust == 'first_exhausted':
            self.epoch_samples = min(self._position(i, count) for i, count in enumerate(counts))
        else:
            self.epoch_samples = max(self._position(i, count - 1) for i, count in enumerate(counts)) + 1

    @property
    def quota(self) -> np.ndarray:
        """(sources,) samples of each source in the first block."""
        return self._taken(self.block)

    def _taken(self, samples: int) -> np.ndarray:
        """(sources,) how many of the first `samples`, a whole number of blocks, come from each source."""
        parts = [divmod(samples * w, sum(self.weights)) for w in self.weights]
        taken = np.array([whole for whole, _ in parts])
        largest_rests = sorted(range(len(parts)), key=lambda i: -parts[i][1])
        taken[largest_rests[: samples - int(taken.sum())]] += 1
        return taken

    def _draws(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, place among all samples of that source) of each sample of a block, (block,) each."""
        if self._block is None or self._block[0] != block:
            before = self._taken(block * self.block)
            source, rank = spread(tuple((self._taken((block + 1) * self.block) - before).tolist()))
            self._block = (block, source, before[source] + rank)
        return self._block[1:]

    def _position(self, source: int, place: int) -> int:
        """The sample at which a source's `place`-th draw (from 0) comes."""
        block = place * sum(self.weights) // (self.weights[source] * self.block)
        while int(self._taken(block * self.block)[source]) > place:
            block -= 1
        while int(self._taken((block + 1) * self.block)[source]) <= place:
            block += 1
        sources, places = self._draws(block)
        return block * self.block + int(np.flatnonzero((sources == source) & (places == place))[0])

    def locate(self, sample: int) -> tuple[int, int, int]:
        """(source, epoch, place in that epoch's order) of a sample."""
        block, at = divmod(sample, self.block)
        sources, places = self._draws(block)
        source = int(sources[at])
        epoch, place = divmod(int(places[at]), self.sources[source].count)
        return source, epoch, place

    def unscored(self, source: int) -> tuple[int, int]:
        """How many sequences of a source's first epoch, and how many documents, score nothing."""
        return self.sources[source].unscored(self.seed, self.stage, source, 0)

    def batch(
        self,
        start: int,
        count: int,
        *,
        share: Sequence[int] | None = None,
        join: Callable[[Whole], Whole] | None = None,
    ) -> Batch:
        """The samples from `start` on; padded columns that none of them needs are left out.

        share: only these of them, in this order; join: see `make_batch`.
        """
        chosen = range(count) if share is None else share
        x, y = (np.empty((len(chosen), self.length), np.int64) for _ in range(2))
        lengths = np.empty(len(chosen), np.int64)
        for i, sample in enumerate(chosen):
            source, epoch, row = self.locate(start + sample)
            cached = self._orders.get(source)
            if cached is None or cached[0] != epoch:
                self._orders[source] = cached = (
                    epoch,
                    self.sources[source].order(self.seed, self.stage, source, epoch),
                )
            lengths[i] = self.sources[source].fill(cached[1], row, x[i], y[i])
        return make_batch(x, y, lengths, join=join)


def whole_ratio(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the ratio of `weights`, which count as the decimals they print as."""
    exact = [Fraction(str(float(w))) for w in weights]
    scale = math.lcm(*(w.denominator for w in exact))
    whole = [int(w * scale) for w in exact]
    return [w // math.gcd(*whole) for w in whole]


@functools.lru_cache(maxsize=4)
def spread(quota: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(source, how many of that source came before) of each place of a block with `quota` of each source.

    Each prefix has every source's share to within one: a source's draws are jobs that may not come early by
    one or late by one, taken by the earliest deadline (Tijdeman 1980, "The chairman assignment problem").
    """
    total, taken = sum(quota), [0] * len(quota)
    source, rank = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for at in range(total):
        due = [
            (-(-(taken[i] + 1) * total // q), i)
            for i, q in enumerate(quota)
            if (at + 1) * q > taken[i] * total  # else it would be early by one
        ]
        _, chosen = min(due)
        source[at], rank[at] = chosen, taken[chosen]
        taken[chosen] += 1
    return source, rank
