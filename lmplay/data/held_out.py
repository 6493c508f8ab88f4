"""The fixed held-out documents that a stage is evaluated on.

B sequences, T positions.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..tokenizers import Tokenizer
from .rows import Batch, Rows, make_batch
from .scored import heads_of, scored_spans
from .split import LEAST
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
    """Held-out documents of one or several stores. Every domain has an equal share of `max_bytes`, and at
    least LEAST documents where it has them.

    Documents are taken in the order of their hashes, which depends on no tokenizer, seed or length of
    sequences. Of a longer one only the first `document_bytes` count, so that many documents are heard instead
    of a few long ones; a prompt that is not scored comes on top. `documents` has an entry per document:
    domain, hash, tokens, and of those the ones that are scored with their bytes.

    document_bytes: None for whole documents.
    unscored: how many sequences have no target that is scored.
    """

    def __init__(
        self,
        stores: list[tuple[TokenStore, np.ndarray]],
        *,
        make_rows: Callable[[TokenStore, np.ndarray], Rows],
        tokenizer: Tokenizer,
        length: int,
        max_bytes: int,
        document_bytes: int | None,
        include_prompts: bool = True,
    ):
        self.tokenizer, self.length, self.include_prompts = tokenizer, length, include_prompts
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
            sizes = self._sizes(store, documents, document_bytes)
            fit = int(np.searchsorted(np.cumsum(sizes), share, side='right'))
            documents = documents[: max(1, fit, LEAST if document_bytes else 1)]
            self.rows.append(self._part(store, documents, domain, make_rows, document_bytes or share))
        self.unscored = sum(self._count_scored(part) for part in self.rows)

    def counts(self) -> dict[str, dict[str, float]]:
        """domain -> documents that are scored, and the effective number of them: as many of equal size would
        tell as much (Kish 1965, sum(w)^2 / sum(w^2) over scored tokens)."""
        found = {}
        for domain in dict.fromkeys(d['domain'] for d in self.documents):
            w = np.array(
                [d['scored'] for d in self.documents if d['domain'] == domain and d['scored']], float
            )
            effective = float(w.sum() ** 2 / (w**2).sum()) if len(w) else 0.0
            found[domain] = {'documents': len(w), 'effective': round(effective, 1)}
        return found

    def _sizes(self, store: TokenStore, documents: np.ndarray, most: int | None) -> np.ndarray:
        """Bytes of each document, of a longer one the first `most`."""
        prompts, texts = store.text_bytes[documents].T
        sizes = prompts + texts if self.include_prompts else texts
        return np.minimum(sizes, most) if most else prompts + texts

    def _count_scored(self, part: Part) -> int:
        """Enters what is scored of each document; returns the number of sequences that score nothing."""
        found = scored_spans(part.rows, part.count)
        for document, tokens, size in zip(found.documents, found.tokens, found.bytes):
            self.documents[part.index[document]] |= {'scored': int(tokens), 'bytes': int(size)}
        return found.unscored

    def _part(
        self,
        store: TokenStore,
        documents: np.ndarray,
        domain: str,
        make_rows: Callable[[TokenStore, np.ndarray], Rows],
        most: int,
    ) -> Part:
        """The heads of these documents, entered into `documents`."""
        heads = heads_of(store, documents, self.tokenizer, most, include_prompts=self.include_prompts)
        numbers = np.arange(len(documents))
        rows, first = make_rows(heads, numbers), len(self.documents)
        self.documents += [
            {'domain': domain, 'hash': int(digest), 'tokens': int(tokens), 'scored': 0, 'bytes': 0}
            for digest, tokens in zip(heads.hashes, heads.lengths)
        ]
        return Part(rows, domain, first + numbers, rows.count)

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
