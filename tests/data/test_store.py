import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from lmplay.data import store as stores
from lmplay.data.cache import cache_dir
from lmplay.data.sources import Row
from lmplay.errors import DataError
from lmplay.files import collect_leftovers, new_folder
from lmplay.tokenizers import get_tokenizer
from tests.helpers import DAMAGES, Listed, flip

BYTES = get_tokenizer('bytes')


@pytest.fixture
def rows():
    rng = random.Random(3)
    return [
        Row(
            text=f'text {i} ' * rng.randint(1, 20),
            prompt=f'ask {i}? ' if i % 3 == 0 else '',
            domain='ab'[i % 2],
        )
        for i in range(60)
    ]


def test_a_store_gives_back_what_the_source_held(rows):
    store = stores.open_store(Listed(rows), BYTES)
    assert store.meta['documents'] == 60 and store.meta['bytes'] == sum(
        len(r.text) + len(r.prompt) for r in rows
    )
    for i, row in enumerate(rows):
        ids = store.tokens[store.starts[i] : store.starts[i + 1]]
        assert BYTES.decode(ids[:-1].tolist()) == row.prompt + row.text and ids[-1] == BYTES.eot_token
        assert store.prompt_lengths[i] == len(row.prompt)
        assert store.text_bytes[i].tolist() == [len(row.prompt), len(row.text)]
        assert store.meta['domains'][store.domains[i]] == row.domain


def test_a_store_is_made_once_and_again_for_other_data_or_another_tokenizer(rows):
    first, second = Listed(rows, mark='once'), Listed(rows, mark='once')
    assert stores.open_store(first, BYTES).folder == stores.open_store(second, BYTES).folder
    assert (first.read, second.read) == (1, 0)
    assert (
        stores.store_key(Listed(rows[1:]), BYTES)
        != stores.store_key(Listed(rows), BYTES)
        != stores.store_key(Listed(rows), get_tokenizer('gpt2'))
    )


def test_text_that_another_dataset_has_made_a_store_of_keeps_its_own_name():
    rows = [Row(text='one'), Row(text='two', domain='b')]
    for name in ('first', 'second'):
        store = stores.open_store(Listed(rows, name=name, mark='renamed'), BYTES)
        assert store.meta['domains'] == [name, 'b'] and store.meta['dataset'] == name


def test_a_store_that_was_not_finished_is_not_there(rows):
    class Full(Listed):
        def rows(self):
            yield from rows[:30]
            raise OSError(28, 'No space left on device')

    source = Full(rows, mark='unfinished')
    with pytest.raises(DataError, match='No space left'):
        stores.open_store(source, BYTES)
    assert not list((cache_dir() / 'stores').glob('.*'))
    assert stores.open_store(Listed(rows, mark='unfinished'), BYTES).meta['documents'] == 60


def test_split_is_by_document_stable_and_has_both_sides(rows):
    store = stores.open_store(Listed(rows), BYTES)
    training, validation = store.split(0.2)
    assert sorted([*training, *validation]) == list(range(60)) and 3 < len(validation) < 25
    larger = store.split(0.5)[1]
    assert set(validation) <= set(larger)
    assert set(store.split(1e-9)[1]) <= set(validation) and len(store.split(0.0)[1]) == 0
    again = stores.open_store(Listed(rows[::-1]), BYTES)  # the order of the documents changes nothing
    assert set(59 - again.split(0.2)[1]) == set(validation)


def test_rows_of_a_group_and_equal_rows_stay_on_one_side():
    rows = [Row(text=f't{i}', group=f'g{i % 7}') for i in range(70)] + [Row(text='same')] * 5
    store = stores.open_store(Listed(rows), BYTES)
    validation = set(store.split(0.3)[1].tolist())
    for g in range(7):
        members = {i for i in range(70) if i % 7 == g}
        assert members <= validation or not members & validation
    assert len({i in validation for i in range(70, 75)}) == 1


def test_a_datasets_own_split_wins():
    rows = [Row(text=f't{i}', split='validation' if i < 3 else 'train') for i in range(10)]
    training, validation = stores.open_store(Listed(rows), BYTES).split(0.5)
    assert validation.tolist() == [0, 1, 2] and training.tolist() == list(range(3, 10))


def test_a_single_document_is_cut_in_two():
    text = '\n'.join(f'line {i}' for i in range(500))
    store = stores.open_store(Listed([Row(text=text)]), BYTES)
    training, validation = store.split(0.02)
    assert len(training) == len(validation) == 1
    assert (
        BYTES.decode(
            np.concatenate([store.tokens[: store.starts[1] - 1], store.tokens[store.starts[1] : -1]]).tolist()
        )
        == text
    )


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="'listed' is empty"):
        stores.open_store(Listed([]), BYTES)


def test_a_cache_that_cannot_be_written_is_told(rows, monkeypatch):
    monkeypatch.setenv('LMP_DATASETS', '/proc/nowhere')
    with pytest.raises(DataError, match='Set LMP_DATASETS'):
        stores.open_store(Listed(rows), BYTES)


