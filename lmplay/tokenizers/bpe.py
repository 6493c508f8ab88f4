"""Byte-pair encodings: trained on a plan's data, and tokenizer.json files of any kind."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError, unknown
from .protocol import pieces

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
        parts = [list(pieces(text)) for text in texts]
        flat = iter(
            self.backend.encode_batch_fast([p for text in parts for p in text], add_special_tokens=False)
        )
        return [[i for _ in text for i in next(flat).ids] for text in parts]

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
        except (DataError, KeyboardInterrupt):
            raise
        except (
            BaseException
        ) as error:  # the library raises bare Exception, and where it panics, more than that
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
