"""Kinds of tokens: of Python against its own tokenizer, of prose character by character."""

import io
import keyword
import token
import tokenize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.routing import token_types as tt
from lmplay.routing.token_types import TYPES, Pieces, character_types, is_code, token_types
from lmplay.tokenizers import BPETokenizer, get_tokenizer

CODE = '''\
import os

class Walker(dict):
    """Walks a tree; returns what it finds."""
    def __call__(self, path: str = '.', *, depth=0x1F) -> list:
        # for each entry, not counting links
        if depth != 3 and path is not None:
            return [p for p in os.listdir(path) if len(p) >= 2.5e1 or p == "None"]
        yield f(self[path] // 7)
'''


def names(text, **options):
    return [TYPES[t] for t in character_types(text, **options)]


def test_code_agrees_with_pythons_own_tokenizer():
    types = names(CODE, code=True)
    starts = np.cumsum([0, *(len(line) for line in CODE.splitlines(keepends=True))])
    seen = set()
    for found in tokenize.generate_tokens(io.StringIO(CODE).readline):
        at = starts[found.start[0] - 1] + found.start[1]
        if found.type == token.NAME:
            expected = 'keyword' if keyword.iskeyword(found.string) else 'identifier'
        elif found.type == token.NUMBER:
            expected = 'number'
        elif found.type == token.OP:
            expected = 'punctuation' if found.string in '()[]{},:.' else 'operator'
        else:
            continue
        seen.add(expected)
        kinds = set(types[at : at + len(found.string)])
        assert kinds == {expected} or (found.string in ('2.5e1',) and 'number' in kinds), found
    assert seen == {'keyword', 'identifier', 'number', 'operator', 'punctuation'}


def test_strings_and_comments_of_code_are_kinds_of_their_own():
    """Character by character, against Python's own tokenizer."""
    code = CODE + "x = rb'raw' + f\"{x}\" + u'y' # the end\nfor_ = 'it\\'s'\n"
    types = names(code, code=True)
    expected = {}
    starts = np.cumsum([0, *(len(line) for line in code.splitlines(keepends=True))])
    for found in tokenize.generate_tokens(io.StringIO(code).readline):
        kind = {token.STRING: 'string', token.COMMENT: 'comment'}.get(found.type)
        if kind:
            first, last = (starts[row - 1] + column for row, column in (found.start, found.end))
            expected |= dict.fromkeys(range(first, last), kind)
    assert set(expected.values()) == {'string', 'comment'}
    for at, kind in enumerate(types):
        assert kind == expected.get(at, kind) and (kind in ('string', 'comment')) == (at in expected), at
    assert not {'string', 'comment'} & set(names('He said "yes" # or so.', code=False))


def test_prose():
    text = "It isn't well-known: 3 - 2 = 1, and 1,234.5 for Zoë (return)."
    types = dict(zip(range(len(text)), names(text, code=False)))
    for part, kind in (
        ("isn't", 'word'),
        ('1,234.5', 'number'),
        ('=', 'operator'),
        ('- 2', 'operator'),
        ('-known', 'punctuation'),
        ('Zoë', 'word'),
        ('return', 'word'),
        (': ', 'punctuation'),
        (' 3', 'whitespace'),
    ):
        assert types[text.index(part)] == kind, part
    assert {types[text.index("isn't") + i] for i in range(5)} == {'word'}


@settings(max_examples=50)
@given(st.text(max_size=80), st.booleans())
def test_any_text_has_a_type_at_every_character(text, code):
    types = character_types(text, code=code)
    assert len(types) == len(text) and ((0 <= types) & (types < len(TYPES))).all()
    if not code:
        assert all((t == tt.WHITESPACE) == c.isspace() for t, c in zip(types, text))


@pytest.mark.parametrize('tokenizer', ['gpt2', 'bytes'])
def test_a_token_is_of_the_type_of_its_first_visible_character(tokenizer):
    pieces = Pieces(get_tokenizer(tokenizer))
    assert pieces.separator == ''
    tokens = pieces.tokenizer.encode(CODE)
    characters, at = names(CODE, code=True), 0
    for one, kind in zip(tokens, token_types(tokens, pieces)):
        text = pieces(one)
        first = at + (len(text) - len(text.lstrip()) if text.strip() else 0)
        assert TYPES[kind] == characters[first]
        at += len(text)
    assert at == len(CODE)


def test_a_tokenizer_that_forgets_spaces():
    tokenizer = BPETokenizer.train(
        ['one two, 34 five'] * 20,
        vocab_size=60,
        pre_tokenizer='whitespace',
        special_tokens=['[EOS]', '[UNK]'],
    )
    pieces = Pieces(tokenizer)
    assert pieces.separator == ' '
    tokens = tokenizer.encode('two 34, five')
    assert [TYPES[t] for t in token_types(tokens, pieces)] == ['word', 'number', 'punctuation', 'word']


def test_letters_of_several_bytes_are_part_of_a_word():
    pieces = Pieces(get_tokenizer('bytes'))
    tokens = pieces.tokenizer.encode('Zoë ate')
    assert [TYPES[t] for t in token_types(tokens, pieces)] == ['word'] * 4 + ['whitespace'] + ['word'] * 3
    assert len(token_types([], pieces)) == 0


def test_code_is_told_from_prose():
    assert is_code(CODE)
    assert is_code('nothing of the kind', 'code') and is_code('', 'my-python-files')
    assert not is_code('The import of coal fell, from 3 tons to 2.\nIf so, why: for the price.\n' * 4)
    assert not is_code('5 * 14 = 70, 169 - 70 = 99.\nx = 14, y = 11.')
