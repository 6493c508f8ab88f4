import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.data.held_out import HeldOut
from lmplay.data.mixture import Mixture
from lmplay.data.rows import IGNORE, PackedRows, PaddedRows, make_batch
from lmplay.data.sources import Row
from lmplay.tokenizers import get_tokenizer
from tests.helpers import EOT, Memory

DOCUMENTS = st.lists(st.lists(st.integers(0, 255), max_size=40), min_size=1, max_size=12)
BYTES = get_tokenizer('bytes')


def read(rows, *key):
    order = rows.order(*key)
    x, y, which = (np.zeros((rows.count, rows.length), np.int64) for _ in range(3))
    lengths = [rows.fill(order, i, x[i], y[i], which[i]) for i in range(rows.count)]
    return x, y, lengths, which


@settings(deadline=None)
@given(DOCUMENTS, st.integers(2, 17), st.integers(0, 5))
def test_packed_rows_lose_nothing_and_every_token_is_a_target_once(documents, length, epoch):
    store = Memory(documents)
    rows = PackedRows(store, np.arange(len(documents)), length=length, tokenizer=BYTES)
    x, y, lengths, which = read(rows, 1, 'stage', 0, epoch)
    order, _, shuffled = rows.order(1, 'stage', 0, epoch)
    back = np.argsort(shuffled)  # the rows as they were cut from the stream
    x, y, lengths, which = x[back], y[back], np.array(lengths)[back], which[back]
    stream = [i for d in order for i in store.lists[d]]
    assert y[y != IGNORE].tolist() == stream
    inputs = np.concatenate([row[:n] for row, n in zip(x, lengths)]).tolist()
    assert inputs == [EOT, *stream[:-1]]
    assert which[y != IGNORE].tolist() == [d for d in order for _ in store.lists[d]]


def test_the_rows_of_a_long_document_do_not_fill_a_batch():
    store = Memory([[d] * 4000 for d in range(8)])
    rows = PackedRows(store, np.arange(8), length=16, tokenizer=BYTES)
    first_batch = read(rows, 0, 's', 0, 0)[3][:16, 0]
    assert len(set(first_batch.tolist())) >= 4


@settings(deadline=None)
@given(DOCUMENTS, st.integers(2, 17))
def test_padded_rows_continue_long_documents_and_lose_nothing(documents, length):
    store = Memory(documents)
    rows = PaddedRows(store, np.arange(len(documents)), length=length, tokenizer=BYTES)
    x, y, lengths, which = read(rows)
    for i, tokens in enumerate(store.lists):
        mine = [r for r in range(rows.count) if rows.table[r, 0] == i]
        assert [t for r in mine for t in x[r, : lengths[r]]] == [EOT, *tokens[:-1]]
        assert [t for r in mine for t in y[r][y[r] != IGNORE]] == tokens
    for r in range(rows.count):
        assert (x[r, lengths[r] :] == BYTES.pad_token).all()


def test_long_documents_continue_at_a_sentence_end():
    text = 'One two. Three four five. Six seven eight nine ten eleven. End'
    rows = PaddedRows(Memory([list(text.encode())]), np.arange(1), length=32, tokenizer=BYTES)
    _, y, lengths, _ = read(rows)
    assert [BYTES.decode(r[:n].tolist()) for r, n in zip(y, lengths)] == [
        'One two. Three four five.',
        ' Six seven eight nine ten eleven',
        '. End',
    ]