def test_vocabularies_above_16_bits_take_32():
    class Wide(type(BYTES)):
        n_vocab = 1 << 17
        fingerprint = 'wide'

        def encode_batch(self, texts):
            return [[100_000 + b for b in t.encode()] for t in texts]

    store = stores.open_store(Listed([Row(text='ab'), Row(text='cd')]), Wide())
    assert store.tokens.dtype == np.uint32 and store.tokens[0] == 100_097


FILES = ['tokens', 'starts', 'prompt_lengths', 'text_bytes', 'domains', 'hashes', 'splits']


@pytest.mark.parametrize('name', [*(f'{name}.bin' for name in FILES), 'meta.json'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_store_is_made_again_and_that_is_said(rows, name, damage):
    source = Listed(rows, mark='damaged')
    folder = stores.open_store(source, BYTES).folder
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    DAMAGES[damage](folder / name)
    said = []
    stores.open_store(source, BYTES, progress=said.append)
    assert 'is damaged' in said[0] and name in said[0] and 'made again' in said[0]
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    stores.open_store(source, BYTES, progress=lambda line: pytest.fail(line))
    assert not list(folder.parent.glob('.*'))


@pytest.mark.parametrize(
    'content', ['[]', '{}', '{"documents": "x"}', '[' * 100_000, '1' * 5000, '"\\ud800"']
)
def test_meta_data_of_the_wrong_shape_is_damage_too(rows, content):
    source, said = Listed(rows, mark='shape'), []
    folder = stores.open_store(source, BYTES).folder
    (folder / 'meta.json').write_text(content)
    assert stores.open_store(source, BYTES, progress=said.append).meta['documents'] == 60
    assert 'is damaged: meta.json' in said[0]


def test_a_store_without_checksums_is_used(rows):
    source = Listed(rows, mark='old')
    folder = stores.open_store(source, BYTES).folder
    meta = json.loads((folder / 'meta.json').read_text())
    old = {k: v for k, v in meta.items() if not k.startswith('checksum')}
    (folder / 'meta.json').write_text(json.dumps(old))
    stores.open_store(source, BYTES, progress=lambda line: pytest.fail(line))
    DAMAGES['truncated'](folder / 'tokens.bin')
    assert 'checksums' in stores.open_store(source, BYTES).meta


def test_large_tokens_are_checked_in_the_background(rows, monkeypatch):
    monkeypatch.setattr(stores, 'BACKGROUND_BYTES', 10)
    source = Listed(rows, mark='large')
    folder = stores.open_store(source, BYTES).folder
    flip(folder / 'tokens.bin', 100)
    store = stores.open_store(source, BYTES)
    with pytest.raises(DataError, match='tokens.bin has changed.*tokenized again'):
        for _ in range(1000):
            time.sleep(0.01)
            store.tokens[:3]
    again = stores.open_store(source, BYTES)
    time.sleep(0.2)
    assert BYTES.decode(again.tokens[:6].tolist()) == (rows[0].prompt + rows[0].text)[:6]


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from lmplay.data import store
from lmplay.data.sources import Row
from lmplay.tokenizers import get_tokenizer
from tests.helpers import DAMAGES, Listed, flip
class Slow:
    name, spec = 'slow', {}
    def fingerprint(self): return 'slow'
    def rows(self):
        for i in range(40):
            print('row', flush=True)
            time.sleep(float(sys.argv[2]))
            yield Row(text=f'text {i} ' * 40_000)
print(store.open_store(Slow(), get_tokenizer('bytes'), progress=print).meta['documents'])
"""


def slow(root, seconds):
    return subprocess.Popen(
        [sys.executable, '-c', SLOW, str(root), str(seconds)],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_make_a_store_once_and_a_killed_one_leaves_nothing(tmp_path, monkeypatch, request):
    monkeypatch.setenv('LMP_DATASETS', str(tmp_path))
    dead = slow(request.config.rootpath, 0.05)
    for _ in range(15):
        dead.stdout.readline()
    dead.kill()
    dead.wait()
    assert [f for f in (tmp_path / 'stores').glob('.*') if f.is_dir()]
    both = [slow(request.config.rootpath, 0.01) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0] and [s[-1] for s in said] == ['40', '40']
    assert sum('row' in s for s in said) == 1
    assert len(list((tmp_path / 'stores').iterdir())) == 1


def test_a_temporary_in_use_is_never_collected(tmp_path):
    with new_folder(tmp_path / 'a') as temporary:
        (temporary / 'x').touch()
        collect_leftovers(tmp_path)
    assert (tmp_path / 'a' / 'x').is_file() and [f.name for f in (tmp_path / 'a').iterdir()] == ['x']
    old = tmp_path / '.b.4711'
    for folder in (old, tmp_path / '.c.4711'):  # as earlier versions named them
        folder.mkdir()
    os.utime(old, (0, 0))
    collect_leftovers(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['.c.4711', 'a']


def test_a_domain_column_that_tells_no_domains_is_refused():
    rows = [Row(text=f'{i}', domain=f'd{i}') for i in range(2**16 + 1)]
    with pytest.raises(DataError, match='more than 65,536 domains'):
        stores.open_store(Listed(rows), BYTES)
