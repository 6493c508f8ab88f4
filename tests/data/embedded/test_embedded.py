import ast
import itertools
import math
import re
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from lmplay.data import embedded
from lmplay.data.embedded.math_problems import problems
from lmplay.data.embedded.math_problems.words import (
    FOODS,
    GOODS,
    KINDS,
    NAMES,
    PLACES,
    THINGS,
    VEHICLES,
    Words,
    clock,
    num,
    usd,
)
from lmplay.data.sources import open_source
from lmplay.errors import DataError


@pytest.fixture(scope='module')
def rows():
    return list(open_source('embedded').rows())


@pytest.fixture(scope='module')
def sample():
    return list(itertools.islice(problems(7), 10_000))


def test_the_three_domains_have_substance(rows):
    sizes = Counter()
    for row in rows:
        sizes[row.domain] += len(row.text.encode()) + len(row.prompt.encode())
    assert set(sizes) == set(embedded.DOMAINS)
    assert sizes['code'] > 5_000_000 and sizes['prose'] > 1_000_000 and sizes['math'] > 3_000_000
    assert all(row.text.strip() for row in rows)


def test_every_prefix_holds_every_domain(rows):
    whole, part = Counter(r.domain for r in rows), Counter(r.domain for r in rows[: len(rows) // 10])
    for domain in embedded.DOMAINS:
        assert part[domain] == pytest.approx(whole[domain] / 10, rel=0.2)


def test_code_is_the_library_without_its_tests(rows):
    code = {row.group: row.text for row in rows if row.domain == 'code'}
    root = Path(sysconfig.get_path('stdlib'))
    for module, file in (
        ('argparse', 'argparse.py'),
        ('json', 'json/__init__.py'),
        ('asyncio.events', 'asyncio/events.py'),
    ):
        assert code[module] == (root / file).read_text(encoding='utf-8')
        ast.parse(code[module])
    assert not any(
        part in {'test', 'tests', 'site-packages', 'idle_test'}
        for module in code
        for part in module.split('.')
    )


def test_code_and_prose_of_a_module_share_a_group(rows):
    code = {row.group: row.text for row in rows if row.domain == 'code'}
    prose = [row for row in rows if row.domain == 'prose']
    modules = [row for row in prose if not row.group.startswith('topic ')]
    assert len(modules) > 300 and len({row.group for row in prose}) == len(prose)
    for row in modules:
        assert row.group in code
        first = row.text.split('\n\n')[1].splitlines()[0].strip()
        assert first.split('\\')[0].rstrip() in code[row.group].expandtabs() or '\\' in code[row.group]
    topics = [row for row in prose if row.group.startswith('topic ')]
    assert len(topics) > 50 and any('"lambda"' in row.text or 'lambda' in row.text for row in topics)


def test_same_rows_again_and_in_another_process(rows):
    assert list(open_source('embedded').rows())[::50] == rows[::50]
    script = (
        'import hashlib; from lmplay.data.sources import open_source; s = open_source("embedded", {"limit": 300}); '
        'print(s.fingerprint(), hashlib.sha256("".join(r.text + r.prompt for r in s.rows()).encode()).hexdigest())'
    )
    runs = {
        subprocess.run(
            [sys.executable, '-c', script],
            capture_output=True,
            text=True,
            check=True,
            env={'PYTHONHASHSEED': str(seed), 'PYTHONPATH': str(Path(__file__).parents[2])},
        ).stdout
        for seed in (1, 2)
    }
    assert len(runs) == 1


def test_fingerprint_is_quick_and_follows_the_options():
    embedded.content.cache_clear()
    start = time.perf_counter()
    plain = open_source('embedded').fingerprint()
    assert time.perf_counter() - start < 1
    options = [
        {'seed': 1},
        {'problems': 100},
        {'domains': ['code']},
        {'limit': 5},
        {'max_bytes': 5},
        {'domain': 'all'},
    ]
    prints = [open_source('embedded', {'loader': 'embedded', **o}).fingerprint() for o in options]
    assert len({plain, *prints}) == len(options) + 1
    assert open_source('other name', {'loader': 'embedded'}).fingerprint() == plain


def test_fingerprint_follows_the_content(tmp_path, monkeypatch):
    (tmp_path / 'module.py').write_text('"""A module."""\n' + 'x = 1\n' * 100)
    monkeypatch.setattr(embedded.sysconfig, 'get_path', lambda name: str(tmp_path))
    embedded.content.cache_clear()
    before = open_source('embedded').fingerprint()
    (tmp_path / 'module.py').write_text('"""A module."""\n' + 'x = 2\n' * 100)
    embedded.content.cache_clear()
    assert open_source('embedded').fingerprint() != before
    embedded.content.cache_clear()


def test_a_python_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.sysconfig, 'get_path', lambda name: str(tmp_path))
    with pytest.raises(DataError, match='source files of Python'):
        list(open_source('embedded').rows())


def test_domains_limit_and_seed():
    def first(n, **spec):
        return list(itertools.islice(open_source('e', {'loader': 'embedded', **spec}).rows(), n))

    assert {r.domain for r in first(200, domains=['prose'])} == {'prose'}
    assert len(list(open_source('e', {'loader': 'embedded', 'limit': 7}).rows())) == 7
    assert (
        first(9, domains=['math']) == first(9, domains=['math'], seed=0) != first(9, domains=['math'], seed=1)
    )
    assert len(first(10**6, domains=['math'], problems=50)) == 50
    assert all(r.prompt.endswith('\n') and r.text for r in first(50, domains=['math']))


# -- math ------------------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r'\d+(?:\.\d+)?')
RUN = re.compile(r'[-+*/^().=\d ]*=[-+*/^().=\d ]*')


def statements(text: str):
    """The chains of purely numerical expressions that the text says are equal, each as a list of expressions."""
    for line in re.split(r'\n|(?<=[.:,;])\s|\band\b|\bso\b', text.replace('$', '')):
        for run in RUN.finditer(line):
            # a letter that touches the run is an unknown of an equation, such as 3x + 4 = 10 or y = 5
            before = line[: run.start()].rstrip()
            if (
                re.search(r'(?:^|[\d( ])[xyzntw]$', before)
                or line[run.end() : run.end() + 1].isalpha()
                and not run[0].endswith(' ')
            ):
                continue
            parts = [p.strip().rstrip('.').strip() for p in run[0].split('=')]
            if len(parts) > 1 and all(NUMBER.search(p) for p in parts):
                yield parts


def value(expression: str) -> Fraction:
    """Evaluates with exact fractions, by Python's own grammar."""

    def walk(node):
        if isinstance(node, ast.BinOp):
            left, right = walk(node.left), walk(node.right)
            return {
                ast.Add: lambda: left + right,
                ast.Sub: lambda: left - right,
                ast.Mult: lambda: left * right,
                ast.Div: lambda: left / right,
                ast.Pow: lambda: left**right,
            }[type(node.op)]()
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        return Fraction(str(node.value))

    return walk(ast.parse(expression.replace('^', '**'), mode='eval').body)


def test_the_oracle_sees_a_wrong_statement():
    assert list(statements('There are 3 + 4 = 8 in all.\nSo 2x + 3 = 11, and 8 / 2 = 4.')) == [
        ['3 + 4', '8'],
        ['8 / 2', '4'],
    ]
    assert value('3 + 4') != value('8') and value('(1/2) * 3^2') == Fraction(9, 2)


def test_every_arithmetic_statement_is_true(sample):
    checked = 0
    for problem, solution in sample[:4000]:
        for parts in statements(solution):
            values = [value(p) for p in parts]
            assert len(set(values)) == 1, (parts, problem, solution)
            checked += 1
    assert checked > 7000


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.__name__)
def test_each_kind(kind):
    """Its statements are true, its answer is what its last steps say, and it is not one text with other numbers."""
    r, seen = Words(kind.__name__), set()
    for _ in range(150):
        problem, steps, answer = kind(r)
        seen.add(problem)
        assert problem[-1] in '.?' or problem.endswith('...'), problem
        assert not re.search(r'\{|\}|\bNone\b|Fraction', problem + ' '.join(steps) + str(answer)), problem
        assert not re.search(r'\b1 (hours|days|minutes|weeks|years|tiles)\b', ' '.join(steps)), steps
        for text in steps:
            for parts in statements(text):
                assert len({value(p) for p in parts}) == 1, (text, problem)
        given = NUMBER.findall(problem + ' '.join(steps))
        # the digits of a number in base two stand in no step; they are checked below
        assert kind.__name__ == 'base_two' or all(n in given for n in NUMBER.findall(str(answer))), (
            problem,
            steps,
            answer,
        )
    assert len(seen) > 100


