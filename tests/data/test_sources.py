import csv
import gzip
import itertools
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmplay.data import local
from lmplay.data.named import NAMED
from lmplay.data.sources import Row, open_source
from lmplay.data.specs import FILE_LOADERS
from lmplay.errors import DataError

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(spec: dict | None = None, name: str = 'mine') -> list[Row]:
    return list(open_source(name, spec).rows())


def texts(spec: dict | None = None, name: str = 'mine') -> list[str]:
    return [row.text for row in rows(spec, name)]


def error(spec: dict | None = None, name: str = 'mine') -> str:
    """The one sentence that reading a source ends with."""
    with pytest.raises(DataError) as raised:
        rows(spec, name)
    message = str(raised.value)
    assert '\n' not in message and 'Traceback' not in message
    return message


def write_jsonl(file, records) -> None:
    Path(file).write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')


# -- formats -----------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=['Cs']), min_size=1).filter(lambda t: t.strip())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=8))
def test_every_format_gives_back_what_was_written(folder, pairs):
    records = [{'question': q, 'answer': a, 'n': i} for i, (q, a) in enumerate(pairs)]
    write_jsonl('a.jsonl', records)
    Path('a.json').write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding='utf-8')
    with open('a.csv', 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, ['question', 'answer', 'n'], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), 'a.parquet', row_group_size=3)
    with gzip.open('a.jsonl.gz', 'wt', encoding='utf-8') as file:
        file.write(Path('a.jsonl').read_text(encoding='utf-8'))
    want = [(a, q.removesuffix('\n') + '\n') for q, a in pairs]
    for name in ('a.jsonl', 'a.json', 'a.csv', 'a.parquet', 'a.jsonl.gz'):
        got = rows({'path': name, 'text': 'answer', 'prompt': 'question'})
        assert [(r.text, r.prompt) for r in got] == want, name
        assert {(r.domain, r.group, r.split) for r in got} == {('', '', '')}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        ANY_TEXT.filter(lambda t: '<|endoftext|>' not in t and '\ufeff' not in t), min_size=1, max_size=8
    ),
    st.booleans(),
)
def test_text_file_and_delimiter(folder, documents, compressed):
    name = 'a.txt.gz' if compressed else 'a.txt'
    whole = '<|endoftext|>'.join(documents)
    with (gzip.open if compressed else open)(name, 'wb') as file:
        file.write(whole.encode())
    assert texts({'path': name, 'delimiter': '<|endoftext|>'}) == documents
    assert texts({'path': name}) == texts(name=name) == [whole]


def test_byte_order_mark_and_line_ends(folder):
    Path('a.csv').write_bytes(b'\xef\xbb\xbftext,n\r\n"one\r\nmore",1\r\ntwo,2\r\n')
    Path('a.jsonl').write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
    Path('a.txt').write_bytes(b'\xef\xbb\xbfone')
    assert texts({'path': 'a.csv'}) == ['one\r\nmore', 'two']
    assert texts({'path': 'a.jsonl'}) == ['one', 'two']
    assert texts({'path': 'a.txt'}) == ['one']


def test_globs_and_lists_in_order_each_file_once(folder):
    Path('sub/deep').mkdir(parents=True)
    for name in ('b', 'a', 'sub/deep/c'):
        write_jsonl(f'{name}.jsonl', [{'text': name}])
    assert texts({'path': '*.jsonl'}) == ['a', 'b']
    assert texts({'path': '**/*.jsonl'}) == ['a', 'b', 'sub/deep/c']
    assert texts({'path': ['b.jsonl', '**/*.jsonl']}) == ['b', 'a', 'sub/deep/c']
    assert texts(name='*.jsonl') == ['a', 'b']
    Path('odd[1].jsonl').write_text('{"text": "brackets"}')
    assert texts({'path': 'odd[1].jsonl'}) == ['brackets']


