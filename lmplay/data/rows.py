"""Rows: how a store's documents become sequences of T inputs with T targets.

A sequence's `y[t]` is the token that follows `x[t]`, or IGNORE where nothing is scored. Packed or padded, a
document's first token is the target of an end-of-text token, so the same tokens are scored either way. The
order of the sequences is a pure function of (seed, stage, epoch): any position can be reached at once, and a
resumed run sees what it would have seen.

B sequences, T positions, V vocabulary.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tokenizers import Tokenizer
from .store import TokenStore

IGNORE = -100


class Whole(NamedTuple):
    """What is counted of a batch of which each of several processes has a part."""

    width: int
    sequences: int
    scored: int
    padding: int
    tokens: int


@dataclass
class Batch:
    """Sequences of equal width.

    x, y       (B, T) int64: inputs and targets
    lengths    (B,) int64: real tokens of each sequence; the rest is padding
    scored     number of targets that are not IGNORE
    padding    how many of those are padding, which stands behind a sequence's real tokens
    documents  (B, T) int64: the held-out document of each target; in evaluation only
    whole      of a part of a batch: what is counted of the whole, of which `scored` and `padding` then are
    """

    x: Tensor
    y: Tensor
    lengths: Tensor
    scored: int
    documents: Tensor | None = None
    padding: int = 0
    whole: Whole | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum()) if self.whole is None else self.whole.tokens

    def pin(self) -> 'Batch':
        """The same in page-locked memory, which a GPU copies from asynchronously."""
        return replace(self, x=self.x.pin_memory(), y=self.y.pin_memory(), lengths=self.lengths.pin_memory())


def permutation(n: int, *key: int | str) -> np.ndarray:
    """A permutation of range(n) that follows from the key alone, (n,) int64."""
    entropy = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).permutation(n)


class PackedRows:
    """Documents concatenated, end-of-text between them, and cut into sequences of `length`; nothing is lost.

    An epoch's stream begins with an end-of-text token as input, so every token of every document is a target
    once. Only its last sequence may be shorter; it is padded. Documents are shuffled before they are joined,
    and sequences after they are cut: those of a long document would fill whole batches.
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
        self.store, self.documents, self.length, self.tokenizer = store, documents, length, tokenizer
        self.eot, self.pad, self.score_padding = tokenizer.eot_token, tokenizer.pad_token, False
        self.include_prompts = include_prompts or not store.prompt_lengths.any()
        self.total = int(store.lengths[documents].sum())
        self.count = -(-self.total // length)
        self.tokens_per_row = self.total / max(1, self.count)

    def unscored(self, *key: int | str) -> tuple[int, int]:
        """How many sequences of `order(*key)`, and how many documents, have no target that is scored."""
        if self.include_prompts:
            return 0, 0
        documents, ends, _ = self.order(*key)
        lengths, hidden = self.store.lengths[documents], self.store.prompt_lengths[documents]
        edges = np.minimum(np.arange(self.count + 1) * self.length, self.total)
        i = np.minimum(np.searchsorted(ends, edges, side='right'), len(documents) - 1)
        before = np.concatenate([[0], np.cumsum(lengths - hidden)])[i]
        scored = before + np.maximum(0, edges - (ends - lengths)[i] - hidden[i])
        return int((np.diff(scored) == 0).sum()), int((lengths == hidden).sum())

    def order(self, *key: int | str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(documents, their ends in the stream, sequences), each in order; without a key, unshuffled."""
        documents = self.documents[permutation(len(self.documents), *key)] if key else self.documents
        rows = permutation(self.count, *key, 'rows') if key else np.arange(self.count)
        return documents, np.cumsum(self.store.lengths[documents]), rows

    def fill(
        self, order: Any, row: int, x: np.ndarray, y: np.ndarray, which: np.ndarray | None = None
    ) -> int:
        """Writes sequence `row` of `order` into x and y (T,), each target's document into `which` (T,).

        Returns the number of its real tokens.
        """
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
    """One document per sequence, padded; a longer one is split at sentence ends ('split') or cut off ('cut').

    A sequence begins with an end-of-text token as input; the continuation of a document with the token that
    the sequence before it predicts last. So every token is a target once, and nothing is lost unless it is
    cut off. With `score_padding` the padding is scored too, as some published code does.
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
        self.store, self.length, self.tokenizer = store, length, tokenizer
        self.eot, self.pad = tokenizer.eot_token, tokenizer.pad_token
        self.include_prompts = include_prompts or not store.prompt_lengths.any()
        self.score_padding = score_padding
        lengths = store.lengths[documents]
        heads = np.stack([documents, np.zeros_like(lengths), np.minimum(lengths, length)], axis=1)
        parts = [heads]  # (parts, 3) each: document, first token, end
        long = np.flatnonzero(lengths > length)
        if long_documents == 'split' and len(long):
            sentence_end = _sentence_ends(tokenizer)
            for i in long:
                first, end = store.starts[documents[i]], store.starts[documents[i] + 1]
                cuts = np.asarray(_cuts(store.tokens[first:end], length, sentence_end))
                heads[i, 2] = cuts[0]
                parts.append(np.stack([np.full(len(cuts) - 1, documents[i]), cuts[:-1], cuts[1:]], axis=1))
        table = np.concatenate(parts)
        self.table = table[np.lexsort((table[:, 1], table[:, 0]))]
        self.count = len(self.table)
        self.total = int((self.table[:, 2] - self.table[:, 1]).sum())
        self.tokens_per_row = self.total / max(1, self.count)

    def unscored(self, *_: int | str) -> tuple[int, int]:
        """See PackedRows.unscored; padding does not count."""
        if self.include_prompts:
            return 0, 0
        documents, _, ends = self.table.T
        nothing = ends <= self.store.prompt_lengths[documents]
        return int(nothing.sum()), len(np.setdiff1d(documents, documents[~nothing]))

    def order(self, *key: int | str) -> np.ndarray:
        return permutation(self.count, *key) if key else np.arange(self.count)

    def fill(
        self, order: Any, row: int, x: np.ndarray, y: np.ndarray, which: np.ndarray | None = None
    ) -> int:
        """See PackedRows.fill."""
        document, start, end = (int(v) for v in self.table[order[row]])
        n, first = end - start, int(self.store.starts[document]) + start
        y[:n] = self.store.tokens[first : first + n]
        y[n:] = self.pad if self.score_padding else IGNORE
        x[0] = self.store.tokens[first - 1] if start else self.eot
        x[1:n] = y[: n - 1]
        x[n:] = self.pad
        if not self.include_prompts:
            y[: min(n, max(0, int(self.store.prompt_lengths[document]) - start))] = IGNORE
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
    """Where to cut a long document: after the last sentence that ends in the second half of each piece."""
    cuts, start = [], 0
    while len(tokens) - start > length:
        ends = np.flatnonzero(sentence_end[tokens[start + length // 2 : start + length]])
        start = start + length // 2 + int(ends[-1]) + 1 if len(ends) else start + length
        cuts.append(start)
    return [*cuts, len(tokens)]


Rows = PackedRows | PaddedRows


def make_batch(
    x: np.ndarray,
    y: np.ndarray,
    lengths: np.ndarray,
    documents: np.ndarray | None = None,
    *,
    join: Callable[[Whole], Whole] | None = None,
) -> Batch:
    """A Batch without the columns, in steps of 64, in which there is no token and nothing is scored.

    join: where these are a part of a batch, turns what is counted of it into that of the whole.
    """
    scored = y != IGNORE
    behind = np.arange(y.shape[1]) >= lengths[:, None]
    used = np.flatnonzero(scored.any(axis=0))
    width = max(int(lengths.max(initial=0)), int(used[-1]) + 1 if len(used) else 0)
    width = min(x.shape[1], -(-width // 64) * 64)
    padding = int((scored & behind).sum())
    counted = Whole(width, len(lengths), int(scored.sum()), padding, int(lengths.sum()))
    whole = join(counted) if join is not None else counted
    return Batch(
        torch.from_numpy(x[:, : whole.width].copy()),
        torch.from_numpy(y[:, : whole.width].copy()),
        torch.from_numpy(lengths),
        whole.scored,
        None if documents is None else torch.from_numpy(documents[:, : whole.width].copy()),
        whole.padding,
        whole if join is not None else None,
    )


def make_rows(
    store: TokenStore,
    documents: np.ndarray,
    *,
    length: int,
    tokenizer: Tokenizer,
    packing: str,
    include_prompts: bool,
    long_documents: str,
    score_padding: bool,
) -> Rows:
    """Documents of a store as sequences of `length` tokens, packed or padded; see the keys of a stage."""
    if packing == 'pack':
        return PackedRows(
            store, documents, length=length, tokenizer=tokenizer, include_prompts=include_prompts
        )
    return PaddedRows(
        store,
        documents,
        length=length,
        tokenizer=tokenizer,
        include_prompts=include_prompts,
        long_documents=long_documents,
        score_padding=score_padding,
    )
