"""What is held out: one rule for tokenizers, training and evaluation."""

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmplay.data.sources import Row, open_source
from lmplay.data.split import FEW, LARGEST, LEAST, documents, held_out, share_of, training_documents
from lmplay.data.store import open_store
from lmplay.data.trained_bpe import train_bpe
from lmplay.errors import DataError
from lmplay.tokenizers import get_tokenizer

BYTES = get_tokenizer('bytes')
TABLE = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 10**7), st.integers(0, 3)), min_size=2, max_size=300
)


def split(table, fraction, splits=None):
    hashes, sizes, domains = zip(*table)
    none = np.zeros(len(table), np.uint8) if splits is None else splits
    return held_out(np.array(hashes, np.uint64), np.array(sizes), np.array(domains), none, fraction)


@given(table=TABLE, fraction=st.floats(0.001, 0.5))
def test_some_is_held_out_some_is_left_and_equal_documents_stay_together(table, fraction):
    out = split(table, fraction)
    sides = {}
    for (digest, _, _), side in zip(table, out):
        assert sides.setdefault(digest, side) == side
    if len(sides) > 1:
        assert out.any() and not out.all()
    assert split(table[::-1], fraction).tolist() == out.tolist()[::-1]  # their order changes nothing


@given(sizes=st.lists(st.integers(1, 10**6), min_size=2, max_size=60), seed=st.integers(0, 9))
def test_of_unequal_documents_the_large_ones_train(sizes, seed):
    hashes = np.random.default_rng(seed).integers(0, 2**64, dtype=np.uint64, size=len(sizes))
    out = split([(h, s, 0) for h, s in zip(hashes, sizes)], 0.02)
    assert out.sum() == 1 or sum(np.array(sizes)[out]) <= LARGEST * sum(sizes)
    assert out.sum() <= max(1, LARGEST * len(sizes))


@pytest.mark.parametrize('documents', [100, 200, 5000])
def test_every_domain_has_documents_enough_to_carry_an_interval(documents):
    hashes = np.random.default_rng(0).integers(0, 2**64, dtype=np.uint64, size=2 * documents)
    table = [(h, 100, i % 2) for i, h in enumerate(hashes)]
    out = split(table, 0.02)
    by_domain = np.bincount([d for _, _, d in table], out)
    assert (by_domain >= LEAST).all() and (by_domain <= max(LEAST, 0.04 * documents)).all()


@given(
    table=TABLE,
    share=st.floats(0.01, 0.5),
    least=st.integers(1, 40),
    most=st.floats(0.01, 0.9),
)
def test_a_share_that_a_dataset_asks_for_is_exact_in_each_domain(table, share, least, most):
    """min(max(least, int(n * share)), int(n * most)) of n documents, as the moe-emergence study has it."""
    table = [(digest, size, digest % 3) for digest, size, _ in table]  # equal documents are of one domain
    asked = {'evaluation_share': share, 'evaluation_least': least, 'evaluation_most': most}
    out = split(table, share_of(asked, 0.02))
    for domain in {d for *_, d in table}:
        hashes = {h for h, _, d in table if d == domain}
        chosen = {h for (h, _, d), held in zip(table, out) if d == domain and held}
        n = len(hashes)
        if n > 1:
            wanted = min(max(least, int(n * share)), int(n * most))
            assert len(chosen) == max(1, min(wanted, n - 1))
            assert chosen == set(sorted(hashes)[: len(chosen)])


def test_a_share_counts_for_tokenizers_and_for_training_alike(tmp_path, cache):
    (tmp_path / 'a.jsonl').write_text(
        ''.join(json.dumps({'text': f'document {i}'}) + '\n' for i in range(300))
    )
    keys = {'evaluation_share': 0.05, 'evaluation_least': 10, 'evaluation_most': 0.1}
    source = open_source('a', {'loader': 'json', 'path': str(tmp_path / 'a.jsonl'), **keys})
    store = open_store(source, BYTES)
    for fraction in (0.02, 0.4):
        training, validation = store.split(fraction)
        assert len(validation) == 15 and len(training) == 285
        seen = {row.text for row in training_documents(source, fraction)}
        assert seen == {
            BYTES.decode(store.tokens[store.starts[d] : store.starts[d + 1] - 1]) for d in training
        }


@pytest.fixture
def files(tmp_path, cache):
    def write(*texts, **spec):
        for i, text in enumerate(texts):
            (tmp_path / f'{i}.txt').write_text(text)
        return open_source('texts', {'loader': 'text', 'path': str(tmp_path / '*.txt')} | spec)

    return write


def test_a_book_and_a_note_train_on_nearly_all_of_the_book(files):
    """Whatever their names and so their order."""
    book, note = 'A line of a long book.\n' * 4000, 'A short note.\n' * 20
    for order in permutations([book, note]):
        for hold_out in ({}, {'hold_out': 'documents'}):
            store = open_store(files(*order, **hold_out), BYTES)
            training, validation = store.split(0.02)
            assert len(validation) and store.lengths[training].sum() > 0.9 * len(book)


def test_the_ends_of_a_few_documents_are_held_out_and_nothing_is_in_both(files):
    texts = [f'{i} ' + ''.join(f'line {j} of {i}\n' for j in range(100)) for i in range(FEW - 1)]
    rows = list(documents(files(*texts)))
    heads, ends = ([r.text for r in rows if r.split == side] for side in ('train', 'validation'))
    assert sorted(a + b for a, b in zip(heads, ends, strict=True)) == sorted(texts)
    assert len(list(documents(files(*texts, hold_out='documents')))) == len(texts)


def test_ends_are_held_out_where_the_dataset_asks_for_it(files):
    texts = [f'{i} ' + 'words of it\n' * 50 for i in range(40)]
    assert sum(r.split == 'validation' for r in documents(files(*texts, hold_out='ends'))) == 40
    with pytest.raises(DataError, match='"documents" or "ends"'):
        files(*texts, hold_out='pages')


@pytest.mark.parametrize('count', [1, 2, FEW, 60])
def test_a_tokenizer_sees_what_training_sees(count, files):
    texts = [f'{"xyzzy"[i % 5]}{i} ' + f'word{i} ' * 80 for i in range(count)]
    source = files(*texts)
    store = open_store(source, BYTES)
    training, validation = store.split(0.02)
    seen = [row.text for row in training_documents(source, 0.02)]
    read = [BYTES.decode(store.tokens[store.starts[d] : store.starts[d + 1]].tolist()) for d in training]
    assert seen == read and len(validation)


def test_a_bpe_of_one_text_is_trained_on_its_head(files):
    """It was trained on nothing once, or on the end that is held out."""
    source = files('the cat sat. ' * 300 + 'zzzz qqqq ' * 10)
    bpe = train_bpe([source], {'vocab_size': 270}, validation_fraction=0.02)
    entries = json.loads(bpe.backend.to_str())['model']['vocab']
    assert bpe.n_vocab > 257 and not [entry for entry in entries if 'zz' in entry or 'qq' in entry]


def test_a_tokenizer_without_training_text_is_refused(cache):
    class Held:
        name, spec = 'held', {}

        def fingerprint(self):
            return 'held'

        def rows(self):
            yield Row(text='a', split='validation')

    with pytest.raises(DataError, match='no training text'):
        train_bpe([Held()], {'vocab_size': 270}, validation_fraction=0.1)