def test_prompt_of_several_columns_and_domains(folder):
    write_jsonl(
        'a.jsonl',
        [
            {'system': 'Be kind.', 'q': 'Why?', 'a': 'Because.', 'lang': 'en'},
            {'system': '', 'q': 'Was?', 'a': 'So.', 'lang': None},
        ],
    )
    spec = {'path': 'a.jsonl', 'text': 'a', 'prompt': ['system', 'q'], 'domain_column': 'lang'}
    assert rows(spec) == [Row('Because.', 'Be kind.\n\nWhy?\n', 'en'), Row('So.', 'Was?\n', '')]
    assert {r.domain for r in rows({'path': 'a.jsonl', 'text': 'a', 'domain': 'chat'})} == {'chat'}


def test_conversations(folder):
    turns = [
        ('system', 'S'),
        ('user', 'U1'),
        ('assistant', 'A1'),
        ('user', 'U2'),
        ('assistant', 'A2'),
        ('user', 'left over'),
    ]
    write_jsonl(
        'a.jsonl',
        [
            {'messages': [{'role': r, 'content': c} for r, c in turns]},
            {'messages': [{'role': 'user', 'content': 'nobody answers'}]},
        ],
    )
    assert rows({'path': 'a.jsonl', 'messages': 'messages'}) == [
        Row('A2', 'System:\nS\n\nUser:\nU1\n\nAssistant:\nA1\n\nUser:\nU2\n\nAssistant:\n')
    ]
    write_jsonl('b.jsonl', [{'messages': 'no list'}])
    assert "line 1: column 'messages' is not a list" in error({'path': 'b.jsonl', 'messages': 'messages'})
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{'m': [{'role': r, 'content': c} for r, c in turns]}]), 'a.parquet'
    )
    assert rows({'path': 'a.parquet', 'messages': 'm'})[0].text == 'A2'


def test_lines_joined_to_documents(folder):
    lines = ['', ' = One = \n', ' text \n', ' = = Part = = \n', ' more \n', ' = Two = \n', ' end \n']
    write_jsonl('a.jsonl', [{'text': t} for t in lines])
    want = [' = One = \n text \n = = Part = = \n more \n', ' = Two = \n end \n']
    assert texts({'path': 'a.jsonl', 'document_start': NAMED['wikitext']['document_start']}) == want


# -- limits and splits -------------------------------------------------------------------------------------


def test_own_validation_and_limits(folder):
    write_jsonl('train.jsonl', [{'text': f't{i}'} for i in range(9)])
    write_jsonl('valid.jsonl', [{'text': f'v{i}'} for i in range(9)])
    spec = {'path': 'train.jsonl', 'validation': 'valid.jsonl', 'limit': 2, 'validation_limit': 3}
    assert [(r.text, r.split) for r in rows(spec)] == [
        ('t0', 'train'),
        ('t1', 'train'),
        ('v0', 'validation'),
        ('v1', 'validation'),
        ('v2', 'validation'),
    ]
    assert len(rows({'path': 'train.jsonl', 'validation': 'valid.jsonl', 'max_bytes': 5})) == 3 + 9
    write_jsonl('valid.jsonl', [{'text': ' '}])
    assert 'has no validation text' in error(spec)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_TEXT, min_size=1, max_size=20), st.integers(1, 60))
def test_max_bytes_stops_at_the_row_that_reaches_it(folder, documents, max_bytes):
    write_jsonl('a.jsonl', [{'text': t} for t in documents])
    got = texts({'path': 'a.jsonl', 'max_bytes': max_bytes})
    sizes = [len(t.encode()) for t in documents]
    want = next((i for i in range(1, len(sizes)) if sum(sizes[:i]) >= max_bytes), len(sizes))
    assert got == documents[:want]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_TEXT, min_size=1, max_size=20), st.integers(1, 60))
def test_total_chars_stops_at_the_row_that_reaches_it(folder, documents, total_chars):
    write_jsonl('a.jsonl', [{'text': t} for t in documents])
    got = texts({'path': 'a.jsonl', 'total_chars': total_chars})
    sizes = [len(t) for t in documents]
    want = next((i for i in range(1, len(sizes)) if sum(sizes[:i]) >= total_chars), len(sizes))
    assert got == documents[:want]


