"""Token store: a dataset tokenized once, as memory-mapped arrays on disk.

A store is a folder `<cache>/stores/<key>`, whose key is a digest of the fingerprints of data and tokenizer.
Documents are concatenated, each ending in the end-of-text token. A store appears whole or not at all.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import DataError
from ..files import (
    CHECKSUMS,
    checksum,
    collect_leftovers,
    damage,
    locked,
    new_folder,
    seal_is_broken,
    sealed,
    write_json,
)
from ..tokenizers import Tokenizer
from ..tokenizers.protocol import in_lists
from ..tokenizers.round_trip import RoundTrip
from .cache import cache_dir, digest, writing_cache
from .sources import Row, Source
from .specs import SHARES
from .split import SPLITS, group_hash, held_out, share_of
from .split import documents as split_documents

log = logging.getLogger(__name__)
VERSION = 1  # of the format; raised when it changes, so that stores are made again
CHUNK = 4 << 20  # characters handed to the tokenizer at a time, which its threads share
REPORT_SECONDS = 2
MOST_DOMAINS = 2**16  # that `domains` can number
META, TOKENS = 'meta.json', 'tokens.bin'
BACKGROUND_BYTES = 64 << 20  # token files above this are checked while training has begun


class StoreMeta(BaseModel):
    """meta.json of a store. Stores of earlier versions have no checksums, and no word of lost text."""

    model_config = ConfigDict(extra='allow', strict=True)

    dataset: str
    source: str
    dtype: Literal['uint16', 'uint32']
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    bytes: int = Field(ge=0)
    domains: list[str]


@dataclass
class TokenStore:
    """One tokenized dataset. All arrays but `tokens` have one entry per document."""

    folder: Path
    meta: dict
    _damage: str | None = field(default=None, repr=False)

    def check_in_background(self) -> None:
        """Compares the tokens with their checksum; damage is raised by `tokens`, and repaired by the next
        start."""
        threading.Thread(target=self._check_tokens, name='check tokens', daemon=True).start()

    def _check_tokens(self) -> None:
        with contextlib.suppress(OSError):
            found = damage(self.folder, {}, {TOKENS: self.meta[CHECKSUMS][TOKENS]})
            if found:
                (self.folder / META).unlink(missing_ok=True)
                self._damage = found

    def _array(self, name: str, dtype) -> np.ndarray:
        file = self.folder / f'{name}.bin'
        return np.memmap(file, dtype=dtype, mode='r') if file.stat().st_size else np.empty(0, dtype)

    @property
    def tokens(self) -> np.ndarray:
        """(tokens,) ids of all documents. Raises DataError where they turn out to be damaged."""
        if self._damage:
            raise DataError(
                f"The tokens of dataset '{self.meta['dataset']}' in '{self.folder}' are damaged: "
                f'{self._damage}. Rerun the command: they are tokenized again.'
            )
        return self._tokens

    @cached_property
    def _tokens(self) -> np.ndarray:
        return self._array('tokens', self.meta['dtype'])

    @cached_property
    def starts(self) -> np.ndarray:
        """(documents + 1,) int64: document i is tokens[starts[i]:starts[i + 1]]."""
        return self._array('starts', np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @cached_property
    def prompt_lengths(self) -> np.ndarray:
        """Tokens of the prompt at the head of each document."""
        return self._array('prompt_lengths', np.int32)

    @cached_property
    def text_bytes(self) -> np.ndarray:
        """(documents, 2) UTF-8 bytes of the prompt and of the text."""
        return self._array('text_bytes', np.int64).reshape(-1, 2)

    @cached_property
    def domains(self) -> np.ndarray:
        """Index into meta['domains']."""
        return self._array('domains', np.uint16)

    @cached_property
    def hashes(self) -> np.ndarray:
        return self._array('hashes', np.uint64)

    @cached_property
    def splits(self) -> np.ndarray:
        return self._array('splits', np.uint8)

    def split(self, validation_fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Indices of training and validation documents, by the dataset's own split where it has one."""
        sizes = self.text_bytes.sum(axis=1)
        share = share_of(self.meta.get('evaluation', {}), validation_fraction)
        out = held_out(self.hashes, sizes, self.domains, self.splits, share)
        return np.flatnonzero(~out), np.flatnonzero(out)


