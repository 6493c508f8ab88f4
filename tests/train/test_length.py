import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmplay.train.length import EVALUATIONS, SampleLength, TimeLength, crossed, stage_length
from lmplay.train.plan import Stage
from lmplay.train.state import TrainState
from tests.helpers import mixture


def walk(length, *, seconds=1.0, first=None):
    """Takes the steps of a length, each of so many seconds; yields the state and the sequences of each."""
    state = TrainState()
    while not length.reached(state):
        sequences, total = length.next_sequences(state.samples), length.total_steps(state)
        state.advance(sequences, 10 * sequences, 1.0)
        state.add_seconds(first if first and state.step == 1 else seconds)
        yield state, sequences, total


# ---- a number of sequences


@given(st.integers(1, 500), st.integers(1, 60))
def test_the_steps_of_a_stage_add_up_to_its_sequences(samples, batch_size):
    length = SampleLength(batch_size, 1, samples, 10, 10)
    steps = [(sequences, total) for _, sequences, total in walk(length)]
    assert sum(sequences for sequences, _ in steps) == samples
    assert {total for _, total in steps} == {len(steps)} == {length.steps}
    assert all(0 < sequences <= batch_size for sequences, _ in steps)
    assert length.next_sequences(samples) == 0  # nothing to work ahead on


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 120), st.integers(1, 120))
def test_an_interval_is_due_once_wherever_steps_end(samples, batch_size, validation, save):
    length = SampleLength(batch_size, 1, samples, validation, save)
    for interval, name in ((validation, 'validate'), (save, 'save')):
        due = [(s.samples, n) for s, n, _ in walk(length) if getattr(length.due(s, n), name)]
        for multiple in range(interval, samples + 1, interval):
            assert sum(at - n < multiple <= at for at, n in due) == 1
        assert due[-1][0] == samples  # and at the end
        assert len(due) <= samples // interval + 1


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 90), st.integers(1, 12))
def test_what_is_due_is_due_at_a_logging_point(samples, batch_size, interval, log_every):
    length = SampleLength(batch_size, log_every, samples, interval, 3 * interval)
    for state, sequences, total in walk(length):
        logs = length.log_due(state, sequences, total)
        assert logs or not any(length.due(state, sequences))
        assert logs or state.step % log_every and not length.reached(state)


