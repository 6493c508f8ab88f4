"""Rows of tokens: how a store's documents become rows of T inputs with T targets.

A row's `y[t]` is the token that follows `x[t]`; IGNORE where nothing is to be predicted. Which row is which is a pure function
of (seed, stage, epoch), so that any position can be sought at once and a resumed run sees what it would have seen.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..tokenizers import Tokenizer
from .store import TokenStore

IGNORE = -100


@dataclass
class Batch:
    """x, y (B, T) int64; lengths (B,) int64: real tokens of each row, the rest is padding. scored: targets that count."""

    x: Tensor
    y: Tensor
    lengths: Tensor
    scored: int
    documents: Tensor | None = (
        None  # (B, T) int64: the held-out document each target belongs to; evaluation only
    )

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def pin(self) -> 'Batch':
        """The same in page-locked memory, from which a copy to a GPU needs no waiting."""
        return Batch(
            self.x.pin_memory(), self.y.pin_memory(), self.lengths.pin_memory(), self.scored, self.documents
        )


def permutation(n: int, *key: int | str) -> np.ndarray:
    """A permutation of range(n) that depends on the key alone."""
    entropy = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).permutation(n)


class PackedRows:
    """Documents one behind the other, end-of-text between them, cut into rows of `length`; nothing is lost.

    The stream of an epoch begins with an end-of-text token as input, so that every token of every document is a target once.
    Only the stream's last row may be shorter; it is padded. Documents are shuffled before they are joined and rows after they
    are cut, or the rows of a long document would fill whole batches.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: np.ndarray,
        *,
        length: int,
        tokenizer: Tokenizer,
        include_prompts: bool = True,
    ):
        self.store, self.documents, self.length = store, documents, length
        self.eot, self.pad = tokenizer.eot_token, tokenizer.pad_token
        self.include_prompts = include_prompts or not store.prompt_lengths.any()
        self.total = int(store.lengths[documents].sum())
        self.count = -(-self.total // length)
        self.tokens_per_row = self.total / max(1, self.count)

    def covered(self, document: int) -> int:
        """Tokens of a document that stand in rows."""
        return int(self.store.lengths[document])

    def order(self, *key: int | str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(documents in order, where each ends in the stream, order of the rows); without a key as they stand."""
        documents = self.documents[permutation(len(self.documents), *key)] if key else self.documents
        rows = permutation(self.count, *key, 'rows') if key else np.arange(self.count)
        return documents, np.cumsum(self.store.lengths[documents]), rows

    def fill(
        self, order: tuple, row: int, x: np.ndarray, y: np.ndarray, which: np.ndarray | None = None
    ) -> int:
        """Writes row `row` of the order into x and y (T,), which document each target is of into `which`; its real length."""
        documents, ends, rows = order
        position = int(rows[row]) * self.length
        stop = min(position + self.length, self.total)
        i, at = int(np.searchsorted(ends, position, side='right')), 0
        y.fill(IGNORE)
        x.fill(self.pad)
        while position < stop:
            document = documents[i]
            offset = position - (int(ends[i]) - int(self.store.lengths[document]))
            n = min(int(ends[i]), stop) - position
            start = int(self.store.starts[document]) + offset
            y[at : at + n] = self.store.tokens[start : start + n]
            x[at] = self.store.tokens[start - 1] if offset else self.eot
            x[at + 1 : at + n] = y[at : at + n - 1]
            if not self.include_prompts:
                unscored = min(n, max(0, int(self.store.prompt_lengths[document]) - offset))
                y[at : at + unscored] = IGNORE
            if which is not None:
                which[at : at + n] = document
            position, at, i = position + n, at + n, i + 1
        return at


class PaddedRows:
    """One document a row, padded; a longer one continues in further rows ('split', at a sentence end) or is cut ('cut').

    A continued row begins with the token that the row before predicted last, so nothing is lost and nothing scored twice. With
    `score_padding` the padding is predicted too, as some published code does.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: np.ndarray,
        *,
        length: int,
        tokenizer: Tokenizer,
        include_prompts: bool = True,
        long_documents: str = 'split',
        score_padding: bool = False,
    ):
        self.store, self.length, self.pad = store, length, tokenizer.pad_token
        self.include_prompts = include_prompts or not store.prompt_lengths.any()
        self.score_padding = score_padding
        lengths = store.lengths[documents]
        usable = lengths >= 2  # a single token leaves nothing to predict
        documents, lengths = documents[usable], lengths[usable]
        firsts, starts, ends = (
            [documents],
            [np.zeros(len(documents), np.int64)],
            [np.minimum(lengths, length)],
        )
        long = np.flatnonzero(lengths > length)
        if long_documents == 'split' and len(long):
            sentence_end = _sentence_ends(tokenizer)
            for i in long:
                cuts = _cuts(
                    store.tokens[store.starts[documents[i]] : store.starts[documents[i] + 1]],
                    length,
                    sentence_end,
                )
                ends[0][i] = cuts[0]
                firsts.append(np.full(len(cuts) - 1, documents[i]))
                starts.append(np.asarray(cuts[:-1], np.int64))
                ends.append(np.asarray(cuts[1:], np.int64))
        table = np.stack([np.concatenate(firsts), np.concatenate(starts), np.concatenate(ends)], axis=1)
        self.table = table[np.lexsort((table[:, 1], table[:, 0]))]  # (rows, 3): document, first token, end
        self.continues = long_documents == 'split'
        self.count = len(self.table)
        self.total = int((self.table[:, 2] - self.table[:, 1]).sum())
        self.tokens_per_row = self.total / max(1, self.count)

    def covered(self, document: int) -> int:
        """Tokens of a document that stand in rows."""
        rows = self.table[
            np.searchsorted(self.table[:, 0], document) : np.searchsorted(
                self.table[:, 0], document, side='right'
            )
        ]
        return int((rows[:, 2] - rows[:, 1]).sum())

    def order(self, *key: int | str) -> np.ndarray:
        return permutation(self.count, *key) if key else np.arange(self.count)

    def fill(
        self, order: np.ndarray, row: int, x: np.ndarray, y: np.ndarray, which: np.ndarray | None = None
    ) -> int:
        """As PackedRows.fill."""
        document, start, end = (int(v) for v in self.table[order[row]])
        n, first = end - start, int(self.store.starts[document])
        follows = self.continues and end < self.store.lengths[document]
        x[:n] = self.store.tokens[first + start : first + end]
        x[n:] = self.pad
        y[: n - 1] = x[1:n]
        y[n - 1 :] = IGNORE
        if follows:
            y[n - 1] = self.store.tokens[first + end]
        elif self.score_padding:
            y[n - 1 : -1] = self.pad
        if not self.include_prompts:
            y[: min(n, max(0, int(self.store.prompt_lengths[document]) - start - 1))] = IGNORE
        if which is not None:
            which[:] = document
        return n


def _sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) bool: the token ends a sentence or a line."""
    texts = (tokenizer.decode([i]) for i in range(tokenizer.n_vocab))
    return np.fromiter(
        (t.rstrip(' ').endswith(('.', '!', '?', '\n')) for t in texts), bool, tokenizer.n_vocab
    )


def _cuts(tokens: np.ndarray, length: int, sentence_end: np.ndarray) -> list[int]:
    """Ends of the pieces of a document longer than a row: the last sentence end in a row's second half, else its end."""
    cuts, start = [], 0
    while len(tokens) - start > length:
        ends = np.flatnonzero(sentence_end[tokens[start + length // 2 : start + length]])
        start = start + length // 2 + int(ends[-1]) + 1 if len(ends) else start + length
        cuts.append(start)
    return [*cuts, len(tokens)]


Rows = PackedRows | PaddedRows


class Mixture:
    """An endless sequence of samples from one or several sources of rows.

    Weights are shares of samples. Within each block of BLOCK samples every source has exactly its share, in an order that
    depends on (seed, stage, block), so that sample i is found in constant time. A source that runs out begins its next epoch.
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
            raise DataError(f'A weight of a mixture is below 1 in {self.BLOCK}; weights: {list(weights)}.')
        self.quota = quota
        lengths = [rows.count / share for rows, share in zip(sources, quota / self.BLOCK)]
        whole = min(lengths) if exhaust == 'first_exhausted' else max(lengths)
        self.epoch_samples = max(1, sources[0].count if len(sources) == 1 else int(whole))
        self.tokens_per_row = float(sum(q * r.tokens_per_row for q, r in zip(quota, sources)) / self.BLOCK)
        self.length = sources[0].length
        self._orders: dict[int, tuple] = {}
        self._block: tuple | None = None

    def locate(self, sample: int) -> tuple[int, int, int]:
        """(source, epoch, row in that epoch's order) of a sample."""
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
        """Samples start to start + count. Padded columns that no row needs are left out."""
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


def make_batch(
    x: np.ndarray, y: np.ndarray, lengths: np.ndarray, documents: np.ndarray | None = None
) -> Batch:
    """A Batch of these rows without the columns in which nothing stands and nothing is scored (in steps of 64)."""
    used = np.flatnonzero((y != IGNORE).any(axis=0))
    width = max(int(lengths.max()), int(used[-1]) + 1 if len(used) else 0)
    width = min(x.shape[1], -(-width // 64) * 64)
    return Batch(
        torch.from_numpy(x[:, :width].copy()),
        torch.from_numpy(y[:, :width].copy()),
        torch.from_numpy(lengths),
        int((y != IGNORE).sum()),
        None if documents is None else torch.from_numpy(documents[:, :width].copy()),
    )


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