def test_documents_of_another_length_are_left_out_and_counted(folder, caplog):
    write_jsonl('a.jsonl', [{'p': 'é', 'text': 'x' * n} for n in range(1, 9)])
    spec = {'path': 'a.jsonl', 'prompt': 'p', 'separator': '||', 'min_chars': 5, 'max_chars': 8}
    with caplog.at_level(logging.INFO):
        assert [len(r.prompt + r.text) for r in rows(spec)] == [5, 6, 7, 8]
    assert 'fewer than 5 characters or of more than 8 characters were left out' in caplog.text
    assert len(rows(spec | {'limit': 2, 'total_chars': 100})) == 2
    assert len(rows(spec | {'total_chars': 11})) == 2
    assert '8 of its documents are of fewer than 100 characters' in error(
        {'path': 'a.jsonl', 'min_chars': 100}
    )


def test_the_separator_stands_between_all_parts_of_a_row(folder):
    write_jsonl(
        'a.jsonl', [{'a': 'One\n', 'b': 'Two', 'text': 'Three'}, {'a': None, 'b': '', 'text': 'Alone'}]
    )
    spec = {'path': 'a.jsonl', 'prompt': ['a', 'b']}
    assert [r.prompt + r.text for r in rows(spec)] == ['One\n\n\nTwo\nThree', 'Alone']
    spec['separator'] = ' / '
    assert [r.prompt + r.text for r in rows(spec)] == ['One\n / Two / Three', 'Alone']


def test_the_domains_of_the_study_are_chosen_by_its_rules(folder):
    """Its loaders, written down: lengths below and above excluded, a blank line, size in characters."""
    lengths = [5, 99, 100, 101, 200, 201, 5000, 9999, 10000, 20000]
    write_jsonl('a.jsonl', [{'content': 'é' * n, 'text': 'é' * n} for n in lengths])
    for name, least, column in (('code', 100, 'content'), ('prose', 200, 'text')):
        keys = {k: v for k, v in NAMED[name].items() if k not in ('loader', 'hub', 'config', 'description')}
        got = [len(t) for t in texts(keys | {'path': 'a.jsonl', 'text': column})]
        assert got == [n for n in lengths if least < n < 10_000]
        assert keys['total_chars'] == int(10.0 * 1024 * 1024)
    write_jsonl('m.jsonl', [{'Problem': 'q' * n, 'Rationale': 'r' * n} for n in (1, 4998, 4999, 6000)])
    math = {k: v for k, v in NAMED['math'].items() if k not in ('loader', 'hub', 'description')}
    found = [r.prompt + r.text for r in rows(math | {'path': 'm.jsonl'})]
    assert found == ['q' * n + '\n\n' + 'r' * n for n in (1, 4998)]


def test_empty_documents_are_left_out_and_counted(folder, caplog):
    write_jsonl('a.jsonl', [{'text': t} for t in ('', 'one', ' \n\t', None, 'two')])
    with caplog.at_level(logging.WARNING):
        assert texts({'path': 'a.jsonl'}) == ['one', 'two']
    assert caplog.messages == ["Dataset 'mine': 3 empty documents were left out."]
    assert texts({'path': 'a.jsonl', 'limit': 1}) == ['one']


# -- fingerprints ------------------------------------------------------------------------------------------


def test_fingerprint_follows_content_and_spec_not_place(folder):
    write_jsonl('a.jsonl', [{'text': 'one', 'body': 'two'}])

    def mark(name='mine', **spec):
        return open_source(name, {'path': 'a.jsonl', **spec}).fingerprint()

    first = mark()
    assert first == mark() == mark(name='other')
    marks = [
        first,
        mark(text='body'),
        mark(limit=3),
        mark(max_bytes=3),
        mark(total_chars=3),
        mark(min_chars=3),
        mark(max_chars=3),
        mark(prompt='body', separator='-'),
        mark(evaluation_share=0.5),
        mark(domain='d'),
        mark(validation='a.jsonl'),
        mark(prompt='body'),
    ]
    assert len(set(marks)) == len(marks)
    Path('moved').mkdir()
    Path('a.jsonl').rename('moved/b.jsonl')
    assert mark(path='moved/b.jsonl') == first
    before = os.stat('moved/b.jsonl')
    write_jsonl('moved/b.jsonl', [{'text': 'One', 'body': 'two'}])
    os.utime(
        'moved/b.jsonl', ns=(before.st_atime_ns, before.st_mtime_ns)
    )  # same size, same time, other content
    assert mark(path='moved/b.jsonl') != first


