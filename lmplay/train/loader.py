"""Training batches, the next one made while this one is trained on."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ..data.mixture import Mixture
from ..data.rows import Batch


class Loader:
    """Batches of a mixture by their position in it. A context manager: inside it, a thread works ahead.

    pin: make batches in page-locked memory, from which copying to a GPU waits for nothing.
    """

    def __init__(self, mixture: Mixture, *, pin: bool):
        self.mixture, self.pin = mixture, pin
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[tuple[int, int], Future] | None = None

    def __enter__(self):
        self._pool = ThreadPoolExecutor(1, 'data')
        return self

    def __exit__(self, *_):
        assert self._pool is not None
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._next = None

    def _make(self, start: int, count: int) -> Batch:
        batch = self.mixture.batch(start, count)
        return batch.pin() if self.pin else batch

    def get(self, start: int, count: int, *, then: int) -> tuple[Batch, float]:
        """(samples start to start + count, seconds waited for them);
        begins on the `then` samples that follow."""
        assert self._pool is not None
        began = time.perf_counter()
        if self._next is None or self._next[0] != (start, count):
            self._next = ((start, count), self._pool.submit(self._make, start, count))
        batch = self._next[1].result()
        waited = time.perf_counter() - began
        following = (start + count, then)
        self._next = (following, self._pool.submit(self._make, *following)) if then > 0 else None
        return batch, waited


def micro_batches(batch: Batch, sequences: int) -> Iterator[Batch]:
    """Cuts a batch into parts of at most so many sequences."""
    for start in range(0, len(batch), sequences):
        part = slice(start, start + sequences)
        yield Batch(batch.x[part], batch.y[part], batch.lengths[part], 0)
