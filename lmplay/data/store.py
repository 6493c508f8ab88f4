"""Token store: a dataset tokenized once, as memory-mapped arrays on disk.

A store is a folder `<cache>/stores/<key>`; the key is a digest of the data's and the tokenizer's fingerprints. Documents lie
one behind the other, each ending in the end-of-text token. It is written under another name and renamed when whole.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..tokenizers import BPETokenizer, Tokenizer, in_lists

log = logging.getLogger(__name__)
VERSION = 1  # raise when the format changes: old stores are then made anew
CHUNK = 4 << 20  # characters handed to the tokenizer at a time; its threads share them
SPLITS = {'': 0, 'train': 1, 'validation': 2}


def cache_dir() -> Path:
    """$LMP_DATASETS, else lmplay under the user's cache folder."""
    if os.environ.get('LMP_DATASETS'):
        return Path(os.environ['LMP_DATASETS'])
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'lmplay'


def group_hash(row) -> int:
    """64 bits that decide a row's side of the split: of its group where it names one, else of its content."""
    key = row.group or f'{row.prompt}\0{row.text}'
    return int.from_bytes(
        hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'little'
    )


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents the hash puts into validation, as a boolean array. One group at least where there are two."""
    chosen = hashes < np.uint64(min(fraction, 1.0) * (2**64 - 1))
    if fraction > 0 and len(hashes) and not chosen.any():
        chosen = hashes == hashes.min()
    return chosen if not chosen.all() or fraction >= 1 else hashes == hashes.min()


@dataclass
class TokenStore:
    """One tokenized dataset. All arrays but `tokens` have one entry per document."""

    folder: Path
    meta: dict

    def _array(self, name: str, dtype) -> np.ndarray:
        file = self.folder / f'{name}.bin'
        return np.memmap(file, dtype=dtype, mode='r') if file.stat().st_size else np.empty(0, dtype)

    @cached_property
    def tokens(self) -> np.ndarray:
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
        """Indices of the training and of the validation documents: the dataset's own split where it has one."""
        if (self.splits == SPLITS['validation']).any():
            validation = self.splits == SPLITS['validation']
        else:
            validation = held_out(np.asarray(self.hashes), validation_fraction)
        return np.flatnonzero(~validation), np.flatnonzero(validation)


def _with_own_split(rows: Iterator) -> Iterator:
    """Passes rows on; a dataset of a single document is cut in two, for a document can't be on both sides."""
    head = list(itertools.islice(rows, 2))
    if len(head) == 1 and not head[0].split and len(head[0].text) > 200:
        row = head[0]
        cut = row.text.rfind('\n', 0, int(len(row.text) * 0.95)) + 1 or int(len(row.text) * 0.95)
        log.info('The dataset is one document: its last 5 %% is held out for validation.')
        from dataclasses import replace

        return iter(
            (
                replace(row, text=row.text[:cut], split='train'),
                replace(row, text=row.text[cut:], prompt='', split='validation'),
            )
        )
    return itertools.chain(head, rows)


def store_key(source, tokenizer: Tokenizer) -> str:
    text = json.dumps([VERSION, source.fingerprint(), tokenizer.fingerprint])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def open_store(source, tokenizer: Tokenizer, *, progress: Callable[[str], None] = log.info) -> TokenStore:
    """The token store of a source, made first where there is none. `progress` is told how far it is.

    Raises DataError where the text can't be read, the folder can't be written, or nothing is left to train on.
    """
    key = store_key(source, tokenizer)
    folder = cache_dir() / 'stores' / key
    if not (folder / 'meta.json').is_file():
        _write(source, tokenizer, folder, progress)
    meta = json.loads((folder / 'meta.json').read_text())
    return TokenStore(folder, meta)


