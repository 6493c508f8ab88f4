"""Training batches, the next one made while this one is trained on."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ..data.mixture import Mixture
from ..data.rows import IGNORE, Batch, Whole
from .ranks import ALONE, Ranks


class Loader:
    """Batches of a mixture by their position in it. A context manager: inside it, a thread works ahead.

    pin: make batches in page-locked memory, from which copying to a GPU waits for nothing.
    ranks: of several processes each makes its share.
    """

    def __init__(self, mixture: Mixture, *, pin: bool, ranks: Ranks = ALONE):
        self.mixture, self.pin, self.ranks = mixture, pin, ranks
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[tuple[int, int, int], Future] | None = None

    def __enter__(self):
        self._pool = ThreadPoolExecutor(1, 'data')
        return self

    def __exit__(self, *_):
        assert self._pool is not None
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._next = None

    def _make(self, start: int, count: int, mini_batch: int) -> Batch:
        if self.ranks.alone:
            batch = self.mixture.batch(start, count)
        else:
            share = self.ranks.share(count, mini_batch)
            batch = self.mixture.batch(start, count, share=share, join=self._join)
        return batch.pin() if self.pin else batch

    def _join(self, own: Whole) -> Whole:
        counts = map(int, self.ranks.total(*own[1:]))
        return Whole(self.ranks.widest(own.width), *counts)

    def get(self, start: int, count: int, *, then: int, mini_batch: int = 1) -> tuple[Batch, float]:
        """(samples start to start + count, seconds waited for them);
        begins on the `then` samples that follow. mini_batch: decides which of them are a rank's share."""
        assert self._pool is not None
        began, wanted = time.perf_counter(), (start, count, mini_batch)
        if self._next is None or self._next[0] != wanted:
            self._next = (wanted, self._pool.submit(self._make, *wanted))
        batch = self._next[1].result()
        waited = time.perf_counter() - began
        following = (start + count, then, mini_batch)
        self._next = (following, self._pool.submit(self._make, *following)) if then > 0 else None
        return batch, waited


def micro_batches(batch: Batch, sequences: int) -> list[Batch]:
    """Cuts a batch into parts of at most so many sequences."""
    parts = (slice(start, start + sequences) for start in range(0, len(batch), sequences))
    return [Batch(batch.x[part], batch.y[part], batch.lengths[part], 0) for part in parts]


def nothing_like(batch: Batch) -> Batch:
    """A micro-batch in which there is nothing, for a rank that must pass and has no sequence left."""
    x = torch.zeros(1, batch.x.shape[1], dtype=batch.x.dtype)
    return Batch(x, torch.full_like(x, IGNORE), torch.zeros(1, dtype=batch.lengths.dtype), 0)