def test_cut_rows_and_scored_padding():
    store = Memory([[1, 2, 3], list(range(20))])
    rows = PaddedRows(
        store, np.arange(2), length=8, tokenizer=BYTES, long_documents='cut', score_padding=True
    )
    x, y, lengths, _ = read(rows)
    pad = BYTES.pad_token
    assert x.tolist() == [[EOT, 1, 2, 3, pad, pad, pad, pad], [EOT, *range(7)]]
    assert y.tolist() == [[1, 2, 3, EOT, pad, pad, pad, pad], list(range(8))]
    assert lengths == [4, 8]
    batch = make_batch(x, y, np.array(lengths))
    assert (batch.scored, batch.padding) == (16, 4)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=8),
    st.integers(2, 17),
    st.sampled_from(['pack', 'split', 'cut']),
    st.booleans(),
)
def test_sequences_and_documents_that_score_nothing_are_counted(sizes, length, how, include_prompts):
    prompts = [prompt for prompt, _ in sizes]
    store = Memory([[1] * (prompt + text) for prompt, text in sizes], prompts=prompts)
    options = dict(length=length, tokenizer=BYTES, include_prompts=include_prompts)
    if how == 'pack':
        rows = PackedRows(store, np.arange(len(sizes)), **options)
    else:
        rows = PaddedRows(store, np.arange(len(sizes)), long_documents=how, **options)
    _, y, _, which = read(rows, 0, 's', 0, 0)
    scored = y != IGNORE
    documents = len(sizes) - len(set(which[scored].tolist()))
    assert rows.unscored(0, 's', 0, 0) == (int((~scored.any(axis=1)).sum()), documents)


@pytest.mark.parametrize('cls', [PackedRows, PaddedRows])
def test_prompts_are_not_scored_unless_asked_for(cls):
    store = Memory([[1, 2, 3, 4, 5]] * 3, prompts=[2, 2, 2])
    for include, hidden in ((True, set()), (False, {1, 2})):
        _, y, _, _ = read(cls(store, np.arange(3), length=4, tokenizer=BYTES, include_prompts=include))
        seen = set(y[y != IGNORE].tolist())
        assert seen >= {3, 4, 5, EOT} and not seen & hidden
        assert include is False or 2 in seen


def test_columns_that_no_row_needs_are_left_out():
    store = Memory([[1] * 20, [2] * 150])
    m = Mixture([PaddedRows(store, np.arange(1), length=300, tokenizer=BYTES)], [1.0], seed=0, stage='s')
    assert m.batch(0, 1).x.shape == (1, 64)
    m = Mixture([PaddedRows(store, np.arange(2), length=300, tokenizer=BYTES)], [1.0], seed=0, stage='s')
    assert m.batch(0, 2).x.shape == (2, 192) and m.batch(0, 2).lengths.sort().values.tolist() == [21, 151]


@pytest.mark.parametrize('cls', [PackedRows, PaddedRows])
def test_held_out_rows_hold_whole_documents_of_every_domain(cls):
    store = Memory([[i] * (5 + i) for i in range(40)], domains=[int(i > 30) for i in range(40)])
    held = HeldOut(
        [(store, np.arange(20, 40))],
        make_rows=lambda s, d: cls(s, d, length=16, tokenizer=BYTES),
        tokenizer=BYTES,
        length=16,
        max_bytes=400,
        document_bytes=None,
    )
    batches = list(held.batches(3))
    per_document = torch.zeros(len(held.documents), dtype=torch.int64)
    for b in batches:
        scored = b.y != IGNORE
        per_document.index_add_(0, b.documents[scored], torch.ones(int(scored.sum()), dtype=torch.int64))
    assert per_document.tolist() == [d['tokens'] for d in held.documents]
    assert {d['domain'] for d in held.documents} == {'d0', 'd1'}
    sizes = [sum(d['bytes'] for d in held.documents if d['domain'] == name) for name in ('d0', 'd1')]
    assert all(100 < s <= 200 for s in sizes)


@pytest.mark.parametrize('long_documents, share', [('cut', 8 / 20), ('split', 1)])
def test_the_bytes_of_a_cut_document_are_those_that_are_scored(long_documents, share):
    store = Memory([list(range(20)), [1, 2, 3]])

    def rows(s, d):
        return PaddedRows(s, d, length=8, tokenizer=BYTES, long_documents=long_documents)

    held = HeldOut(
        [(store, np.arange(2))],
        make_rows=rows,
        tokenizer=BYTES,
        length=8,
        max_bytes=10**6,
        document_bytes=None,
    )
    assert sorted(d['bytes'] for d in held.documents) == [3, round(20 * share)]


def test_row_type_matches_the_sources():
    assert Row(text='x').prompt == '' and Row(text='x').split == ''
