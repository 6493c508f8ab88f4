"""Tasks over documents: a cloze of endings, and bits per byte."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..data.store import TokenStore
from ..errors import DataError
from ..runs.text import Documents
from ..tokenizers import Tokenizer

MAX_BYTES = 131_072  # scored by bits_per_byte, all domains together
HEAD = 4096  # bytes of a document that bits_per_byte scores at least
PASSAGES, PASSAGE = 400, 800  # documents that the cloze is made of, and bytes of each
CHOICES = 4
SHORTEST_CONTEXT, ENDING = 100, (20, 200)  # characters
SENTENCE_END = re.compile(r'[.!?]["\'”’)\]]*\s+|\n+')


@dataclass(frozen=True)
class Head:
    """The beginning of a document; whole: all of it. hash: equal for documents that are held out together."""

    text: str
    domain: str
    hash: str
    whole: bool


def heads(
    documents: Documents, tokenizer: Tokenizer, *, max_bytes: int, least: int, most: int | None = None
) -> list[Head]:
    """The beginnings of documents, in the order of their hashes; every domain has an equal share of
    `max_bytes`, and in it every document, but at least `least` bytes, and at most `most`."""
    members = [
        (store, chosen, domain)
        for store, indices in documents
        for number, domain in enumerate(store.meta['domains'])
        if len(chosen := indices[store.domains[indices] == number])
    ]
    found = []
    for store, chosen, domain in members:
        share = max_bytes // len(members)
        size = most or max(least, share // len(chosen))
        for index in chosen[np.lexsort((chosen, store.hashes[chosen]))]:
            if share <= 0:
                break
            text, whole = _beginning(store, int(index), tokenizer, min(size, max(share, least)))
            share -= len(text.encode('utf-8', 'replace'))
            found.append(Head(text, domain, f'{store.hashes[index]:016x}', whole))
    return found


def _beginning(store: TokenStore, index: int, tokenizer: Tokenizer, size: int) -> tuple[str, bool]:
    """(the first `size` bytes of a document's text, whether that is all of it)."""
    start, end = int(store.starts[index]), int(store.starts[index + 1]) - 1  # without its end of text
    tokens = store.tokens[start : min(end, start + size)]  # a token is a byte at least
    text = tokenizer.decode(tokens.tolist()).encode('utf-8', 'replace')
    whole = end - start <= size and len(text) <= size
    return text[:size].decode('utf-8', 'ignore'), whole


def bits_per_byte_items(found: Sequence[Head]) -> list[dict[str, Any]]:
    """An item for each text. Raises DataError where there is none."""
    items = [{'text': head.text, 'domain': head.domain, 'document': head.hash} for head in found if head.text]
    if not items:
        raise DataError('There is no text for bits_per_byte: name some with --data.')
    return items


def cloze_items(found: Sequence[Head]) -> list[dict[str, Any]]:
    """Which of four endings belongs to a beginning (after Mostafazadeh et al. 2016, "A corpus and cloze
    evaluation").

    Endings of four passages are each other's alternatives, so a model that does not look at the context is
    right in exactly one of four. Those of a group are of one domain and of similar length. Raises DataError
    for fewer than four passages.
    """
    passages = {(p['domain'], p['ending']): p for p in map(_passage, found) if p}.values()  # each ending once
    alike = sorted(passages, key=lambda p: (p['domain'], p['between'], len(p['ending']), p['ending']))
    items = []
    for _, same in groupby(alike, key=lambda p: (p['domain'], p['between'])):
        for group in _fours(list(same)):
            endings = sorted(p['ending'] for p in group)
            choices = [group[0]['between'] + ending for ending in endings]
            for p in group:
                answer = endings.index(p['ending'])
                items.append(
                    {'context': p['context'], 'choices': choices, 'answer': answer, 'domain': p['domain']}
                    | {'group': endings[0]}
                )
    if not items:
        raise DataError(
            f'The cloze needs {CHOICES} documents of a domain with a last sentence of {ENDING[0]} to '
            f'{ENDING[1]} characters in their first {PASSAGE} bytes; there are {len(alike)}. Name other text '
            'with --data.'
        )
    return items


def _fours(passages: list[dict]) -> Iterator[list[dict]]:
    for start in range(0, len(passages) - CHOICES + 1, CHOICES):
        yield passages[start : start + CHOICES]


def _passage(head: Head) -> dict[str, str] | None:
    """A beginning and its last whole sentence; None where that is too short or too long."""
    text = head.text if head.whole else head.text[: _last_end(head.text)]
    text = text.rstrip()
    at = _last_end(text)
    context, ending = text[:at].rstrip(), text[at:]
    between = text[len(context) : at]
    if len(context) < SHORTEST_CONTEXT or not ENDING[0] <= len(ending) <= ENDING[1]:
        return None
    return {'context': context, 'between': between, 'ending': ending, 'domain': head.domain}


def _last_end(text: str) -> int:
    """Where the last sentence begins; 0 where there is one."""
    return max((match.end() for match in SENTENCE_END.finditer(text)), default=0)
