"""Whether a tokenizer gives back the text that it is given."""

from dataclasses import dataclass

from .protocol import Tokenizer

SAMPLE, SAMPLE_CHARACTERS = 100, 2000  # documents, and of each, that are encoded and decoded to compare


@dataclass
class RoundTrip:
    """Whether a tokenizer gives back the text it is given, on the first SAMPLE documents."""

    tokenizer: Tokenizer
    seen: int = 0
    lost: int = 0
    example: str = ''

    def add(self, text: str) -> None:
        if self.seen >= SAMPLE:
            return
        self.seen += 1
        text = text[:SAMPLE_CHARACTERS]
        back = self.tokenizer.decode(self.tokenizer.encode(text))
        if back == text:
            return
        self.lost += 1
        at = next((i for i, (a, b) in enumerate(zip(text, back)) if a != b), min(len(text), len(back)))
        around = slice(max(0, at - 12), at + 12)
        self.example = self.example or f'{text[around]!r} comes back as {back[around]!r}'

    def found(self) -> str:
        """What is lost, in words; '' where nothing is."""
        if not self.lost:
            return ''
        return (
            f'the tokenizer {self.tokenizer.name} does not give back {self.lost} of {self.seen} documents '
            f'looked at: {self.example}'
        )