def test_fingerprint_knows_where_a_file_ends(folder):
    Path('a.txt').write_text('ab')
    Path('b.txt').write_text('c')
    first = open_source('x', {'path': ['a.txt', 'b.txt']}).fingerprint()
    Path('a.txt').write_text('a')
    Path('b.txt').write_text('bc')
    assert open_source('x', {'path': ['a.txt', 'b.txt']}).fingerprint() != first


def test_fingerprint_of_hub_data_asks_no_network():
    marks = {name: open_source(name).fingerprint() for name in NAMED}
    assert len(set(marks.values())) == len(NAMED)
    other = open_source('w', {'loader': 'wikipedia', 'language': 'es'}).fingerprint()
    assert other != marks['wikipedia'] == open_source('wikipedia', {'language': 'en'}).fingerprint()
    assert (
        open_source('t', {'hub': 'a/b', 'revision': 'x'}).fingerprint()
        != open_source('t', {'hub': 'a/b'}).fingerprint()
    )


# -- bad files ---------------------------------------------------------------------------------------------


def test_missing_files_patterns_and_folders(folder):
    write_jsonl('train.jsonl', [{'text': 'x'}])
    Path('sub').mkdir()
    assert re.search(r"no file 'trian.jsonl'.*Did you mean 'train.jsonl'", error({'path': 'trian.jsonl'}))
    assert re.search(r"no file matches '\*.csv'", error({'path': '*.csv'}))
    assert "folder 'sub' holds no json files" in error({'loader': 'json', 'path': 'sub'})
    assert "dataset 'mine', validation: no file" in error({'path': 'train.jsonl', 'validation': 'gone.jsonl'})
    with pytest.raises(DataError, match="no file 'gone.jsonl'"):
        open_source('mine', {'path': 'gone.jsonl'}).fingerprint()


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root may read everything')
def test_unreadable_file(folder):
    write_jsonl('a.jsonl', [{'text': 'x'}])
    os.chmod('a.jsonl', 0)
    assert "Can't read 'a.jsonl': Permission denied." in error({'path': 'a.jsonl'})


