"""The kind of a token: that of the keyword, name, number, ... that it is, or is a part of."""

import keyword
import re
from collections.abc import Sequence

import numpy as np

from ..tokenizers import Tokenizer

TYPES = (
    'keyword',
    'identifier',
    'operator',
    'number',
    'punctuation',
    'word',
    'whitespace',
    'string',
    'comment',
)
KEYWORD, IDENTIFIER, OPERATOR, NUMBER, PUNCTUATION, WORD, WHITESPACE, STRING, COMMENT = range(len(TYPES))
CODE_LINES = 0.15  # share of lines that look like Python from which on a document is code

# U+FFFD stands for a part of a character that a token cuts; in text that is mostly a letter.
_NAME = r'(?P<name>(?:[^\W\d]|�)(?:\w|�)*)'
_NUMBER = r'(?P<number>0[xX][\da-fA-F]+|\d+(?:[.,_]\d+)*)'
_PREFIX = r'(?:[rbuf]|br|rb|fr|rf)?'
_SPACE = r'(?P<space>\s+)'
_CODE = re.compile(
    rf'''(?P<comment>\#[^\n]*)|(?P<string>{_PREFIX}(?:"""[\s\S]*?(?:"""|\Z)|\'\'\'[\s\S]*?(?:\'\'\'|\Z)'''
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))"""
    rf'|{_NAME}|{_NUMBER}|{_SPACE}|(?P<operator>[-+*/%=<>&|^~@]|!=)|(?P<other>.)',
    re.DOTALL | re.IGNORECASE,
)
# A hyphen in prose is no operator unless a number follows; an apostrophe joins the parts of a word.
_PROSE = re.compile(
    rf"(?P<name>(?:[^\W\d]|�)(?:\w|�|['’](?=[^\W\d]))*)|{_NUMBER}|{_SPACE}"
    r'|(?P<operator>[+*/%=<>&|^~@]|-(?=\s?[\d$(]))|(?P<other>.)',
    re.DOTALL,
)
_STATEMENT = re.compile(
    r'^\s*(?:@\w|(?:import|from)\s+[\w.]+'
    r'|(?:def|class|if|elif|else|for|while|try|except|finally|with)\b.*:\s*(?:#.*)?$)',
    re.M,
)
_CODE_LINE = re.compile(
    _STATEMENT.pattern + r'|^\s*(?:(?:return|raise|yield|assert|del|pass|break|continue|self\.)\b'
    r'|[\w.\[\]\'", ]+ [-+*/|]?= \S)',
    re.M,
)


def is_code(text: str, domain: str = '') -> bool:
    """Whether a document is source code: by its domain's name, else by Python's keywords in its lines."""
    if re.search(r'code|python|\bpy\b', domain.lower()):
        return True
    lines = sum(not line.isspace() for line in text.splitlines() if line)
    return bool(_STATEMENT.search(text)) and len(_CODE_LINE.findall(text)) >= CODE_LINES * lines


def character_types(text: str, *, code: bool) -> np.ndarray:
    """(characters,) int8 indices into TYPES. Strings and comments are those of code, whole."""
    types = np.empty(len(text), np.int8)
    kinds = {
        'number': NUMBER,
        'space': WHITESPACE,
        'operator': OPERATOR,
        'other': PUNCTUATION,
        'string': STRING,
        'comment': COMMENT,
    }
    for match in (_CODE if code else _PROSE).finditer(text):
        start, end = match.span()
        if match.lastgroup == 'name':
            types[start:end] = WORD if not code else KEYWORD if keyword.iskeyword(match[0]) else IDENTIFIER
        else:
            types[start:end] = kinds[str(match.lastgroup)]
    return types


class Pieces:
    """The text of single tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        # A tokenizer that splits at white space and forgets it: its tokens are things of their own.
        self.separator = '' if ''.join(map(self, tokenizer.encode('one, two'))) == 'one, two' else ' '

    def __call__(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self.tokenizer.decode([token])
        return self._texts[token]

    def join(self, tokens: Sequence[int]) -> str:
        """The text of a part of a document, whole characters where all of their tokens are there."""
        return self.tokenizer.decode(list(tokens))


def token_types(tokens: Sequence[int], pieces: Pieces, *, domain: str = '') -> np.ndarray:
    """(tokens,) int8 indices into TYPES, of the first character of each token that is not white space."""
    texts = [pieces(int(t)) for t in tokens]
    if not texts:
        return np.empty(0, np.int8)
    starts = np.cumsum([0, *(len(t) + len(pieces.separator) for t in texts[:-1])])
    text = pieces.separator.join(texts)
    types = character_types(text, code=is_code(text, domain))
    first = np.array([len(t) - len(t.lstrip()) if t and not t.isspace() else 0 for t in texts], np.int64)
    return np.append(types, np.int8(WHITESPACE))[starts + first]  # a token without text, at the very end
