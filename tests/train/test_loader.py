import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmplay.data.mixture import Mixture
from lmplay.errors import DataError
from lmplay.train.loader import Loader, micro_batches
from tests.helpers import mixture, ragged


class Noting(Mixture):
    """Notes which batches were made, and fails from a position on."""

    broken_from = 10**9

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.made, self.ahead = [], threading.Event()

    def batch(self, start, count):
        if start >= self.broken_from:
            raise DataError(f'no sample {start}')
        batch = super().batch(start, count)
        self.made.append((start, count))
        if start:
            self.ahead.set()
        return batch


@pytest.fixture
def noting():
    source = mixture(30)
    return Noting(source.sources, [1.0], seed=source.seed, stage=source.stage)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 40))
def test_batches_come_in_order_and_are_those_of_the_mixture(counts, first):
    data, start = mixture(30), first
    with Loader(mixture(30), pin=False) as batches:
        for count, then in zip(counts, [*counts[1:], 0]):
            batch, waited = batches.get(start, count, then=then)
            assert torch.equal(batch.x, data.batch(start, count).x) and waited >= 0
            start += count


def test_the_next_batch_is_made_before_it_is_asked_for(noting):
    with Loader(noting, pin=False) as batches:
        batches.get(0, 4, then=3)
        assert noting.ahead.wait(60)
    assert noting.made == [(0, 4), (4, 3)]


def test_nothing_is_made_beyond_the_end_or_twice(noting):
    with Loader(noting, pin=False) as batches:
        batches.get(0, 4, then=4)
        batches.get(4, 4, then=0)
    assert noting.made == [(0, 4), (4, 4)]


def test_another_position_than_was_expected_is_served(noting):
    with Loader(noting, pin=False) as batches:
        batches.get(0, 4, then=4)
        batch, _ = batches.get(20, 2, then=0)
    assert torch.equal(batch.x, mixture(30).batch(20, 2).x)


def test_an_error_of_the_data_reaches_the_caller_at_its_own_batch(noting):
    noting.broken_from = 4
    with Loader(noting, pin=False) as batches:
        batch, _ = batches.get(0, 4, then=4)  # the failure is already under way
        assert len(batch) == 4
        with pytest.raises(DataError, match='no sample 4'):
            batches.get(4, 4, then=4)


@pytest.mark.parametrize('error', [None, KeyboardInterrupt])
def test_no_thread_is_left_however_it_ends(error):
    try:
        with Loader(mixture(30), pin=False) as batches:
            batches.get(0, 4, then=4)
            assert any(t.name.startswith('data') for t in threading.enumerate())
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert not any(t.name.startswith('data') for t in threading.enumerate())


def test_it_can_be_entered_again():
    """An earlier stage's look ahead does not leak into it."""
    loader = Loader(mixture(30), pin=False)
    for _ in range(2):
        with loader as batches:
            batch, _ = batches.get(0, 4, then=4)
            assert torch.equal(batch.x, mixture(30).batch(0, 4).x)


@given(st.integers(1, 6))
def test_parts_of_a_batch_are_the_batch(sequences):
    batch = ragged()
    parts = list(micro_batches(batch, sequences))
    assert all(0 < len(part) <= sequences for part in parts)
    assert sum(part.tokens for part in parts) == batch.tokens
    for name in ('x', 'y', 'lengths'):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


def test_a_batch_that_was_cut_for_other_micro_batches_is_made_again(noting):
    with Loader(noting, pin=False) as batches:
        batches.get(0, 4, then=4, mini_batch=2)
        batches.get(0, 4, then=4, mini_batch=1)
        batches.get(4, 4, then=0, mini_batch=1)
    assert noting.made == [(0, 4), (4, 4)] * 2
