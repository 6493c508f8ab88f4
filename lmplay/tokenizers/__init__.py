"""Tokenizers: `gpt2` (tiktoken, its vocabulary shipped here), `gpt2_8192` (its first 8,192 entries), `bytes`,
and BPEs trained on a plan's data.

An experiment may bring its own: any object with the members of `Tokenizer`, or a `tiktoken.Encoding`.
"""

import base64
import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import DataError, ExperimentError, unknown
from ..files import user_path
from .bpe import BPETokenizer
from .protocol import MEMBERS, PIECE, Tokenizer, in_lists, pieces

__all__ = [
    'BPETokenizer',
    'BytesTokenizer',
    'TiktokenTokenizer',
    'Tokenizer',
    'as_tokenizer',
    'get_tokenizer',
]
__all__ += ['load_tokenizer', 'padded_vocab', 'provide_gpt2']


class TiktokenTokenizer:
    """A `tiktoken.Encoding` behind the `Tokenizer` protocol."""

    def __init__(self, encoding):
        self.encoding = encoding
        self.name = encoding.name
        self.n_vocab = encoding.n_vocab
        self.eot_token = encoding.eot_token
        self.pad_token = encoding.eot_token

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.encoding)

    def encode(self, text: str) -> list[int]:
        return [i for piece in pieces(text) for i in self.encoding.encode_ordinary(piece)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # tiktoken's own batch makes a task of each text, which for short ones costs as much as encoding them
        parts = [list(pieces(text)) for text in texts]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tasks = in_lists(itertools.chain.from_iterable(parts), len, PIECE)
            done = pool.map(lambda task: [self.encoding.encode_ordinary(piece) for piece in task], tasks)
            flat = itertools.chain.from_iterable(done)
            return [next(flat) if len(text) == 1 else [i for _ in text for i in next(flat)] for text in parts]

    def decode(self, ids: Iterable[int]) -> str:
        return self.encoding.decode(list(ids), errors='replace')

    def save(self, folder: Path) -> None:
        pass  # named encodings are rebuilt from their name


@functools.cache
def _fingerprint(encoding) -> str:
    digest = hashlib.sha256(encoding._pat_str.encode())
    for token in encoding.token_byte_values():
        digest.update(token + b'\0')
    digest.update(repr(sorted(encoding._special_tokens.items())).encode())
    return f'{encoding.name}-{digest.hexdigest()[:16]}'


class BytesTokenizer:
    """UTF-8 bytes as ids 0 to 255, and 256 for the end of text."""

    name = 'bytes'
    n_vocab = 257
    eot_token = pad_token = 256
    fingerprint = 'bytes-1'

    def encode(self, text: str) -> list[int]:
        return list(text.encode('utf-8'))

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode('utf-8'), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode('utf-8', errors='replace')

    def save(self, folder: Path) -> None:
        pass


GPT2_FILE = Path(__file__).parent / 'gpt2.tiktoken'
_lock = threading.Lock()


def _gpt2_constructor(name: str = 'gpt2', n_vocab: int = 50_257) -> dict:
    """tiktoken's definition of `gpt2`, its ranks read from the file shipped here instead of downloaded.

    Its first entries are a byte-pair encoding too, as each merge joins earlier ones.
    """
    from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in GPT2_FILE.read_bytes().splitlines() if line)
    }
    return {
        'name': name,
        'explicit_n_vocab': n_vocab,
        'pat_str': r50k_pat_str,
        'mergeable_ranks': {token: rank for token, rank in ranks.items() if rank < n_vocab - 1},
        'special_tokens': {ENDOFTEXT: n_vocab - 1},
    }


def provide_gpt2() -> None:
    """Makes `tiktoken.get_encoding` know 'gpt2' without a network, and 'gpt2_8192', in this process."""
    import tiktoken.registry as registry

    with _lock:
        if registry.ENCODING_CONSTRUCTORS is None:
            registry._find_constructors()
        constructors = registry.ENCODING_CONSTRUCTORS
        assert constructors is not None
        constructors['gpt2'] = _gpt2_constructor
        constructors['gpt2_8192'] = functools.partial(_gpt2_constructor, 'gpt2_8192', 8192)


def as_tokenizer(tokenizer) -> Tokenizer:
    """What a model sets as its tokenizer, a tiktoken.Encoding or a Tokenizer, as a `Tokenizer`.

    Raises DataError that names the members it lacks.
    """
    import tiktoken

    if isinstance(tokenizer, tiktoken.Encoding):
        return _wrap(tokenizer)
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    missing = [member for member in MEMBERS if not hasattr(tokenizer, member)]
    raise DataError(
        f"A model's tokenizer must be a tiktoken.Encoding or have the members of "
        f'lmplay.tokenizers.Tokenizer; {type(tokenizer).__name__} lacks {", ".join(missing)}.'
    )


@functools.cache
def _wrap(encoding) -> TiktokenTokenizer:
    return TiktokenTokenizer(encoding)


def get_tokenizer(name) -> Tokenizer:
    """The tokenizer of a name: 'gpt2', 'bytes', another tiktoken encoding, or the path of a tokenizer.json.

    A tokenizer is returned as it is. Raises DataError for any other name.
    """
    if not isinstance(name, (str, Path)):
        return as_tokenizer(name)
    if name == 'bytes':
        return BytesTokenizer()
    path = user_path(name)
    if path.suffix == '.json' or path.is_dir():
        file = path / BPETokenizer.FILE if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"No tokenizer file at '{file}'.")
        return BPETokenizer.load(file)
    import tiktoken

    provide_gpt2()
    if name not in tiktoken.list_encoding_names():
        known = ['bytes', *tiktoken.list_encoding_names(), 'path/to/tokenizer.json']
        raise DataError(unknown('tokenizer', str(name), known))
    return _wrap(tiktoken.get_encoding(str(name)))


def padded_vocab(tokenizer: Tokenizer, size: int | None) -> int:
    """Rows of an embedding: `size`, or the tokenizer's ids where that is None.

    Raises ExperimentError for fewer than it has ids.
    """
    if size is not None and size < tokenizer.n_vocab:
        raise ExperimentError(
            f"vocab_size must be at least the tokenizer's {tokenizer.n_vocab}; given: {size}."
        )
    return size or tokenizer.n_vocab


def load_tokenizer(name: str, folder: Path) -> Tokenizer:
    """The tokenizer that was saved under `name` with a run or checkpoint."""
    return get_tokenizer(folder) if (Path(folder) / BPETokenizer.FILE).is_file() else get_tokenizer(name)
