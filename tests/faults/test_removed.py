"""Files of a run are removed while it trains: it stops, says so, and saves what it has elsewhere."""

import json
import shutil

import pytest

from lmplay.base.runner_list import find_runner
from lmplay.runs.finished import read_run
from lmplay.runs.recorder import read_metrics
from lmplay.train.__main__ import main
from tests.helpers import assert_same_run

MODEL = find_runner('test_runner').function().model_class


SMALL = ['--num-blocks', 1, '--embed-dim', 16, '--num-heads', 2, '--max-len', 32]
RUN = [
    '--exp',
    'test_runner',
    '--device',
    'cpu',
    '--quiet',
    '--tokenizer',
    'bytes',
    '--save-interval',
    8,
    *SMALL,
]


def replaced(run):
    (run / 'metrics.jsonl').rename(run / 'old')
    shutil.copy(run / 'old', run / 'metrics.jsonl')


REMOVALS = {
    'the run': shutil.rmtree,
    'the run and what is around it': lambda run: shutil.rmtree(run.parent),
    'the run, moved': lambda run: run.rename(run.with_name('moved')),
    'a log': lambda run: (run / 'train_stats.csv').unlink(),
    'a log, replaced': replaced,
    'its checkpoints': lambda run: shutil.rmtree(run / 'checkpoints'),
    'its last checkpoint': lambda run: shutil.rmtree((run / 'checkpoints' / 'last').resolve()),
}


def train(plan, folder):
    return main([*map(str, [*RUN, '--training-plan', plan, '--run-dir', folder])])


@pytest.fixture(scope='module')
def whole(tmp_path_factory, corpus, cache):
    """(a plan, its run that nobody interfered with)."""
    folder = tmp_path_factory.mktemp('whole')
    stage = {'dataset': str(corpus), 'steps': 12, 'batch_size': 4, 'row_length': 32, 'validation_bytes': 600}
    (folder / 'plan.json').write_text(json.dumps({'stages': {'a': stage}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LMP_DATASETS', str(cache))
        assert train(folder / 'plan.json', folder / 'run') == 0
    return folder / 'plan.json', folder / 'run'


@pytest.mark.parametrize('removal', REMOVALS)
def test_a_run_whose_files_are_removed_stops_at_once_and_goes_on_elsewhere(
    whole, tmp_path, removal, capfd, monkeypatch
):
    plan, undisturbed = whole
    run, rescued, steps = tmp_path / 'runs' / 'run', tmp_path / 'runs' / 'run-rescued', []

    def before_step(model, ctx):
        if ctx.stage != 'check':
            steps.append(ctx.step)
            if ctx.step == 7:
                REMOVALS[removal](run)

    with monkeypatch.context() as patch:
        patch.setattr(MODEL, 'before_step', before_step)
        assert train(plan, run) == 2
    error = capfd.readouterr().err
    assert 'was removed from' in error and str(rescued) in error and 'Traceback' not in error
    assert max(steps) < 8  # the step at which it was removed is the last
    assert read_metrics(rescued) and (rescued / 'settings.json').is_file()
    assert train(plan, rescued) == 0
    assert_same_run(undisturbed, rescued)
    assert read_run(rescued).summary['steps'] == 12