def test_not_learnable_by_rote(sample):
    texts = [problem for problem, _ in sample]
    assert 1 - len(set(texts)) / len(texts) < 0.01
    words = {
        *NAMES,
        *THINGS,
        *GOODS,
        *FOODS,
        *VEHICLES,
        *(w.capitalize() for w in THINGS),
        *(p.split()[-1] for p in PLACES),
    }
    blank = re.compile(r'\d+(?:[.,:/]\d+)*|\b(?:' + '|'.join(sorted(words, key=len, reverse=True)) + r')s?\b')
    assert len({blank.sub('_', text) for text in texts}) >= 300
    assert len(KINDS) >= 60 and len({k.__name__ for k in KINDS}) == len(KINDS)


def _one(name: str, pattern: str, count: int = 200):
    """(numbers in the problem, solution) of those wordings of a kind that match the pattern."""
    kind, r, found = next(k for k in KINDS if k.__name__ == name), Words(3), 0
    for _ in range(count):
        problem, _, answer = kind(r)
        if match := re.search(pattern, problem):
            found += 1
            yield match.groups(), answer
    assert found


def test_answers_against_independent_solvers():
    for (a, b), answer in _one('common_divisor', r'greatest common divisor of (\d+) and (\d+)'):
        assert answer == math.gcd(int(a), int(b))
    for (a, b), answer in _one('common_multiple', r'least common multiple of (\d+) and (\d+)'):
        assert answer == math.lcm(int(a), int(b))
    for (a, v, sign, b, c), answer in _one('linear', r'(\d+)([xynzt]) ([+-]) (\d+) = (-?\d+)'):
        x = int(answer.removeprefix(f'{v} = '))
        assert int(a) * x + (int(b) if sign == '+' else -int(b)) == int(c)
    for (a, b, c, d), answer in _one(
        'linear_both_sides', r'(\d+)[xyw] \+ (\d+) (?:=|and) (\d+)[xyw] \+ (\d+)'
    ):
        x = int(answer.split(' = ')[1])
        assert int(a) * x + int(b) == int(c) * x + int(d)
    for (n,), answer in _one('prime_factors', r'How many divisors does (\d+) have'):
        assert answer == sum(1 for d in range(1, int(n) + 1) if int(n) % d == 0)
    for (bits,), answer in _one('base_two', r'Convert the binary number (\d+)'):
        assert answer == int(bits, 2)
    for (n,), answer in _one('base_two', r'(?:Write|What is) (\d+) in b'):
        assert answer == f'{int(n):b}'
    for (s, o, t), answer in _one('dice', r'die with (\d+) sides and one with (\d+) sides.*sum is (\d+)'):
        s, o, t = int(s), int(o), int(t)
        assert answer == Fraction(sum(i + j == t for i in range(1, s + 1) for j in range(1, o + 1)), s * o)
    for (pages,), answer in _one('digit_pages', r'has (\d+) numbered pages'):
        assert answer == f'{sum(len(str(i)) for i in range(1, int(pages) + 1))} digits'
    for (p, n), answer in _one('at_least_one', r'(\d/\d) each time.* in (\d) tries'):
        assert answer == 1 - (1 - Fraction(p)) ** int(n)


def test_number_formats():
    assert [num(v) for v in (3, Fraction(1, 2), Fraction(-5, 4), Fraction(1, 3), Fraction(6, 2))] == [
        '3',
        '0.5',
        '-1.25',
        '1/3',
        '3',
    ]
    assert [usd(c) for c in (500, 1250, 5)] == ['$5', '$12.50', '$0.05']
    assert [clock(m) for m in (0, 65, 720, 1439, 1440)] == [
        '12:00 am',
        '1:05 am',
        '12:00 pm',
        '11:59 pm',
        '12:00 am',
    ]


def test_problems_follow_the_seed():
    assert (
        list(itertools.islice(problems(1), 20))
        == list(itertools.islice(problems(1), 20))
        != list(itertools.islice(problems(2), 20))
    )
