"""docs/troubleshooting.md quotes messages of the code: each is found in a string of lmplay/, its fixed parts
in order."""

import ast
import re

import pytest

from tests.helpers import ROOT
from tests.layers import FILES

PAGE = (ROOT / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8')
MESSAGES = [' '.join(block.split()) for block in re.findall(r'```text\n(.*?)```', PAGE, re.S)]


def template(node: ast.AST) -> str:
    """A string of the code, with … for what is filled in; '' for what is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return ''.join(template(part) for part in node.values)
    return '…' if isinstance(node, ast.FormattedValue) else ''


@pytest.fixture(scope='module')
def strings() -> list[str]:
    return [template(node) for file in FILES for node in ast.walk(ast.parse(file.read_text()))]


@pytest.mark.parametrize('message', MESSAGES)
def test_a_message_is_one_of_the_codes(message, strings):
    parts = [part for part in message.split('…') if part]
    assert sum(map(len, parts)) > 10
    wanted = re.compile('.*'.join(map(re.escape, parts)))
    assert any(wanted.search(text) for text in strings), f'no string of lmplay/ reads: {message}'
