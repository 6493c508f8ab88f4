"""What of a dataset is held out: one rule, for tokenizers that are trained, for training and for evaluation.

A dataset with a validation split of its own keeps it. Of others whole documents are held out, chosen by their
hashes; of a few documents, or where the dataset asks for it, the end of each. A dataset may set how many.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError
from .sources import Row, Source

log = logging.getLogger(__name__)
FEW = 10  # documents; of fewer, the end of each is held out
END = 0.05  # of a document's characters
SHORTEST = 200  # characters of a document whose end can be held out
LEAST = 20  # held-out documents of each domain, if that is at most a LARGEST of them
LARGEST = 0.2  # of a domain's documents and of its bytes, unless more is asked for
SPLITS = {'': 0, 'train': 1, 'validation': 2}


@dataclass(frozen=True)
class Share:
    """How many documents of a domain are held out.

    fraction  of them, by their hashes, and never fewer than LEAST nor more than LARGEST
    exact     instead, exactly int(n * fraction) of n, but at least `least`, and at most int(n * most)
    """

    fraction: float
    exact: bool = False
    least: int = LEAST
    most: float = LARGEST

    def documents(self, n: int) -> int:
        """Of n documents, where the number is exact: at least one, and not all."""
        return 0 if n < 2 else max(1, min(max(self.least, int(n * self.fraction)), int(n * self.most), n - 1))


def share_of(spec: dict, fraction: float) -> Share:
    """The share that a dataset's spec asks for; else `fraction`, and none where that is 0."""
    names = {'evaluation_share': 'fraction', 'evaluation_least': 'least', 'evaluation_most': 'most'}
    asked = {names[key]: value for key, value in spec.items() if key in names}
    chosen: dict[str, Any] = {'fraction': fraction} | asked
    return Share(**chosen, exact=bool(asked))


def documents(source: Source) -> Iterator[Row]:
    """The source's documents, those cut in two that have their end held out.

    Raises DataError as Source.rows does.
    """
    rows, asked = iter(source.rows()), source.spec.get('hold_out')
    if asked == 'ends':
        yield from itertools.chain.from_iterable(map(_cut, rows))
        return
    first = list(itertools.islice(rows, FEW))
    if asked is None and len(first) < FEW and not any(row.split for row in first):
        ends = [row for row in first if len(row.text) > SHORTEST]
        if ends:
            log.info(
                "Dataset '%s' has %s: the last %.0f %% of each are held out.",
                source.name,
                'one document' if len(first) == 1 else f'{len(first)} documents',
                100 * END,
            )
            first = itertools.chain.from_iterable(map(_cut, first))
    yield from itertools.chain(first, rows)


def _cut(row: Row) -> Iterator[Row]:
    """A document's head, to train on, and its end, held out; whole if it is short or its side is given."""
    if row.split or len(row.text) <= SHORTEST:
        yield replace(row, split=row.split or 'train')
        return
    at = int(len(row.text) * (1 - END))
    at = row.text.rfind('\n', int(at * 0.9), at) + 1 or at
    yield replace(row, text=row.text[:at], split='train')
    yield replace(row, text=row.text[at:], prompt='', split='validation')


def group_hash(row: Row) -> int:
    """64 bits that decide a document's side of the split: from its group, else from its content."""
    key = row.group or f'{row.prompt}\0{row.text}'
    return int.from_bytes(
        hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'little'
    )


def held_out(
    hashes: np.ndarray, sizes: np.ndarray, domains: np.ndarray, splits: np.ndarray, share: float | Share
) -> np.ndarray:
    """(documents,) bool: which are held out.

    hashes, sizes (bytes), domains, splits: (documents,). By the dataset's own split where it has one. Else,
    of each domain, those whose hashes are below the share's fraction of their range and the next, up to
    LEAST. Never more than LARGEST of the domain's documents or bytes, unless the fraction is larger: of a
    book and a note it is the note. Where the share is exact, those of the lowest hashes. Documents of one
    hash stay together.
    """
    share = share if isinstance(share, Share) else Share(share)
    if (splits == SPLITS['validation']).any():
        return splits == SPLITS['validation']
    free = splits != SPLITS['train']
    if share.fraction <= 0 or not free.any():
        return np.zeros(len(hashes), bool)
    chosen = [_of_domain(hashes[m], sizes[m], share) for d in np.unique(domains) if (m := domains == d).any()]
    found = np.isin(hashes, np.concatenate(chosen)) & free
    if not found.any() or found.all():  # every domain is one document, or a part of the same group
        found = np.isin(hashes, _of_domain(hashes, sizes, share)) & free
    return found


def _of_domain(hashes: np.ndarray, sizes: np.ndarray, share: Share) -> np.ndarray:
    """The hashes of one domain that are held out."""
    groups, index = np.unique(hashes, return_inverse=True)  # in the order of their hashes
    if share.exact:
        return groups[: share.documents(len(groups))]
    fraction = share.fraction
    weight = np.bincount(index, sizes)
    below = int((groups < np.uint64(min(fraction, 1.0) * (2**64 - 1))).sum())
    wanted = max(below, min(LEAST, int(LARGEST * len(groups))), 1)
    budget = max(fraction, LARGEST) * weight.sum()
    if weight[:wanted].sum() <= budget and wanted < len(groups):
        return groups[:wanted]
    taken, size = [], 0.0
    for group, bytes_ in zip(groups, weight):
        if len(taken) < min(wanted, len(groups) - 1) and size + bytes_ <= budget:
            taken.append(group)
            size += bytes_
    if not taken and len(groups) > 1:
        taken = [groups[int(weight.argmin())]]
    return np.array(taken, groups.dtype)


def training_documents(source: Source, fraction: float) -> Iterator[Row]:
    """The documents that training sees, in order: for what is trained on text before it is tokenized."""
    table = [(group_hash(row), _size(row), row.domain, SPLITS[row.split]) for row in documents(source)]
    if not table:
        return
    hashes, sizes, names, splits = zip(*table)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    out = held_out(
        np.array(hashes, np.uint64),
        np.array(sizes),
        np.array([numbers[name] for name in names]),
        np.array(splits),
        share_of(source.spec, fraction),
    )
    yield from itertools.compress(documents(source), ~out)


def _size(row: Row) -> int:
    return len(row.prompt.encode('utf-8', 'replace')) + len(row.text.encode('utf-8', 'replace'))


def require_training_text(texts: Iterable[str]) -> Iterator[str]:
    """Passes texts on. Raises DataError at the end if there was none."""
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        raise DataError('There is no training text to train a tokenizer on: all documents are held out.')
