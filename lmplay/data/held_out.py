"""The fixed held-out documents that a stage is evaluated on.

B sequences, T positions.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .rows import Batch, Rows, make_batch
from .scored import scored_spans
from .store import TokenStore


class Part(NamedTuple):
    """Held-out documents of one domain.

    rows    the sequences they are part of
    domain  its name
    index   (documents of the store,) int64: the entry in `HeldOut.documents` of each that is held out
    count   how many of the sequences are evaluated, from the first
    """

    rows: Rows
    domain: str
    index: np.ndarray
    count: int


class HeldOut:
    """Held-out documents of one or several stores; every domain has an equal share of `max_bytes`.

    Documents are whole, and taken in the order of their hashes, which depends on no tokenizer, seed or length
    of sequences. Where the first alone exceeds its domain's share, only its head is taken. `documents` has an
    entry per document: domain, hash, tokens, and of those the ones that are scored with their bytes.

    unscored: how many sequences have no target that is scored.
    """

    def __init__(
        self,
        stores: list[tuple[TokenStore, np.ndarray]],
        *,
        make_rows: Callable[[TokenStore, np.ndarray], Rows],
        length: int,
        max_bytes: int,
        include_prompts: bool = True,
    ):
        self.length, self.include_prompts = length, include_prompts
        self.rows: list[Part] = []
        self.documents: list[dict] = []
        domains = [
            (store, members, name)
            for store, documents in stores
            for d, name in enumerate(store.meta['domains'])
            if len(members := documents[store.domains[documents] == d])
        ]
        for store, documents, domain in domains:
            share = max(1, max_bytes // len(domains))
            documents = documents[np.lexsort((documents, store.hashes[documents]))]
            sizes = store.text_bytes[documents].sum(axis=1)
            documents = documents[: max(1, int(np.searchsorted(np.cumsum(sizes), share, side='right')))]
            part = self._part(store, documents, domain, make_rows(store, documents))
            if len(documents) == 1 and sizes[0] > share:
                part = self._head(
                    part, tokens=int(store.lengths[documents[0]]), share=share, size=int(sizes[0])
                )
            self.rows.append(part)
        self.unscored = sum(self._count_scored(part) for part in self.rows)

    def _count_scored(self, part: Part) -> int:
        """Enters what is scored of each document; returns the number of sequences that score nothing."""
        found = scored_spans(part.rows, part.count)
        for document, tokens, size in zip(found.documents, found.tokens, found.bytes):
            self.documents[part.index[document]] |= {'scored': int(tokens), 'bytes': int(size)}
        return found.unscored

    def _part(self, store: TokenStore, documents: np.ndarray, domain: str, rows: Rows) -> Part:
        """All of these documents, entered into `documents`."""
        index = np.zeros(int(documents.max()) + 1, np.int64)
        index[documents] = np.arange(len(documents)) + len(self.documents)
        for d in documents:
            self.documents.append(
                {
                    'domain': domain,
                    'hash': int(store.hashes[d]),
                    'tokens': int(store.lengths[d]),
                    'scored': 0,
                    'bytes': 0,
                }
            )
        return Part(rows, domain, index, rows.count)

    def _head(self, part: Part, *, tokens: int, share: int, size: int) -> Part:
        """The head, `share` bytes, of a part whose only document has that many tokens and bytes."""
        count = max(1, int(tokens * share / size) // self.length)
        return part._replace(count=min(part.count, count))

    def batches(self, rows_per_batch: int) -> Iterator[Batch]:
        """Every held-out sequence once, as Batches of at most that many with `documents` set."""
        for rows, _, index, count in self.rows:
            order = rows.order()
            for start in range(0, count, rows_per_batch):
                n = min(rows_per_batch, count - start)
                x, y, which = (np.zeros((n, self.length), np.int64) for _ in range(3))
                lengths = [rows.fill(order, start + i, x[i], y[i], which[i]) for i in range(n)]
                documents = np.where(which < len(index), index[np.minimum(which, len(index) - 1)], 0)
                yield make_batch(x, y, np.array(lengths, np.int64), documents)