@pytest.mark.parametrize(
    'name, content, words',
    [
        ('a.jsonl', b'{"text": "x"}\n{"text": oops}\n', ["'a.jsonl', line 2: not valid JSON", 'column 10']),
        ('a.json', b'[{"text": "x"},\n {"text": }]', ["'a.json', line 2: not valid JSON"]),
        (
            'a.json',
            b'{\n "text": ["x"]\n}',
            ["'a.json', line 1: not valid JSON", 'one object per line, or one array'],
        ),
        ('a.json', b'{"text": ["x", "y"]}', ["line 1: column 'text' holds", 'not text']),
        (
            'a.jsonl',
            b'{"text": "x"}\n"just a string"\n',
            ["'a.jsonl', line 2: expected an object", 'found a string'],
        ),
        ('a.json', b'[{"text": "x"}, [1]]', ['item 2: expected an object', 'found a list']),
        ('a.jsonl', b'{"text": 5}\n', ["column 'text' holds 5, which is not text"]),
        (
            'a.jsonl',
            b'{"text": "x"}\n{"txt": "x"}\n',
            ["line 2: no column 'text'", "Did you mean 'txt'", 'Columns there: txt'],
        ),
        (
            'a.jsonl',
            b'{"text": "x"}\n{"text": "\xe4"}\n',
            ["'a.jsonl', line 2, byte 24: not valid UTF-8 (0xe4)", 'iconv'],
        ),
        ('a.jsonl', b'{"text": "\\ud83d"}\n', ['half of a surrogate pair (\\ud83d)']),
        ('a.jsonl', b'[' * 100_000, ["'a.jsonl', line 1: not valid JSON"]),
        ('a.jsonl', b'{"text": ' + b'[' * 100_000, ["'a.jsonl', line 1: not valid JSON (nested too deeply)"]),
        (
            'a.jsonl',
            b'{"text": ' + b'1' * 5000 + b'}',
            ["'a.jsonl', line 1: not valid JSON (Exceeds the limit"],
        ),
        ('a.csv', b'text,n\n"a\xff",1\n', ["'a.csv', line 2, byte 9: not valid UTF-8"]),
        ('a.csv', b'body,n\na,1\n', ["line 2: no column 'text'", 'Columns there: body, n']),
        ('a.csv', b'text,n\na,1,2,3\n', ["'a.csv', line 2: 4 fields, where the first line names 2 columns"]),
        ('a.csv', b'text,n\n"a,1\n', ["'a.csv', line", 'not valid CSV']),
        ('a.txt', b'ab\n\nc\xfed', ["'a.txt', byte 5: not valid UTF-8"]),
        ('a.parquet', b'PAR1 but not really', ["'a.parquet' is not a Parquet file"]),
        ('a.jsonl.gz', b'not gzipped', ["Can't read 'a.jsonl.gz'"]),
        ('a.jsonl.gz', gzip.compress(b'{"text": "x"}\n' * 50, mtime=0)[:-12], ["Can't read 'a.jsonl.gz'"]),
        *[
            (f'a.{suffix}', b'', ["Dataset 'mine' has no text: there are no rows."])
            for suffix in ('jsonl', 'json', 'csv')
        ],
        ('a.csv', b'text,n\n', ['there are no rows']),
        ('a.json', b'[]', ['there are no rows']),
        ('a.txt', b'', ['all of its 1 documents are empty']),
        ('a.txt', b' \n \n', ['all of its 1 documents are empty']),
        ('a.jsonl', b'{"text": ""}\n{"text": " "}\n', ['all of its 2 documents are empty']),
    ],
)
def test_bad_content_is_named_with_file_and_line(folder, name, content, words):
    Path(name).write_bytes(content)
    message = error({'path': name})
    for word in words:
        assert word in message, message


def test_utf8_error_inside_a_delimited_text_names_the_byte_of_the_file(folder):
    Path('a.txt').write_bytes(b'one\n\ntwo\n\nthr\xffee')
    assert 'byte 13:' in error({'path': 'a.txt', 'delimiter': '\n\n'})


def test_parquet_columns(folder):
    pyarrow.parquet.write_table(pyarrow.table({'body': ['x'], 'n': [1]}), 'a.parquet')
    assert "no column 'bdy'. Did you mean 'body'? Columns there: body, n." in error(
        {'path': 'a.parquet', 'text': 'bdy'}
    )
    assert "column 'n' holds 1, which is not text" in error({'path': 'a.parquet', 'text': 'n'})
    pyarrow.parquet.write_table(pyarrow.table({'text': pyarrow.array([], pyarrow.string())}), 'b.parquet')
    assert 'there are no rows' in error({'path': 'b.parquet'})


def test_nul_bytes_and_control_characters(folder):
    text = 'a\0b\x01\x1f\x7f c'
    write_jsonl('a.jsonl', [{'text': text}])
    Path('raw.jsonl').write_bytes(
        b'{"text": "a\0b\x01\x1f\x7f c"}\n'
    )  # not escaped, as careless writers leave them
    Path('a.csv').write_bytes(f'text\n"{text}"\n'.encode())
    Path('a.txt').write_bytes(text.encode())
    for name in ('a.jsonl', 'raw.jsonl', 'a.csv', 'a.txt'):
        assert texts({'path': name}) == [text], name


