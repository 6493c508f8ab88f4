import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmplay.train.state import TrainState

GOLDEN = Path(__file__).parent / 'golden'


@pytest.mark.parametrize('name', sorted(f.name for f in GOLDEN.glob('*.tar.xz')))
def test_the_state_of_a_run_begun_long_ago_is_read_and_written_as_it_was(name):
    with tarfile.open(GOLDEN / name) as archive:
        files = [m for m in archive.getmembers() if m.name.endswith('state.json') and m.isfile()]
        assert files
        for member in files:
            old = json.load(archive.extractfile(member))['progress']
            now = TrainState(**old).to_dict()
            assert {key: now[key] for key in old} == old
            assert now.keys() - old.keys() == {'validated_step', 'best_saved_loss'}


def test_it_survives_json():
    state = TrainState(stage=1, loss=0.1 + 0.2, alarm={'warnings': 2}, best_is_saved=True)
    assert TrainState(**json.loads(json.dumps(state.to_dict()))) == state


def test_a_new_stage_starts_at_its_beginning_and_keeps_the_totals_of_the_run():
    state = TrainState(mini_batch_size=2)
    for _ in range(3):
        state.advance(4, 100, 1e6)
        state.add_seconds(2.0)
    state.record_validation(1.5)
    state.loss, state.alarm = 1.7, {'warnings': 2}
    state.count_skipped(2, 2)
    state.begin_stage(1)
    assert (state.stage, state.step, state.samples, state.mini_batch_size) == (1, 0, 0, 0)
    assert (state.stage_seconds, state.step_seconds, state.best_loss) == (0.0, 0.0, None)
    assert state.where() == {'step': 3, 'samples': 12, 'tokens': 300}
    assert state.spent() == state.where() | {'flops': 3e6, 'seconds': 6.0}
    assert (state.loss, state.skipped, state.skipped_in_a_row, state.alarm) == (1.7, 2, 0, {'warnings': 0})


def test_the_first_step_of_a_stage_tells_nothing_of_the_next():
    state = TrainState()
    for seconds in (9.0, 1.0, 2.0):
        before = state.step_seconds
        state.advance(4, 100, 1.0)
        state.add_seconds(seconds)
    assert before == 1.0 and state.step_seconds == 1.5 and state.stage_seconds == 12.0


def test_steps_without_a_finite_gradient_are_counted_in_a_row():
    state = TrainState()
    for skipped, steps in ((2, 2), (3, 3)):
        state.count_skipped(skipped, steps)
    assert (state.skipped, state.skipped_in_a_row) == (5, 5)
    state.count_skipped(1, 10)
    assert (state.skipped, state.skipped_in_a_row) == (6, 0)


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.booleans(), st.booleans()), max_size=12))
def test_best_names_the_best_weights_that_were_saved_as_they_were_evaluated(evaluations):
    """evaluations: (loss, whether a checkpoint is written then, whether steps are taken in between)."""
    state, best, saved = TrainState(), None, None
    for loss, saves, trained_on in evaluations:
        state.record_validation(loss)
        best = loss if best is None else min(best, loss)
        if trained_on:
            state.advance(1, 1, 0.0)
        if saves:
            better = not trained_on and (saved is None or loss < saved)
            assert state.take_best() == better
            saved = loss if better else saved
            assert not state.take_best()
        assert (state.best_loss, state.best_saved_loss) == (best, saved)
    assert state.best_is_saved == (saved is not None and saved == best)


def test_a_checkpoint_that_does_not_say_which_loss_was_saved_keeps_its_best_one():
    state = TrainState(best_loss=2.0, best_is_saved=True)
    state.record_validation(3.0)
    assert not state.take_best()


def test_an_evaluation_without_a_number_is_no_best_one():
    state, nan = TrainState(), float('nan')
    for loss, best in ((nan, False), (2.0, True), (nan, False), (3.0, False), (1.0, True)):
        state.record_validation(loss)
        assert state.take_best() is best
    assert state.best_loss == 1.0


def test_nothing_is_best_before_the_first_evaluation():
    assert not TrainState().take_best()