def _write(source, tokenizer: Tokenizer, folder: Path, progress: Callable[[str], None]) -> None:
    temporary = folder.with_name(f'.{folder.name}.{os.getpid()}')
    try:
        temporary.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"Can't write the token cache '{folder.parent}': {error.strerror}. Set LMP_DATASETS to a folder that "
            f'can be written.'
        ) from error
    try:
        _tokenize(source, tokenizer, temporary, progress)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / 'meta.json').is_file():  # else another process was first
                raise
    except OSError as error:
        raise DataError(
            f"Can't write the token cache '{folder.parent}': {error.strerror or error}."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenize(source, tokenizer: Tokenizer, folder: Path, progress: Callable[[str], None]) -> None:
    dtype = np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32
    lengths, prompt_lengths, text_bytes, domains, hashes, splits = [], [], [], [], [], []
    names: dict[str, int] = {}
    began = told = time.monotonic()
    size = total = 0
    with open(folder / 'tokens.bin', 'wb') as out:
        for chunk in in_lists(
            _with_own_split(iter(source.rows())), lambda row: len(row.prompt) + len(row.text), CHUNK
        ):
            texts = tokenizer.encode_batch([row.text for row in chunk])
            with_prompt = [i for i, row in enumerate(chunk) if row.prompt]
            prompts = dict(zip(with_prompt, tokenizer.encode_batch([chunk[i].prompt for i in with_prompt])))
            for i, row in enumerate(chunk):
                prompt = prompts.get(i, [])
                ids = np.concatenate(
                    [
                        np.asarray(prompt, dtype),
                        np.asarray(texts[i], dtype),
                        np.asarray([tokenizer.eot_token], dtype),
                    ]
                )
                out.write(ids.tobytes())
                sizes = [len(s.encode('utf-8', 'replace')) for s in (row.prompt, row.text)]
                size += sum(sizes)
                total += len(ids)
                lengths.append(len(ids))
                prompt_lengths.append(len(prompt))
                text_bytes.append(sizes)
                domains.append(names.setdefault(row.domain or source.name, len(names)))
                hashes.append(group_hash(row))
                splits.append(SPLITS[row.split])
            if time.monotonic() - told > 2:
                told = time.monotonic()
                progress(
                    f'{source.name}: tokenized {size / 1e6:.0f} MB, {total / 1e6:.1f} M tokens, '
                    f'{size / 1e6 / (told - began):.1f} MB/s'
                )
    if not lengths:
        raise DataError(f"Dataset '{source.name}' is empty: no document with text in it.")
    arrays = {
        'starts': np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        'prompt_lengths': np.asarray(prompt_lengths, np.int32),
        'text_bytes': np.asarray(text_bytes, np.int64),
        'domains': np.asarray(domains, np.uint16),
        'hashes': np.asarray(hashes, np.uint64),
        'splits': np.asarray(splits, np.uint8),
    }
    for name, array in arrays.items():
        array.tofile(folder / f'{name}.bin')
    meta = {
        'version': VERSION,
        'dataset': source.name,
        'source': source.fingerprint(),
        'tokenizer': tokenizer.fingerprint,
        'dtype': np.dtype(dtype).name,
        'documents': len(lengths),
        'tokens': total,
        'bytes': size,
        'domains': list(names),
    }
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1))
    progress(
        f'{source.name}: {len(lengths):,} documents, {size / 1e6:.1f} MB, {total / 1e6:.2f} M tokens '
        f'in {time.monotonic() - began:.1f} s'
    )


def train_bpe(
    sources: list, options: dict, *, validation_fraction: float, progress: Callable[[str], None] = log.info
) -> BPETokenizer:
    """A byte-pair encoding trained on the first `documents` training rows of the sources, an equal share of each; cached."""
    options = {k: v for k, v in options.items() if k != 'type'}
    documents = options.get('documents', 20_000)
    if not isinstance(documents, int) or documents < 1:
        raise DataError(f"A tokenizer's 'documents' must be a positive whole number; given: {documents!r}.")
    key = hashlib.sha256(
        json.dumps(
            [VERSION, [s.fingerprint() for s in sources], options, validation_fraction], sort_keys=True
        ).encode()
    ).hexdigest()[:24]
    file = cache_dir() / 'tokenizers' / key / BPETokenizer.FILE
    if file.is_file():
        return BPETokenizer.load(file)
    threshold = int(validation_fraction * (2**64 - 1))

    def texts():
        for source in sources:
            training = (
                r for r in source.rows() if r.split == 'train' or not r.split and group_hash(r) >= threshold
            )
            for row in itertools.islice(training, -(-documents // len(sources))):
                yield row.prompt + row.text

    began = time.monotonic()
    tokenizer = BPETokenizer.train(texts(), **options)
    progress(f'trained a BPE of {tokenizer.n_vocab:,} entries in {time.monotonic() - began:.1f} s')
    try:
        temporary = file.parent.with_name(f'.{key}.{os.getpid()}')
        temporary.mkdir(parents=True, exist_ok=True)
        tokenizer.save(temporary)
        if not file.parent.exists():
            os.rename(temporary, file.parent)
    except OSError as error:
        raise DataError(f"Can't write the token cache '{cache_dir()}': {error.strerror or error}.") from error
    return tokenizer
