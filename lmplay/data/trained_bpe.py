"""Trains a byte-pair tokenizer on a stage's training documents, once."""

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from ..files import (
    CHECKSUMS,
    checksum,
    collect_leftovers,
    damage,
    from_json,
    new_folder,
    seal_is_broken,
    sealed,
    write_json,
)
from ..tokenizers import BPETokenizer
from ..tokenizers.bpe import BPE_OPTIONS
from .cache import cache_dir, digest, writing_cache
from .sources import Source
from .split import require_training_text, training_documents

log = logging.getLogger(__name__)
META = 'meta.json'


def train_bpe(
    sources: list[Source],
    options: dict,
    *,
    validation_fraction: float,
    progress: Callable[[str], None] = log.info,
) -> BPETokenizer:
    """A BPE trained on the first `documents` training documents, an equal share from each source; cached."""
    options = {k: v for k, v in options.items() if k != 'type'}
    documents = options.get('documents', 20_000)
    if not isinstance(documents, int) or documents < 1:
        raise DataError(f"A tokenizer's 'documents' must be a positive whole number; given: {documents!r}.")
    key = digest('held out by domain', [s.fingerprint() for s in sources], options, validation_fraction)
    folder = cache_dir() / 'tokenizers' / key
    if (cached := _read_bpe(folder, progress)) is not None:
        return cached
    began = time.monotonic()
    share = -(-documents // len(sources))
    rows = itertools.chain.from_iterable(
        itertools.islice(training_documents(source, validation_fraction), share) for source in sources
    )
    texts = require_training_text(row.prompt + row.text for row in rows)
    tokenizer = BPETokenizer.train(texts, **options)
    if tokenizer.n_vocab < 0.9 * (asked := (BPE_OPTIONS | options)['vocab_size']):
        log.warning(
            'The training text gave a BPE of %d entries only, of the %d asked for.', tokenizer.n_vocab, asked
        )
    progress(f'trained a BPE of {tokenizer.n_vocab:,} entries in {time.monotonic() - began:.1f} s')
    with writing_cache():
        collect_leftovers(folder.parent)
        with new_folder(folder, replace=True) as temporary:
            tokenizer.save(temporary)
            checksums = {BPETokenizer.FILE: checksum(temporary / BPETokenizer.FILE)}
            write_json(temporary / META, sealed({CHECKSUMS: checksums}))
    return tokenizer


def _read_bpe(folder: Path, progress: Callable[[str], None]) -> BPETokenizer | None:
    """A trained tokenizer that is whole; None where there is none, and where it is damaged, which is said."""
    if not folder.exists():
        return None
    try:
        meta = from_json((folder / META).read_bytes()) if (folder / META).exists() else {}
        found = damage(folder, {}, meta.get(CHECKSUMS, {}))
        if not found and not seal_is_broken(meta):
            return BPETokenizer.load(folder / BPETokenizer.FILE)
    except (OSError, ValueError, AttributeError) as error:
        found = str(error).rstrip('.')
    found = found or f'{META} has changed'
    progress(f"The trained tokenizer '{folder}' is damaged: {found}. It is trained again.")
    return None
