"""Every command that a page shows is one: its options exist, its plan ships, its subsets are known.

Most are run, shortened, by tests of their pages (tests/docs/, tests/data/test_forms.py, tests/exp/).
"""

import contextlib
import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import SUBSETS
from benchmarks.__main__ import make_parser as benchmarks_parser
from lmplay.cli import CommandParser
from lmplay.train.__main__ import parse as parse_trainer
from lmplay.train.__main__ import plan_of
from tests.helpers import ROOT

PAGES = [ROOT / 'README.md', ROOT / 'benchmarks' / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PAGES += sorted((ROOT / 'lmplay' / 'exp').glob('*/README.md'))
PAGES = [page for page in PAGES if page.name != 'log.md']  # a log tells what was run, then
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```', re.M | re.S)
COMMAND = re.compile(r'(lmp_\w+|torchrun|python -m benchmarks)( |$)')
# What stands for something of the reader's own, and what a test may read in its place.
OWN = {'EXP': 'gpt2ish', 'my_experiment': 'gpt2ish', 'embed_norm': 'gpt2ish', 'VERSION': 'some', 'N': '2'}
OWN |= {'PLAN': 'quickstart', 'my_plan.json': 'quickstart', 'SEED': '0', 'X': '1', 'T': '1', '...': ''}
COMMANDS = {
    entry.name: entry
    for entry in importlib.metadata.entry_points(group='console_scripts')
    if 'lmp_' in entry.name
}


def shown(page: Path) -> Iterator[str]:
    """The commands of a page: lines of its blocks, and what stands between backticks in its text."""
    text = page.read_text(encoding='utf-8').replace('\\\n', ' ')
    for language, block in BLOCK.findall(text):
        if language in ('', 'bash'):
            yield from (line.strip() for line in block.splitlines())
    yield from (' '.join(code.split()) for code in re.findall(r'`([^`]+)`', BLOCK.sub('', text)))


def words(line: str) -> list[str]:
    """The words of a command as a reader would type them: optional ones too, up to a pipe or a comment."""
    line = re.sub(r'\[[^]|]*\|[^]]*\]', '', line)  # one of several
    line = re.sub(r'[][]', '', line)
    line = re.split(r' \| | && | \+ ', line)[0]
    found = (OWN.get(word, word) for word in shlex.split(line, comments=True))
    return [word.replace('=N', '=2').replace('KEY=VALUE', 'lr=1') for word in found if word]


class Parsed(BaseException):
    """The options were read."""


@pytest.fixture
def only_parse(monkeypatch):
    """Commands end once they have read their options."""
    plain = CommandParser.parse_args

    def parse_args(self, args=None, namespace=None):
        plain(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(CommandParser, 'parse_args', parse_args)


def check(given: list[str], capsys) -> None:
    """Raises where the command, or what it is given, does not exist."""
    name, *options = given
    if name == 'torchrun':
        name, options = 'lmp_trainer', options[options.index('lmplay.train') + 1 :]
    if name == 'python':
        assert set(benchmarks_parser().parse_args(options[2:]).subset) <= {*SUBSETS}
    elif name == 'lmp_trainer' and '--help' not in options:
        plan_of(parse_trainer(options))
    elif options:
        with contextlib.suppress(Parsed, SystemExit):
            COMMANDS[name].load()(options)
            told = capsys.readouterr().err
            assert 'argument. See' in told, told  # an option that the text names, without its value
    else:
        assert name in COMMANDS


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_can_be_given(page, only_parse, capsys):
    for line in shown(page):
        if COMMAND.match(line):
            try:
                check(words(line), capsys)
            except Exception as error:
                raise AssertionError(f'{line}: {error}') from error
