"""Rows of tokens: how a store's documents become rows of T inputs with T targets.

A row's `y[t]` is the token that follows `x[t]`; IGNORE where nothing is to be predicted. Which row is which is a pure function
of (seed, stage, epoch), so that any position can be sought at once and a resumed run sees what it would have seen.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
