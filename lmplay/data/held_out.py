"""The fixed held-out rows that a stage is evaluated on."""

from typing import Any

import numpy as np

from .rows import make_batch
from .store import TokenStore


class HeldOut:
    """The fixed held-out rows of one or several stores: whole documents, each domain its equal share of `max_bytes`.

    Documents are taken in the order of their hashes, which no tokenizer, seed or row length changes. One longer than its
    domain's whole share is cut. `table` has an entry per document: domain name, tokens scored, bytes, hash.
    """

    def __init__(
        self,
        stores: list[tuple[TokenStore, np.ndarray]],
        *,
        make_rows,
        length: int,
        max_bytes: int,
        include_prompts: bool = True,
    ):
        self.length = length
        self.rows: list[tuple[Any, str, np.ndarray, int]] = []
        self.documents: list[dict] = []
        groups = [
            (store, documents[store.domains[documents] == d], name)
            for store, documents in stores
            for d, name in enumerate(store.meta['domains'])
        ]
        groups = [g for g in groups if len(g[1])]
        for store, documents, domain in groups:
            documents = documents[np.lexsort((documents, store.hashes[documents]))]
            size = store.text_bytes[documents].sum(axis=1)
            share = max(1, max_bytes // len(groups))
            documents = documents[: max(1, int(np.searchsorted(np.cumsum(size), share, side='right')))]
            rows = make_rows(store, documents)
            base = len(self.documents)
            for d in documents:
                scored_bytes = int(store.text_bytes[d, 0 if include_prompts else 1 :].sum())
                covered = rows.covered(int(d)) / int(store.lengths[d])  # below 1 where long documents are cut
                self.documents.append(
                    {
                        'domain': domain,
                        'hash': int(store.hashes[d]),
                        'bytes': round(scored_bytes * covered),
                        'tokens': int(store.lengths[d]),
                    }
                )
            limit = None
            if len(documents) == 1 and int(size[0]) > share:  # one huge document: its head only
                limit = max(1, int(store.lengths[documents[0]] * share / int(size[0])) // length)
                covered = min(1.0, limit * length / int(store.lengths[documents[0]]))
                self.documents[base]['bytes'] = int(self.documents[base]['bytes'] * covered)
            index = np.zeros(int(documents.max()) + 1, np.int64)
            index[documents] = np.arange(base, base + len(documents))
            self.rows.append((rows, domain, index, min(rows.count, limit) if limit else rows.count))
        self.count = sum(r[3] for r in self.rows)

    def batches(self, rows_per_batch: int):
        """Yields every held-out row once, as Batches of at most that many rows with `documents` set."""
        for rows, _, index, count in self.rows:
            order = rows.order()
            for start in range(0, count, rows_per_batch):
                n = min(rows_per_batch, count - start)
                x, y, which = (np.zeros((n, self.length), np.int64) for _ in range(3))
                lengths = np.array(
                    [rows.fill(order, start + i, x[i], y[i], which[i]) for i in range(n)], np.int64
                )
                yield make_batch(
                    x, y, lengths, np.where(which < len(index), index[np.minimum(which, len(index) - 1)], 0)
                )
