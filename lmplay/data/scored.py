"""What of each document is scored, and how many bytes of text that is: the denominator of bits per byte.

V vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from ..tokenizers import BPETokenizer, BytesTokenizer, TiktokenTokenizer, Tokenizer
from .rows import IGNORE, Rows
from .store import TokenStore


@dataclass(frozen=True)
class Scored:
    """documents (of the store), their scored tokens and the bytes of those: arrays of equal length.

    unscored: how many sequences score nothing.
    """

    documents: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    unscored: int


def scored_spans(rows: Rows, count: int) -> Scored:
    """What the first `count` sequences of `rows`, unshuffled, score, read off the sequences themselves.

    Padding does not count. A document that is scored whole has the bytes of its text, one that is scored in
    part those of its scored tokens.
    """
    order, unscored = rows.order(), 0
    targets, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    x, y, which = (np.zeros(rows.length, np.int64) for _ in range(3))
    for i in range(count):
        n = rows.fill(order, i, x, y, which)
        scored = np.flatnonzero(y[:n] != IGNORE)
        targets.append(y[scored])
        owners.append(which[scored])
        unscored += not len(scored)
    target, owner = np.concatenate(targets), np.concatenate(owners)
    documents, index, tokens = np.unique(owner, return_inverse=True, return_counts=True)
    sizes = np.zeros(len(documents), np.int64)
    for i, document in enumerate(documents):
        scored = None if tokens[i] == len(_scorable(rows, document)) else target[index == i]
        sizes[i] = _text_bytes(rows, document, scored)
    return Scored(documents, tokens, sizes, unscored)


def _scorable(rows: Rows, document: int) -> np.ndarray:
    """The tokens of a document that would be scored if nothing of it were cut away."""
    store = rows.store
    first = 0 if rows.include_prompts else int(store.prompt_lengths[document])
    return store.tokens[store.starts[document] + first : store.starts[document + 1]]


def _text_bytes(rows: Rows, document: int, scored: np.ndarray | None) -> int:
    """UTF-8 bytes of the text that the scored tokens of a document stand for; None: all that can be scored.

    Where tokens do not spell the text byte by byte (normalisation, lost spaces), in proportion to what they
    spell.
    """
    whole = int(rows.store.text_bytes[document, 0 if rows.include_prompts else 1 :].sum())
    if scored is None:
        return whole
    spelled = token_bytes(rows.tokenizer, _scorable(rows, document))
    return round(whole * token_bytes(rows.tokenizer, scored) / spelled) if spelled else 0


def heads_of(
    store: TokenStore, documents: np.ndarray, tokenizer: Tokenizer, most: int, *, include_prompts: bool
) -> TokenStore:
    """A store of these documents alone, of longer ones the first `most` bytes to the last whole token.

    A prompt that is not scored comes on top. A head that was cut off does not end in an end-of-text token.
    """
    free = np.zeros(len(documents), np.int64) if include_prompts else store.prompt_lengths[documents]
    parts, text_bytes = [], store.text_bytes[documents].copy()
    for i, (document, first) in enumerate(zip(documents, free)):
        tokens = store.tokens[store.starts[document] : store.starts[document + 1]]
        whole = int(text_bytes[i, 0 if include_prompts else 1 :].sum())
        if whole > most:
            spelled = np.cumsum(token_sizes(tokenizer, tokens[first:]))
            spelled = spelled * (whole / max(1, int(spelled[-1])))
            n = max(1, int(np.searchsorted(spelled, most, side='right')))
            tokens = tokens[: int(first) + n]
            text_bytes[i] = [0 if include_prompts else text_bytes[i, 0], round(float(spelled[n - 1]))]
        parts.append(np.asarray(tokens))
    heads = TokenStore(store.folder, store.meta)
    heads._tokens = np.concatenate(parts)  # in place of the file's
    heads.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    heads.prompt_lengths = np.minimum(store.prompt_lengths[documents], heads.lengths)
    heads.text_bytes = text_bytes
    heads.domains, heads.hashes = store.domains[documents], store.hashes[documents]
    heads.splits = store.splits[documents]
    return heads


def token_bytes(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    """UTF-8 bytes that these tokens spell; the end of text spells none."""
    return int(token_sizes(tokenizer, ids).sum())


def token_sizes(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each of these tokens spells, of the shape of `ids`."""
    unique, index = np.unique(ids, return_inverse=True)
    sizes = [0 if i == tokenizer.eot_token else _size(tokenizer, int(i)) for i in unique]
    return np.array(sizes, np.int64)[index]


def _size(tokenizer: Tokenizer, token: int) -> int:
    """Bytes of one token, which may be a part of a character that cannot be decoded by itself."""
    if isinstance(tokenizer, BytesTokenizer):
        return 1
    if isinstance(tokenizer, TiktokenTokenizer):
        return len(tokenizer.encoding.decode_single_token_bytes(token))
    if isinstance(tokenizer, BPETokenizer) and tokenizer.spells_bytes(token):
        return len(tokenizer.backend.id_to_token(token))  # a character of the byte alphabet for each byte
    return len(tokenizer.decode([token]).encode('utf-8', 'replace'))
