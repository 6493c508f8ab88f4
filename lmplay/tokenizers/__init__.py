"""Tokenizers: `gpt2` (tiktoken, its vocabulary shipped here), `gpt2_8192` (its first 8,192 entries), `bytes`,
and BPEs trained on a plan's data.

An experiment may bring its own: any object with the members of `Tokenizer`, or a `tiktoken.Encoding`.
"""

import base64
import functools
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..errors import DataError, unknown

# Characters. Longer texts are encoded in pieces, which keeps time linear and threads busy.
PIECE = 1 << 16


@runtime_checkable
class Tokenizer(Protocol):
    """What lmplay asks of a tokenizer. Ids are ints in [0, n_vocab).

    name         its name in plans and checkpoints
    n_vocab      number of ids
    eot_token    id of the end-of-text token, which ends every document
    pad_token    id that pads sequences; eot_token where the vocabulary has none for that
    fingerprint  a string that changes whenever the encoding of any text would
    """

    name: str
    n_vocab: int
    eot_token: int
    pad_token: int

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> Any:
        """Ids (a list or an array) of `text`; special tokens spelled out in it are ordinary text."""
        ...

    def encode_batch(self, texts: list[str]) -> list[Any]:
        """`encode` of each, in parallel where the tokenizer can."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; invalid UTF-8 becomes U+FFFD."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what `load_tokenizer` needs besides the name."""
        ...