def test_a_very_long_line(folder):
    """5 MB here, so that the test stays quick; nothing in the readers knows a length."""
    text = 'word ' * 1_000_000
    write_jsonl('a.jsonl', [{'text': 'short'}, {'text': text}, {'text': 'after'}])
    Path('a.csv').write_text(f'text\nshort\n"{text}"\nafter\n')
    Path('a.txt').write_text(f'short\n\n{text}\n\nafter')
    start = time.perf_counter()
    for spec in ({'path': 'a.jsonl'}, {'path': 'a.csv'}, {'path': 'a.txt', 'delimiter': '\n\n'}):
        assert texts(spec) == ['short', text, 'after']
    assert time.perf_counter() - start < 5


def test_rows_are_streamed(folder):
    """The first rows come without the rest of the file being read, so an error further on isn't reached."""
    for name, head, tail in (
        ('a.jsonl', b'{"text": "x"}\n', b'oops'),
        ('a.csv', b'text\nx\n', b'"'),
        ('a.txt', b'x\n\n', b'\xff'),
    ):
        Path(name).write_bytes(head + tail)
        spec = {'path': name, **({'delimiter': '\n\n'} if name == 'a.txt' else {})}
        assert next(open_source('mine', spec).rows()).text == 'x'


# -- the hub, offline --------------------------------------------------------------------------------------


@pytest.fixture
def hub_copy(folder):
    """A folder as the hub keeps a dataset, with two splits."""
    data = folder / 'some_text' / 'data'
    data.mkdir(parents=True)
    for split, count in (('train', 700), ('validation', 3)):
        table = pyarrow.table(
            {'body': [f'{split} {i}' for i in range(count)], 'n': list(range(count)), 'q': ['why'] * count}
        )
        pyarrow.parquet.write_table(table, data / f'{split}-00000-of-00001.parquet')
    return folder / 'some_text'


def _python(script: str, **env) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith('HF_')}
    return subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, 'PYTHONPATH': str(REPO), **env},
    )


