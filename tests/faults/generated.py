"""(d) Plans, configs, flags and data sets that hypothesis makes up, most of them wrong."""

import csv
import io
import json
import random
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lmplay.cli import run_command
from lmplay.data.sources import open_source
from lmplay.train.__main__ import main as train
from lmplay.train.plan import SETTABLE, STAGE_KEYS, load_plan

from .material import MODEL, Material
from .mutate import BYTES, ODD, TEXTS
from .outcomes import Outcome, call, judge

NUMBERS = st.sampled_from([0, 1, 2, -1, 8, 0.5, 1e-3, 1e11, 10**12, 10**20, 10**400, 1e300, 2**31, 2**63])
WORDS = st.sampled_from(
    [
        'cosine',
        'pack',
        'pad',
        'skip',
        'auto',
        'scratch',
        'previous',
        'stage:s',
        'mine',
        'bytes',
        'gpt2',
        'x' * 300,
    ]
    + [
        '~nobody/x.txt',
        'a\0b.txt',
        '/',
        '.',
        '..',
        '/proc/self/mem',
        '/dev/zero',
        'a/b',
        '*',
        '[',
        '**/*.json',
    ]
    + ['2001-13-45', '1:30', '9' * 5000, '1e5', 'none', 'true', '\ud800', 'ü.txt', '0x10', '-', '--', '']
)
VALUES = st.one_of(NUMBERS, WORDS, st.sampled_from([v for v in ODD if v is not None]), st.text(max_size=20))
TREES = st.recursive(
    st.one_of(VALUES, st.none(), st.booleans()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SPEC_KEYS = st.sampled_from(
    [
        'loader',
        'path',
        'text',
        'prompt',
        'separator',
        'messages',
        'domain_column',
        'document_start',
        'delimiter',
    ]
    + [
        'limit',
        'max_bytes',
        'min_chars',
        'validation',
        'hold_out',
        'evaluation_share',
        'ds_loader',
        'args',
        'hub',
    ]
)


def _some(
    keys: st.SearchStrategy[str], values: st.SearchStrategy = TREES, most: int = 3
) -> st.SearchStrategy:
    return st.dictionaries(keys, values, max_size=most)


@st.composite
def plans(draw, text: str) -> bytes:
    spec = {'loader': 'json', 'path': text} | draw(_some(SPEC_KEYS, most=2))
    stage = {'dataset': 'mine', 'steps': 2, 'batch_size': 2} | draw(_some(st.sampled_from(STAGE_KEYS)))
    model = MODEL | draw(_some(st.sampled_from([*MODEL, 'version', 'ff_dropout', 'x']), VALUES, most=2))
    content: Any = {'datasets': {'mine': spec}, 'tokenizer': 'bytes', 'model': model, 'stages': {'s': stage}}
    top = [
        'seed',
        'tokenizer',
        'datasets',
        'stages',
        'steps',
        'exp',
        'validation_fraction',
        'description',
        'x',
    ]
    content |= draw(_some(st.sampled_from(top), most=1)) if draw(st.integers(0, 3)) == 0 else {}
    if draw(st.integers(0, 9)) == 0:
        content = draw(TREES)
    data = json.dumps(content).encode('utf-8', 'surrogatepass')
    return _damaged(draw, data, TEXTS)


def _damaged(draw, data: bytes, damages) -> bytes:
    """One in five is damaged as bytes."""
    if draw(st.integers(0, 4)):
        return data
    return draw(st.sampled_from(damages))(data, random.Random(draw(st.integers(0, 2**32))))


@st.composite
def configs(draw, text: str) -> bytes:
    keys = st.sampled_from(
        [*SETTABLE, 'exp', 'seed', 'device', 'run-dir', 'keep', 'model', 'report_to', 'quiet']
    )
    content = {'exp': 'test_runner', 'quiet': True} | draw(_some(keys))
    shown = yaml.safe_dump(content, allow_unicode=draw(st.booleans()))
    lines = [
        'a: &a [*a]',
        'lr: !!timestamp 2001-13-45',
        'seed: 1:30',
        'x: ' + '[' * 3000,
        'lr: .nan',
        '? {}\n: 1',
    ]
    more = draw(st.sampled_from(['', '', '', *lines]))
    return _damaged(draw, f'{shown}\n{more}'.encode('utf-8', 'replace'), BYTES)


@st.composite
def flags(draw, text: str) -> list[str]:
    known = [f'--{key.replace("_", "-")}' for key in [*SETTABLE, *MODEL]]
    known += [
        '--seed',
        '--keep',
        '--exp',
        '--training-plan',
        '--dataset',
        '--set',
        '--device',
        '--use-config',
    ]
    known += ['--initial-model', '--report-to', '--run-dir', '--run-dri', '-x']
    given = []
    for flag in draw(st.lists(st.sampled_from(known), max_size=4)):
        given += [flag, *draw(st.lists(VALUES.map(_as_argument), max_size=2))]
    return given


def _as_argument(value: object) -> str:
    """As a shell would pass it: without null characters, of a length that it takes."""
    try:
        return str(value).replace('\0', '')[:100_000]
    except ValueError:  # a number of more digits than Python prints
        return '9' * 5000


@st.composite
def data_sets(draw, text: str) -> tuple[str, bytes, dict]:
    """(suffix, content, spec)"""
    kind = draw(st.sampled_from(['json', 'csv', 'text', 'parquet']))
    cells = st.one_of(st.text(max_size=30), VALUES, st.just('Ada saw a tree.'))
    rows = draw(st.lists(st.fixed_dictionaries({'text': cells, 'kind': cells}), min_size=1, max_size=5))
    spec = {'loader': kind} | draw(_some(SPEC_KEYS, VALUES, most=1))
    return kind, _damaged(draw, _written(kind, rows), BYTES), spec


def _written(kind: str, rows: list[dict]) -> bytes:
    if kind == 'json':
        return '\n'.join(map(json.dumps, rows)).encode('utf-8', 'surrogatepass')
    shown = [{k: _as_argument(v) for k, v in row.items()} for row in rows]
    if kind == 'text':
        return '\n\n'.join(row['text'] for row in shown).encode('utf-8', 'surrogatepass')
    if kind == 'csv':
        out = io.StringIO()
        table = csv.DictWriter(out, ['text', 'kind'])
        table.writeheader()
        table.writerows(shown)
        return out.getvalue().encode('utf-8', 'surrogatepass')
    import pyarrow
    import pyarrow.parquet

    out = pyarrow.BufferOutputStream()
    safe = [{k: v.encode('utf-8', 'replace').decode() for k, v in row.items()} for row in shown]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(safe), out)
    return out.getvalue().to_pybytes()


# ---- what is done with them


def _plan(folder: Path, content: bytes) -> tuple[Callable, list]:
    (folder / 'plan.json').write_bytes(content)
    if zlib.crc32(content) % 10:  # reading it is a hundredth of the work, and refuses most
        return (lambda argv: run_command('lmp_trainer', lambda: load_plan(argv[0]) and 0)), [
            folder / 'plan.json'
        ]
    arguments = ['--training-plan', folder / 'plan.json', '--exp', 'test_runner', '--run-dir', folder / 'run']
    return train, [*arguments, '--device', 'cpu', '--quiet', '--describe']


def _config(folder: Path, content: bytes) -> tuple[Callable, list]:
    (folder / 'config.yaml').write_bytes(content)
    return train, ['--use-config', folder / 'config.yaml', '--dump-config']


def _flags(folder: Path, given: list[str]) -> tuple[Callable, list]:
    return train, [*given, '--dump-config']


def _data(folder: Path, made: tuple[str, bytes, dict]) -> tuple[Callable, list]:
    suffix, content, spec = made
    file = folder / f'data.{suffix}'
    file.write_bytes(content)

    def read() -> int:
        source = open_source('mine', {'path': str(file)} | spec)
        source.fingerprint()
        return 0 * sum(1 for _ in source.rows())

    return (lambda argv: run_command('lmp_trainer', read)), []


KINDS = {
    'plans': (plans, _plan, 2),
    'configs': (configs, _config, 3),
    'flags': (flags, _flags, 3),
    'data sets': (data_sets, _data, 2),
}


def inputs(made: Material, scratch: Path, *, rounds: int, seed: int) -> Iterator[tuple[str, Outcome, str]]:
    """`rounds` tens of inputs."""
    text = str(made.folder / 'text.jsonl')
    for kind, (strategy, prepare, share) in KINDS.items():
        yield from _generate(kind, strategy(text), prepare, count=share * rounds, number=seed)


def _generate(kind: str, strategy, prepare, *, count: int, number: int) -> list[tuple[str, Outcome, str]]:
    found: list[tuple[str, Outcome, str]] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(content):
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            main, arguments = prepare(Path(place), content)
            ended = call(main, arguments, seconds=20)
        outcome = judge(ended)
        shown = repr(content)[:1500]
        found.append((f'seed {number}: {kind} {shown}', outcome, f'{ended.err[-500:]} {ended.error[-2500:]}'))

    each()
    return found