@given(st.integers(1, 100), st.integers(0, 10**6), st.integers(1, 300))
def test_crossing_by_the_definition(interval, before, sequences):
    after = before + sequences
    passed = any(before < multiple <= after for multiple in range(0, after + 1, interval) if multiple)
    assert crossed(interval, after, sequences) == passed


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40), st.integers(0, 300))
def test_another_batch_size_leaves_the_stage_as_long_as_it_was(samples, before, after, taken):
    """A run resumed with it trains on what was left."""
    state = TrainState(samples=min(samples, taken // before * before), step=taken // before)
    length = SampleLength(after, 1, samples, 10, 10)
    while not length.reached(state):
        state.advance(length.next_sequences(state.samples), 1, 1.0)
    assert state.samples == samples


@pytest.mark.parametrize(
    'keys, samples',
    [
        ({'steps': 7}, 28),
        ({'tokens': 100}, 25),  # of four tokens each
        ({'tokens': 1}, 1),
        ({'epochs': 2.5}, 25),
        ({'epochs': 0.001}, 1),
        ({}, 10),
        ({'epochs': 1, 'drop_last': True}, 8),
        ({'tokens': 4, 'drop_last': True}, 4),  # one whole batch at least
    ],
)
def test_a_stage_tells_its_length_in_one_of_several_ways(keys, samples):
    data = mixture(10)
    assert data.tokens_per_row == 4
    assert stage_length(Stage(dataset='embedded', batch_size=4, **keys), data).samples == samples


def test_a_stage_without_intervals_is_evaluated_and_saved_as_often_as_promised():
    length = stage_length(Stage(dataset='embedded', batch_size=4, steps=100), mixture(10))
    due = [length.due(state, n) for state, n, _ in walk(length)]
    assert sum(d.validate for d in due) == sum(d.save for d in due) == EVALUATIONS
    short = stage_length(Stage(dataset='embedded', batch_size=4, steps=3), mixture(10))
    assert short.validation_interval == 4  # no more often than once a step
    named = stage_length(Stage(dataset='embedded', steps=3, validation_interval=5), mixture(10))
    assert (named.validation_interval, named.save_interval) == (5, 5)


# ---- a time


def timed(seconds, *, log_every=1, validation=None, save=None, **more):
    return TimeLength(4, log_every, seconds, validation, save, **{'first_guess': 50} | more)


@given(st.floats(0.01, 300), st.floats(0.05, 20), st.floats(0.05, 20))
def test_a_timed_stage_ends_within_half_a_step(seconds, step, first):
    length = timed(seconds)
    states = [(s.step, s.stage_seconds) for s, _, _ in walk(length, seconds=step, first=first)]
    steps, end = states[-1]
    assert [n for n, _ in states] == list(range(1, steps + 1))
    slack = 1e-6 * seconds
    if steps > 2:
        assert abs(end - seconds) <= step / 2 + slack
    elif steps == 2:  # a single step has no time to expect of the next
        assert first < seconds
    else:
        assert first >= seconds


def test_how_many_steps_there_will_be_is_guessed_until_two_are_timed():
    totals = [total for _, _, total in walk(timed(100.0), seconds=2.0, first=10.0)]
    assert totals[:2] == [50, 50] and set(totals[2:]) == {len(totals)} == {46}


def test_a_timed_stage_has_no_last_batch_that_is_smaller():
    length = timed(10.0)
    assert {n for _, n, _ in walk(length)} == {4} and length.next_sequences(10**6) == 4


def test_a_timed_stage_is_evaluated_and_saved_as_often_as_promised():
    length = timed(100.0)
    due = [length.due(state, n) for state, n, _ in walk(length, seconds=0.5)]
    assert sum(d.validate for d in due) == sum(d.save for d in due) == EVALUATIONS
    assert due[-1] == (True, True)


def test_intervals_of_a_timed_stage_may_be_sequences():
    length = timed(10.0, validation=8, save=1000)
    due = [(state.samples, *length.due(state, n)) for state, n, _ in walk(length)]
    assert [at for at, validate, _ in due if validate] == [8, 16, 24, 32, 40]
    assert [at for at, _, save in due if save] == [40]


@given(st.integers(1, 39))
def test_a_resumed_timed_stage_is_due_when_an_uninterrupted_one_is(stop):
    stage = Stage(dataset='embedded', batch_size=4, seconds=100)
    whole, first = (stage_length(stage, mixture(10)) for _ in range(2))
    expected = [(s.step, whole.due(s, n)) for s, n, _ in walk(whole, seconds=2.5)]
    second, found = stage_length(stage, mixture(10), elapsed=2.5 * stop), []
    for state, sequences, _ in walk(whole, seconds=2.5):
        part = first if state.step <= stop else second
        found.append((state.step, part.due(state, sequences)))
    assert found == expected


def test_near_its_end_a_timed_stage_waits_for_the_device_at_every_step():
    """The clock is right only where the device was waited for."""
    length = timed(100.0, log_every=10)
    logged = [s.step for s, n, total in walk(length, seconds=1.0) if length.log_due(s, n, total)]
    assert logged[:9] == list(range(10, 91, 10)) and logged[9:] == list(range(91, 101))


def test_what_a_progress_bar_shows():
    state = TrainState(samples=12, stage_seconds=3.4)
    assert SampleLength(4, 1, 40, 10, 10).done(state) == (12, 40, 'seq')
    assert timed(10.0).done(state) == (3, 10, 's')
    assert (str(SampleLength(4, 1, 4000, 10, 10)), str(timed(10.0))) == ('4,000 sequences', '10 s')