def store_key(source: Source, tokenizer: Tokenizer) -> str:
    return digest(VERSION, source.fingerprint(), tokenizer.fingerprint)


def open_store(
    source: Source, tokenizer: Tokenizer, *, progress: Callable[[str], None] = log.info
) -> TokenStore:
    """The token store of a source, made first where there is none; `progress` gets lines about that.

    Raises DataError where the text can't be read, the cache can't be written, or there is no text.
    """
    folder = cache_dir() / 'stores' / store_key(source, tokenizer)
    store = _read_store(folder, progress)
    while store is None:
        with writing_cache(), _one_at_a_time(folder, progress):
            store = _read_store(folder, lambda line: None)  # made by another process meanwhile?
            if store is None:
                collect_leftovers(folder.parent)
                with new_folder(folder, replace=True) as temporary:
                    _tokenize(source, tokenizer, temporary, progress)
                store = TokenStore(folder, json.loads((folder / META).read_text(encoding='utf-8')))
    if store.meta.get('lost'):
        log.warning("Dataset '%s': %s.", source.name, store.meta['lost'])
    return _named(store, source.name)


def _named(store: TokenStore, name: str) -> TokenStore:
    """The store under the name that its text has now: another dataset of the same text may have made it."""
    made_as = store.meta['dataset']
    domains = [name if domain == made_as else domain for domain in store.meta['domains']]
    store.meta |= {'dataset': name, 'domains': domains}
    return store


@contextlib.contextmanager
def _one_at_a_time(folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Waits for another process that makes the same folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f'.{folder.name}.writing-lock')
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(file))
        except BlockingIOError:
            progress(f"Waiting for another process that makes '{folder}'.")
            stack.enter_context(locked(file, wait=True))
        stack.callback(file.unlink, missing_ok=True)
        yield


def _read_store(folder: Path, progress: Callable[[str], None]) -> TokenStore | None:
    """A store that is whole; None where there is none, and where it is damaged, which is said."""
    if not folder.exists():
        return None
    try:
        meta = StoreMeta.model_validate_json((folder / META).read_text(encoding='utf-8')).model_dump()
        found = 'meta.json has changed since it was written' if seal_is_broken(meta) else None
    except (OSError, ValueError) as error:
        reason = 'is missing' if isinstance(error, FileNotFoundError) else "can't be read"
        meta, found = {}, f'{META} {reason}'
    if not found:
        large = (folder / TOKENS).is_file() and (folder / TOKENS).stat().st_size > BACKGROUND_BYTES
        now = {n: c for n, c in (meta.get(CHECKSUMS) or {}).items() if n != TOKENS or not large}
        with writing_cache():
            found = damage(folder, _expected_sizes(meta), now)
    if found:
        progress(f"The token store '{folder}' is damaged: {found}. It is made again.")
        return None
    store = TokenStore(folder, meta)
    if large and CHECKSUMS in meta:
        store.check_in_background()
    return store


def _expected_sizes(meta: dict) -> dict[str, int]:
    """File -> its bytes."""
    entries = {'starts': 8, 'prompt_lengths': 4, 'text_bytes': 16, 'domains': 2, 'hashes': 8, 'splits': 1}
    sizes = {f'{name}.bin': meta['documents'] * size for name, size in entries.items()}
    sizes['starts.bin'] += 8
    return sizes | {TOKENS: meta['tokens'] * np.dtype(meta['dtype']).itemsize}