MEMBERS = (
    'name',
    'n_vocab',
    'eot_token',
    'pad_token',
    'fingerprint',
    'encode',
    'encode_batch',
    'decode',
    'save',
)


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text where GPT-2's pattern splits anyway, before a space and a word, else after PIECE."""
    start = 0
    while len(text) - start > PIECE:
        cut = text.rfind(' ', start + PIECE // 2, start + PIECE)
        while cut > 0 and not (text[cut + 1].isalpha() and not text[cut - 1].isspace()):
            cut = text.rfind(' ', start + PIECE // 2, cut)
        if cut <= 0:
            cut = start + PIECE
        yield text[start:cut]
        start = cut
    yield text[start:]


def in_lists(items: Iterable, size_of: Callable[[Any], int], least: int) -> Iterator[list]:
    """Items in order, in lists that end with the item that brings their sizes to `least`."""
    some, size = [], 0
    for item in items:
        some.append(item)
        size += size_of(item)
        if size >= least:
            yield some
            some, size = [], 0
    if some:
        yield some


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
        return [i for piece in _pieces(text) for i in self.encoding.encode_ordinary(piece)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # tiktoken's own batch makes a task of each text, which for short ones costs as much as encoding them
        pieces = [list(_pieces(text)) for text in texts]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tasks = in_lists(itertools.chain.from_iterable(pieces), len, PIECE)
            done = pool.map(lambda task: [self.encoding.encode_ordinary(piece) for piece in task], tasks)
            flat = itertools.chain.from_iterable(done)
            return [
                next(flat) if len(text) == 1 else [i for _ in text for i in next(flat)] for text in pieces
            ]

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


BPE_OPTIONS = {
    'vocab_size': 8192,
    'special_tokens': ['<|endoftext|>'],  # END_OF_TEXT and PADDING are recognised
    'pre_tokenizer': 'byte_level',  # or 'whitespace', as in the SoME publication
    'normalizer': None,  # or 'NFC', 'NFKC', 'lowercase'
    'documents': 20_000,  # training documents it is trained on, the first in order
}
END_OF_TEXT = ('<|endoftext|>', '[EOS]', '</s>')
PADDING = ('[PAD]', '<pad>')


class BPETokenizer:
    """A byte-pair encoding of the `tokenizers` library, whose own format tokenizer.json is."""

    FILE = 'tokenizer.json'
    CONFIG = 'tokenizer_config.json'  # names the end of text where that is none of END_OF_TEXT

    def __init__(self, backend, name: str = 'bpe', *, end_of_text: str | None = None):
        self.backend = _as_plain_text(backend)
        self.name = name
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.n_vocab = max(vocabulary.values(), default=-1) + 1  # an imported one may leave ids out
        known = [t for t in END_OF_TEXT if t in vocabulary]
        self._named = None if known else end_of_text
        eot = next((vocabulary[t] for t in [*known, end_of_text] if t in vocabulary), None)
        if eot is None:
            raise DataError(
                "A tokenizer needs an end-of-text token; add '<|endoftext|>' or '[EOS]' to special_tokens."
            )
        self.eot_token: int = eot
        self.pad_token: int = next((vocabulary[t] for t in PADDING if t in vocabulary), eot)
        self._unprinted = {vocabulary[t] for t in ('<|endoftext|>', '[EOS]', *PADDING) if t in vocabulary}
        self._lossless = backend.decoder is not None
        self._byte_level = 'ByteLevel' in json.dumps(_settings(backend).get('pre_tokenizer'))
        _refuse_lost_text(backend, self._byte_level)

    @property
    def fingerprint(self) -> str:
        text = self.backend.to_str() + (self._named or '')
        return f'bpe-plain-{hashlib.sha256(text.encode()).hexdigest()[:16]}'

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        pieces = [list(_pieces(text)) for text in texts]
        flat = iter(
            self.backend.encode_batch_fast([p for text in pieces for p in text], add_special_tokens=False)
        )
        return [[i for _ in text for i in next(flat).ids] for text in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        ids = [i for i in ids if i not in self._unprinted]
        text = self.backend.decode(ids, skip_special_tokens=False)
        if self._lossless:
            return text
        # A whitespace pre-tokenizer forgets where spaces were; reattach punctuation to its word.
        return re.sub(r'\s+([.,!?;:])', r'\1', text)

    def spells_bytes(self, token: int) -> bool:
        """Each character of the token's entry in the vocabulary stands for a byte."""
        return self._byte_level and token not in self.backend.get_added_tokens_decoder()

    def save(self, folder: Path) -> None:
        (Path(folder) / self.FILE).write_text(self.backend.to_str(), encoding='utf-8')
        if self._named is not None:
            text = json.dumps({'eos_token': self._named})
            (Path(folder) / self.CONFIG).write_text(text, encoding='utf-8')

    @classmethod
    def load(cls, file: str | Path) -> 'BPETokenizer':
        """The tokenizer of a tokenizer.json; a tokenizer_config.json beside it may name its end of text.

        Raises DataError.
        """
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
            return cls(backend, end_of_text=_named_end(Path(file).with_name(cls.CONFIG)))
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception for every fault of the file
            raise DataError(
                f"'{file}' is not a tokenizer file of the tokenizers library: {error}."
            ) from error

    @classmethod
    def train(cls, texts: Iterable[str], **options) -> 'BPETokenizer':
        """Trains on `texts` with options of BPE_OPTIONS; equal texts and options give an equal tokenizer.

        Raises DataError for an unknown option and for a value that it can't have.
        """
        import tokenizers as tk

        for key in options:
            if key not in BPE_OPTIONS:
                raise DataError(unknown('tokenizer option', key, BPE_OPTIONS))
        o = BPE_OPTIONS | options
        special = list(o['special_tokens'])
        backend = tk.Tokenizer(tk.models.BPE(unk_token='[UNK]' if '[UNK]' in special else None))
        if o['normalizer']:
            backend.normalizer = _normalizer(o['normalizer'])
        alphabet = _pre_tokenize(backend, o['pre_tokenizer'])
        smallest = len(alphabet) + len(special)
        if not isinstance(o['vocab_size'], int) or o['vocab_size'] <= smallest:
            raise DataError(
                f'vocab_size must be a whole number above {smallest}, the bytes and special tokens alone; '
                f'given: {o["vocab_size"]!r}.'
            )
        trainer = tk.trainers.BpeTrainer(
            vocab_size=o['vocab_size'], special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)


def _settings(backend) -> dict:
    return json.loads(backend.to_str())


def _as_plain_text(backend):
    """The backend, set to encode all of a text and nothing but the text: without the truncation and padding
    that its file may ask for, and special tokens that are spelled out in a text as ordinary text."""
    import tokenizers as tk

    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    ordinary = {token.content for token in backend.get_added_tokens_decoder().values() if not token.special}
    ends = sorted(ordinary & {*END_OF_TEXT, *PADDING})
    backend.add_special_tokens([tk.AddedToken(t, special=True, normalized=False) for t in ends])
    return backend


def _refuse_lost_text(backend, byte_level: bool) -> None:
    """Raises DataError for a model that drops what its vocabulary has no token for."""
    model = _settings(backend)['model']
    unknown_token = model.get('unk_token') if model.get('type') != 'Unigram' else model.get('unk_id')
    if not (byte_level or model.get('byte_fallback')) and unknown_token is None:
        raise DataError(
            'This tokenizer would silently drop characters that it has not seen: it neither works on bytes '
            "nor has a token for the unknown. Add '[UNK]' to special_tokens, or use the pre_tokenizer "
            "'byte_level'."
        )


def _named_end(file: Path) -> str | None:
    """The `eos_token` of a tokenizer_config.json, None where there is none."""
    try:
        token = json.loads(file.read_text(encoding='utf-8')).get('eos_token')
    except (OSError, ValueError, AttributeError):
        return None
    token = token.get('content') if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _normalizer(name: str):
    import tokenizers as tk

    normalizers = {
        'NFC': tk.normalizers.NFC,
        'NFKC': tk.normalizers.NFKC,
        'lowercase': tk.normalizers.Lowercase,
    }
    for known, normalizer in normalizers.items():
        if str(name).lower() == known.lower():
            return normalizer()
    raise DataError(unknown('normalizer', name, normalizers))


def _pre_tokenize(backend, name: str) -> list[str]:
    """Sets how the backend splits text before merging; returns the alphabet its vocabulary begins with."""
    import tokenizers as tk

    if name == 'byte_level':
        backend.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tk.decoders.ByteLevel()
        return sorted(tk.pre_tokenizers.ByteLevel.alphabet())
    if name == 'whitespace':
        backend.pre_tokenizer = tk.pre_tokenizers.Whitespace()
        return []
    raise DataError(unknown('pre_tokenizer', name, ['byte_level', 'whitespace']))


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
    path = Path(name)
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


def load_tokenizer(name: str, folder: Path) -> Tokenizer:
    """The tokenizer that was saved under `name` with a run or checkpoint."""
    return get_tokenizer(folder) if (Path(folder) / BPETokenizer.FILE).is_file() else get_tokenizer(name)
