"""What lmplay asks of a tokenizer, and how long texts are cut for it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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


def pieces(text: str) -> Iterator[str]:
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
