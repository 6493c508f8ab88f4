import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.errors import DataError
from tests.helpers import mixture


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 40), st.integers(0, 3))
def test_any_position_can_be_sought_at_once(start, count, seed):
    """A fresh mixture asked for samples in the middle gives what one that ran there gives."""
    fresh = mixture(70, 130, weights=[3.0, 1.0], seed=seed).batch(start, count)
    ran = mixture(70, 130, weights=[3.0, 1.0], seed=seed)
    ran.batch(max(0, start - 7), 7)
    assert torch.equal(ran.batch(start, count).x, fresh.x)


def test_an_epoch_holds_each_row_once_and_the_next_in_another_order():
    m = mixture(300)
    epochs = [[tuple(r) for r in m.batch(e * 300, 300).x.tolist()] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 300 and epochs[0] != epochs[1]
    assert [tuple(r) for r in mixture(300, stage='other').batch(0, 300).x.tolist()] != epochs[0]
    assert [tuple(r) for r in mixture(300, seed=1).batch(0, 300).x.tolist()] != epochs[0]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from([1, 2, 3, 0.5, 0.25, 0.7])), min_size=1, max_size=5
    ),
    st.integers(0, 3),
    st.sampled_from(['first_exhausted', 'all_exhausted']),
)
def test_shares_are_exact_at_every_length(sizes, seed, exhaust):
    """After any number of samples: shares within one sample, and no sequence again before all were seen."""
    counts, weights = zip(*sizes)
    m = mixture(*counts, weights=list(weights), seed=seed, exhaust=exhaust)
    drawn = [m.locate(i) for i in range(2 * m.epoch_samples + 7)]
    assert_shares(drawn, weights, below=1)
    seen = [[] for _ in counts]
    for source, epoch, place in drawn:
        seen[source].append(epoch * counts[source] + place)
    assert all(places == list(range(len(places))) for places in seen)
    ended = [sum(source == i for source, *_ in drawn[: m.epoch_samples]) for i in range(len(counts))]
    if exhaust == 'first_exhausted':
        assert all(n <= count for n, count in zip(ended, counts)) and any(map(int.__eq__, ended, counts))
    else:
        assert all(n >= count for n, count in zip(ended, counts)) and any(map(int.__eq__, ended, counts))


@settings(max_examples=20)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5), st.integers(0, 10**7))
def test_weights_in_no_simple_ratio_are_kept_to_two_samples_at_any_distance(weights, start):
    m = mixture(*[50] * len(weights), weights=weights)
    before = [0] * len(weights)
    for i in range(len(weights)):  # how many of each source came before is told by the next of it
        at, (source, epoch, place) = next(
            (at, found) for at in range(start, start + 300) if (found := m.locate(at))[0] == i
        )
        before[i] = epoch * 50 + place
        assert abs(before[i] - at * weights[i] / sum(weights)) < 2


def assert_shares(drawn, weights, *, below):
    """At every prefix each source has had its share of the samples to within `below` of them."""
    sources = np.array([source for source, *_ in drawn])
    for i, weight in enumerate(weights):
        taken = np.cumsum(sources == i)
        share = np.arange(1, len(sources) + 1) * (weight / sum(weights))
        assert np.abs(taken - share).max() < below


def test_an_epoch_of_equal_halves_shows_each_sequence_once():
    for exhaust in ('first_exhausted', 'all_exhausted'):
        m = mixture(40, 40, exhaust=exhaust)
        assert m.epoch_samples == 80
        for epoch in range(3):
            assert len({tuple(r) for r in m.batch(80 * epoch, 80).x.tolist()}) == 80


def test_weights_are_kept_exactly_and_each_source_runs_through_its_rows():
    m = mixture(400, 400, weights=[0.7, 0.3])
    x = m.batch(0, 2000).x
    first = x[:, 1]  # of a document that names its source
    assert [(first[i : i + 1000] == 0).sum().item() for i in (0, 1000)] == [700, 700]
    of_first = [tuple(r) for r in x[first == 0].tolist()]
    assert len(set(of_first[:400])) == 400 and sorted(of_first[400:800]) == sorted(of_first[:400])


def test_an_epoch_of_a_mixture_ends_with_the_first_or_the_last_source():
    assert mixture(100, 300).epoch_samples == 200
    assert mixture(100, 300, exhaust='all_exhausted').epoch_samples == 600
    assert mixture(100).epoch_samples == 100
    with pytest.raises(DataError, match='below 1 in 1000'):
        mixture(10, 10, weights=[1.0, 1e-6])
