"""Every definition of docs/data.md, read from there and run on such data; and forms that are refused."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmplay.data.sources import Row, open_source
from lmplay.errors import DataError
from lmplay.train.plan import parse_plan

PAGE = Path(__file__).parents[2] / 'docs' / 'data.md'
SPECS = [json.loads(block) for block in re.findall(r'```json\n(.*?)```', PAGE.read_text('utf-8'), re.S)]
COMPRESSED = {
    '.gz': gzip.compress,
    '.bz2': bz2.compress,
    '.xz': lzma.compress,
    '.zst': pyarrow.Codec('zstd').compress,
}
CHAT = [
    {'role': 'system', 'content': 'Be kind.'},
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Hello!'},
    {'role': 'user', 'content': 'Bye'},
    {'role': 'assistant', 'content': 'So long.'},
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compressed(name: str, data: bytes) -> None:
    pack = COMPRESSED.get(Path(name).suffix, bytes)
    Path(name).write_bytes(pack(data, asbytes=True) if name.endswith('.zst') else pack(data))


def jsonl(*records) -> bytes:
    return ''.join(json.dumps(record) + '\n' for record in records).encode()


def pages():
    compressed(
        'pages.jsonl.zst',
        jsonl({'doc': {'body': 'one', 'source': 'web'}}, {'doc': {'body': 'two', 'source': 'book'}}),
    )
    return [Row('one', domain='web'), Row('two', domain='book')]


def saved():
    parts = {
        split: datasets.Dataset.from_dict({'content': [f'{split} {i}' for i in range(2)]})
        for split in ('train', 'test')
    }
    datasets.DatasetDict(parts).save_to_disk('saved')
    return [Row(f'train {i}', split='train') for i in range(2)] + [
        Row(f'test {i}', split='validation') for i in range(2)
    ]


def stories():
    Path('stories/more').mkdir(parents=True)
    for name, text in {'b.txt': 'second', 'a.txt': 'first', 'more/c.txt': 'third'}.items():
        Path('stories', name).write_text(text)
    Path('stories/.hidden.txt').write_text('never')
    return [Row('first'), Row('second'), Row('third')]


def written(name: str, data: bytes, *rows: Row):
    def write():
        Path(name).write_bytes(data)
        return list(rows)

    return write


def parquet():
    for i in range(2):
        pyarrow.parquet.write_table(pyarrow.table({'content': [f'text {i}']}), f'part-{i}.parquet')
    return [Row('text 0'), Row('text 1')]


ASKED = {'context': 'C', 'question': 'Q?', 'answer': 'A', 'chosen': 'good', 'rejected': 'bad'}
DATA = {
    'stories/': stories,
    'lines.txt': written('lines.txt', b'one\ntwo\n', Row('one'), Row('two')),
    'pages.jsonl.zst': pages,
    'reviews.csv': written('reviews.csv', b'id;review\n1;"good; very"\n', Row('good; very')),
    'reviews.tsv': written('reviews.tsv', b'id\treview\n1\tgood, very\n', Row('good, very')),
    'part-*.parquet': parquet,
    'saved': saved,
    'problems.jsonl': written('problems.jsonl', jsonl(ASKED), Row('A', 'C\n\nQ?\n')),
    'chats.jsonl': written(
        'chats.jsonl',
        jsonl({'messages': CHAT}),
        Row('Hello!', '<|system|>Be kind.\n<|user|>Hi\n<|assistant|>'),
        Row('So long.', '<|system|>Be kind.\n<|user|>Hi\n<|assistant|>Hello!\n<|user|>Bye\n<|assistant|>'),
    ),
    'preferences.jsonl': written('preferences.jsonl', jsonl(ASKED), Row('good', 'Q?\n')),
}


def rows(spec: dict) -> list[Row]:
    return list(open_source('mine', spec).rows())


@pytest.mark.parametrize('spec', SPECS, ids=lambda spec: spec['path'])
def test_every_definition_of_the_page(spec):
    wanted, found = DATA[spec['path']](), rows(spec)
    assert [row.text for row in found] == [row.text for row in wanted]
    assert [(r.prompt, r.domain, r.split) for r in found] == [(r.prompt, r.domain, r.split) for r in wanted]
    plan = parse_plan({'stages': {'s': {'dataset': spec, 'epochs': 1}}})
    assert plan.datasets['s'] == spec and plan.stage(0).dataset == 's'


def test_the_page_shows_every_form():
    assert {spec['path'] for spec in SPECS} == DATA.keys()


def test_turns_of_a_conversation_stay_on_one_side_of_the_split():
    Path('c.jsonl').write_bytes(jsonl({'m': CHAT}, {'m': CHAT[1:]}))
    first, second, other, _ = rows({'path': 'c.jsonl', 'messages': 'm', 'turns': 'all'})
    assert (
        first.group == second.group != other.group
        and first.prompt == 'System:\nBe kind.\n\nUser:\nHi\n\nAssistant:\n'
    )
    last, _ = rows({'path': 'c.jsonl', 'messages': 'm'})
    assert (last.text, last.prompt, last.group) == (second.text, second.prompt, '')


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=['Cs', 'Cc', 'Zl', 'Zp']), min_size=1),
        min_size=1,
        max_size=5,
    ),
    suffix=st.sampled_from(['', *COMPRESSED]),
    encoding=st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16']),
)
def test_compression_and_encoding_change_nothing(folder, texts, suffix, encoding):
    texts = [text for text in texts if text.strip()] or ['x']
    lines = ''.join(json.dumps({'text': text}, ensure_ascii=False) + '\n' for text in texts)
    compressed(f'a.jsonl{suffix}', lines.encode(encoding))
    assert [row.text for row in rows({'path': f'a.jsonl{suffix}'})] == texts
    compressed(f'b.txt{suffix}', 'Ä one\n'.encode(encoding))
    assert [row.text for row in rows({'path': f'b.txt{suffix}'})] == ['Ä one\n']


def test_a_folder_and_a_glob_mean_the_same_and_home_is_expanded(folder, monkeypatch):
    stories()
    monkeypatch.setenv('HOME', str(folder))
    both = [open_source(name) for name in ('stories', 'stories/**/*.txt', '~/stories')]
    assert (
        len({tuple(source.rows()) for source in both}) == 1
        and len({source.fingerprint() for source in both}) == 1
    )
    one = datasets.Dataset.from_dict({'text': ['alone']})
    one.save_to_disk('one')
    assert [row.text for row in open_source('~/one').rows()] == ['alone']


@pytest.mark.parametrize(
    'given, words',
    [
        ('mixed', ['several kinds (json and text)', 'give a pattern']),
        ('packed', ['several kinds (json and text)', "'packed/**/*.jsonl.gz'"]),
        ('notes.log', ["'notes.log'", 'does not say what it holds', '"loader": "text"']),
        ('empty', ["'empty'", 'the folder holds nothing']),
        ({'loader': 'csv', 'path': 'mixed'}, ["the folder 'mixed' holds no csv files (.csv, .tsv)"]),
        ({'path': 'a.jsonl', 'text': 'doc.bdy'}, ["no column 'doc.bdy'", "In 'doc' there: body"]),
        ({'path': 'a.jsonl', 'text': 'doc.body.x'}, ["In 'doc.body' there: a string, no object"]),
        ({'path': 'a.jsonl', 'messages': 'm', 'turns': 'first'}, ['"turns" is "last" or "all"']),
        ({'path': 'a.jsonl', 'text': 'm', 'turns': 'all'}, ['"template" and "turns" are of "messages"']),
        (
            {'path': 'a.jsonl', 'messages': 'm', 'template': {'user': '{content}'}},
            ['"template" gives for "assistant"'],
        ),
        (
            {'path': 'a.jsonl', 'messages': 'm', 'template': {'assistant': '{content}', 'usr': '{content}'}},
            ["Unknown role 'user'", "'usr'"],
        ),
        ({'path': 'a.csv', 'delimiter': '::'}, ['"delimiter" of a csv is one character']),
        ({'path': 'bad.txt'}, ["'bad.txt'", 'not valid UTF-16']),
        ({'path': 'bad.txt.xz'}, ["Can't read 'bad.txt.xz'"]),
        ({'path': 'bad.txt.zst'}, ["Can't read 'bad.txt.zst'"]),
        ({'loader': 'saved', 'path': 'mixed'}, ["can't read saved dataset 'mixed'"]),
    ],
)
def test_what_does_not_fit_is_one_sentence(given, words):
    Path('mixed').mkdir()
    Path('empty').mkdir()
    for name in ('mixed/a.txt', 'mixed/b.jsonl', 'notes.log', 'a.csv'):
        Path(name).write_text('text\nx\n')
    Path('packed').mkdir()
    for name in ('a.b.jsonl.gz', 'c.jsonl.gz', 'd.txt.gz'):
        Path('packed', name).touch()
    Path('a.jsonl').write_bytes(jsonl({'doc': {'body': 'one'}, 'm': CHAT[1:3]}))
    Path('bad.txt').write_bytes(b'\xff\xfe\x00')
    Path('bad.txt.xz').write_bytes(b'no xz')
    Path('bad.txt.zst').write_bytes(b'no zst')
    with pytest.raises(DataError) as raised:
        list((open_source(given) if isinstance(given, str) else open_source('mine', given)).rows())
    for word in words:
        assert word in str(raised.value), str(raised.value)
    assert '\n' not in str(raised.value)
