import json
import random
from dataclasses import dataclass

import numpy as np
import pytest

from lmplay.data import store as stores
from lmplay.data.sources import Row
from lmplay.errors import DataError
from lmplay.tokenizers import get_tokenizer

BYTES = get_tokenizer('bytes')


@dataclass
class Listed:
    """A source of rows given by hand."""

    listed: list
    name: str = 'listed'
    mark: str = ''
    read: int = 0  # how often its rows were asked for

    spec = {}

    def fingerprint(self):
        return f'{self.mark}{self.listed}'

    def rows(self):
        self.read += 1
        return iter(self.listed)


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


def test_a_store_that_was_not_finished_is_not_there(rows):
    class Full(Listed):
        def rows(self):
            yield from rows[:30]
            raise OSError(28, 'No space left on device')

    source = Full(rows, mark='unfinished')
    with pytest.raises(DataError, match='No space left'):
        stores.open_store(source, BYTES)
    assert not list((stores.cache_dir() / 'stores').glob('.*'))
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


def test_a_bpe_is_trained_on_training_documents_only_and_cached():
    rows = [Row(text='aaa bbb ' * 3), Row(text='zzzzzz ' * 9, split='validation')] * 5
    made = [
        stores.train_bpe(
            [Listed(rows, mark='bpe')],
            {'type': 'bpe', 'vocab_size': 270, 'documents': 100},
            validation_fraction=0.0,
        )
        for _ in range(2)
    ]
    assert made[0].fingerprint == made[1].fingerprint
    assert not [t for t in json.loads(made[0].backend.to_str())['model']['vocab'] if 'zz' in t]
    with pytest.raises(DataError, match="'documents' must be a positive"):
        stores.train_bpe([Listed(rows)], {'documents': 0}, validation_fraction=0.0)
