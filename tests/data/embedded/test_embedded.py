import ast
import itertools
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest

from lmplay.data import embedded
from lmplay.data.embedded import problems
from lmplay.data.sources import open_source
from lmplay.errors import DataError


@pytest.fixture(scope='module')
def rows():
    return list(open_source('embedded').rows())


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
        'import hashlib; from lmplay.data.sources import open_source; '
        's = open_source("embedded", {"loader": "embedded", "limit": 300}); '
        'whole = "".join(r.text + r.prompt for r in s.rows()); '
        'print(s.fingerprint(), hashlib.sha256(whole.encode()).hexdigest())'
    )
    runs = {
        subprocess.run(
            [sys.executable, '-c', script],
            capture_output=True,
            text=True,
            check=True,
            env={'PYTHONHASHSEED': str(seed), 'PYTHONPATH': str(Path(__file__).parents[3])},
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
    after = open_source('embedded').fingerprint()
    assert after != before
    (tmp_path / 'problems.txt').write_bytes(problems.TEMPLATES.read_bytes() + b'# another template\n')
    monkeypatch.setattr(problems, 'TEMPLATES', tmp_path / 'problems.txt')
    embedded.content.cache_clear()
    assert open_source('embedded').fingerprint() not in (before, after)
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
