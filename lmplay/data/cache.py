"""The cache of tokenized datasets and trained tokenizers."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from ..files import user_path


def cache_dir() -> Path:
    """$LMP_DATASETS, else lmplay under the user's cache folder."""
    if os.environ.get('LMP_DATASETS'):
        return user_path(os.environ['LMP_DATASETS'])
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'lmplay'


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def writing_cache() -> Iterator[None]:
    """Turns the system's errors into one that names the cache."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Can't write the token cache '{cache_dir()}': {error.strerror or error}. "
            f'Set LMP_DATASETS to another folder.'
        ) from error