@dataclass
class _Documents:
    """What a store holds about its documents besides their tokens, one entry for each."""

    dataset: str
    bytes: int = 0
    tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    text_bytes: list[list[int]] = field(default_factory=list)
    domains: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    domain_names: dict[str, int] = field(default_factory=dict)

    def add(self, row: Row, length: int, prompt_length: int) -> None:
        sizes = [len(text.encode('utf-8', 'replace')) for text in (row.prompt, row.text)]
        self.bytes += sum(sizes)
        self.tokens += length
        self.lengths.append(length)
        self.prompt_lengths.append(prompt_length)
        self.text_bytes.append(sizes)
        self.domains.append(self.domain_names.setdefault(row.domain or self.dataset, len(self.domain_names)))
        if len(self.domain_names) > MOST_DOMAINS:
            raise DataError(
                f"Dataset '{self.dataset}' has more than {MOST_DOMAINS:,} domains: its domain_column holds "
                'something other than the kind of a document.'
            )
        self.hashes.append(group_hash(row))
        self.splits.append(SPLITS[row.split])

    def save(self, folder: Path) -> None:
        """Writes the arrays that TokenStore maps."""
        arrays = {
            'starts': np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64),
            'prompt_lengths': np.asarray(self.prompt_lengths, np.int32),
            'text_bytes': np.asarray(self.text_bytes, np.int64),
            'domains': np.asarray(self.domains, np.uint16),
            'hashes': np.asarray(self.hashes, np.uint64),
            'splits': np.asarray(self.splits, np.uint8),
        }
        for name, array in arrays.items():
            array.tofile(folder / f'{name}.bin')


def _tokenize(source: Source, tokenizer: Tokenizer, folder: Path, progress: Callable[[str], None]) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32)
    documents = _Documents(source.name)
    began = reported = time.monotonic()
    round_trip = RoundTrip(tokenizer)
    with open(folder / TOKENS, 'wb') as out:
        for row, ids, prompt_length in _encoded(split_documents(source), tokenizer, dtype):
            out.write(ids.tobytes())
            documents.add(row, len(ids), prompt_length)
            round_trip.add(row.text)
            if (now := time.monotonic()) - reported > REPORT_SECONDS:
                reported = now
                progress(
                    f'{source.name}: tokenized {documents.bytes / 1e6:.0f} MB, '
                    f'{documents.tokens / 1e6:.1f} M tokens, {documents.bytes / 1e6 / (now - began):.1f} MB/s'
                )
    if not documents.lengths:
        raise DataError(f"Dataset '{source.name}' is empty: no document with text in it.")
    documents.save(folder)
    checksums = {file.name: checksum(file) for file in sorted(folder.glob('*.bin'))}
    meta = {
        'version': VERSION,
        'dataset': source.name,
        'source': source.fingerprint(),
        'tokenizer': tokenizer.fingerprint,
        'dtype': dtype.name,
        'documents': len(documents.lengths),
        'tokens': documents.tokens,
        'bytes': documents.bytes,
        'domains': list(documents.domain_names),
        'lost': round_trip.found(),
        'evaluation': {key: source.spec[key] for key in SHARES if key in source.spec},
        CHECKSUMS: checksums,
    }
    write_json(folder / META, sealed(StoreMeta.model_validate(meta).model_dump()))
    progress(
        f'{source.name}: {meta["documents"]:,} documents, {documents.bytes / 1e6:.1f} MB, '
        f'{documents.tokens / 1e6:.2f} M tokens in {time.monotonic() - began:.1f} s'
    )


def _encoded(
    rows: Iterable[Row], tokenizer: Tokenizer, dtype: np.dtype
) -> Iterator[tuple[Row, np.ndarray, int]]:
    """(document, its tokens with the end of text, number of tokens of its prompt) of each document."""
    for chunk in in_lists(rows, lambda row: len(row.prompt) + len(row.text), CHUNK):
        texts = tokenizer.encode_batch([row.text for row in chunk])
        prompts = iter(tokenizer.encode_batch([row.prompt for row in chunk if row.prompt]))
        for row, text in zip(chunk, texts):
            prompt = next(prompts) if row.prompt else []
            parts = [np.asarray(ids, dtype) for ids in (prompt, text, [tokenizer.eot_token])]
            yield row, np.concatenate(parts), len(prompt)