SHOW = """
import json
from lmplay.errors import DataError
from lmplay.data.sources import open_source
for spec in json.loads({specs!r}):
    try:
        rows = list(open_source('h', spec).rows())
        splits = sorted({{r.split for r in rows}})
        print(json.dumps([len(rows), [r.text for r in rows[:2]], rows[0].prompt, splits]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def test_hub_data_from_a_folder_and_from_the_cache(hub_copy, folder):
    own = {'text': 'body', 'prompt': 'q', 'validation': 'validation', 'hub': str(hub_copy)}
    specs = [
        own,
        {**own, 'limit': 5},
        {**own, 'text': 'bdy'},
        {**own, 'split': 'trian'},
        {**own, 'text': 'n'},
        {'hub': str(hub_copy), 'text': 'body', 'split': 'validation'},
    ]
    run = _python(SHOW.format(specs=json.dumps(specs)), HF_HOME=str(folder / 'home'))
    whole, part, column, split, kind, plain = map(json.loads, run.stdout.splitlines())
    assert whole == [703, ['train 0', 'train 1'], 'why\n', ['train', 'validation']]
    assert part == [8, ['train 0', 'train 1'], 'why\n', ['train', 'validation']]
    assert "no column 'bdy'. Did you mean 'body'? Columns there: body, n, q." in column
    assert 'trian' in split and 'train' in split and 'save-datasets' not in split
    assert "column 'n' holds 0, which is not text" in kind
    assert plain == [3, ['validation 0', 'validation 1'], '', ['']]

    # what was downloaded before is read from the cache when the hub is out of reach
    cache = folder / 'home' / 'datasets'
    (cache / 'some_text').rename(cache / 'someone___some_text')
    cached = {'hub': 'someone/some_text', 'text': 'body', 'limit': 4}
    run = _python(SHOW.format(specs=json.dumps([cached])), HF_HOME=str(folder / 'home'), HF_HUB_OFFLINE='1')
    assert json.loads(run.stdout) == [4, ['train 0', 'train 1'], '', ['']], run.stderr


def test_hub_folder_counts_by_content(hub_copy):
    def mark():
        return open_source('h', {'hub': str(hub_copy), 'text': 'body'}).fingerprint()

    first = mark()
    assert mark() == first
    (hub_copy / 'data' / 'train-00000-of-00001.parquet').write_bytes(b'other')
    assert mark() != first


def test_hub_out_of_reach_is_one_sentence_with_remedies(folder):
    specs = [{'loader': name} for name in ('tinystories', 'code')]
    start = time.perf_counter()
    run = _python(SHOW.format(specs=json.dumps(specs)), HF_HOME=str(folder / 'home'), HF_HUB_OFFLINE='1')
    assert time.perf_counter() - start < 60
    messages = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(messages) == 2
    for message, hub in zip(messages, ('roneneldan/TinyStories', 'codeparrot/codeparrot-clean')):
        assert (
            hub in message
            and '--save-datasets' in message
            and "'embedded'" in message
            and '\n' not in message
        )


def test_importing_the_sources_is_light():
    run = _python(
        'import sys, lmplay.data.sources; '
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    assert run.stdout == '[]\n', run.stderr


# -- real data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'spec, count',
    [
        ({'path': 'sotu/*.jsonl'}, 224),
        ({'path': 'tinystories/train_5428.jsonl'}, 5428),
        ({'path': 'tinyshakespeare/input.txt'}, 1),
        ({'path': 'gsm8k/train.jsonl', 'prompt': 'question', 'text': 'answer'}, 7473),
        ({'path': 'mathqa/dev.json', 'prompt': 'Problem', 'text': 'Rationale'}, 4475),
        ({'path': 'tinyshakespeare/input.txt', 'delimiter': '\n\n'}, 7222),
    ],
)
def test_real_files(spec, count, shared_data, monkeypatch):
    monkeypatch.chdir(shared_data)
    source = open_source('real', spec)
    got = list(source.rows())
    assert len(got) == count and all(r.text.strip() for r in got)
    assert list(itertools.islice(source.rows(), 20)) == got[:20]


def test_suffixes_have_readers():
    assert set(local.SUFFIXES.values()) == set(FILE_LOADERS)


PATHS = [
    'a\0b.txt',
    '\ud800.txt',
    '~nobody_at_all/x.txt',
    'x' * 3000 + '.txt',
    '/dev/null/x.txt',
    '\0*.txt',
    '[.txt',
]


@pytest.mark.parametrize('path', PATHS, ids=ascii)
@pytest.mark.parametrize('how', ['path', 'name'])
def test_what_is_no_path_is_said_in_one_sentence(path, how):
    def read():
        source = open_source('d', {'loader': 'text', 'path': path}) if how == 'path' else open_source(path)
        list(source.rows())

    try:
        read()
    except OSError as error:  # in the system's words
        assert error.strerror
    except DataError as error:
        assert '\n' not in str(error)
    else:
        pytest.fail('it was read')


@pytest.mark.parametrize(
    'key, value', [('limit', 10**400), ('delimiter', '\ud800'), ('text', 'a\udfff'), ('path', ['\ud800'])]
)
def test_values_that_nothing_could_use_are_refused_before_anything_is_read(key, value, tmp_path):
    spec = {'loader': 'text' if key in ('delimiter', 'path') else 'json', 'path': str(tmp_path / 'x.json')}
    with pytest.raises(DataError, match=key):
        open_source('d', spec | {key: value})


def test_a_damaged_parquet_file_is_called_that(tmp_path):
    """Wherever the damage is: pyarrow raises many kinds of errors."""
    file = tmp_path / 'x.parquet'
    rows = [{'text': f'Tom saw {i} trees.', 'n': i} for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    whole = file.read_bytes()
    for seed in range(150):
        changed, rng = bytearray(whole), random.Random(seed)
        for _ in range(3):
            changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed[: len(whole) - seed % 7])
        try:
            list(open_source('d', {'path': str(file)}).rows())
        except DataError as error:
            assert '\n' not in str(error), seed
