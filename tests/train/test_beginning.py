"""Nothing changes behind a resume: another run is refused before anything is written, or told of.

Runs are stopped by their own model (tests/train/experiments.py) and given again, changed.
"""

import itertools
import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from lmplay.files import sealed
from lmplay.runs.finished import find_below, read_run
from lmplay.runs.recorder import read_metrics
from lmplay.train.__main__ import main
from tests.conftest import sentences
from tests.helpers import (
    EXPERIMENTS,
    assert_equal,
    assert_same_run,
    events,
    kill_after_records,
    losses,
    progress,
    rewrite,
    start,
    stop_at,
    summary,
    train_records,
    weights,
)

NUMBERS = itertools.count()


class Project:
    """A folder with data, a plan and an experiment, and runs of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data, self.plan_file = folder / 'mine.jsonl', folder / 'plan.json'
        self.experiment = folder / 'mine' / 'experiments.py'
        self.experiment.parent.mkdir()
        number = next(NUMBERS)  # a process knows an experiment by its name
        text = EXPERIMENTS.read_text().replace("@expose_runner('", f"@expose_runner('p{number}_")
        self.experiment.write_text(text)
        self.exp = f'{self.experiment}:p{number}_mean'
        self.write_data(seed=0)
        stage = {'dataset': 'mine', 'batch_size': 4, 'mini_batch_size': 4, 'validation_bytes': 600}
        self.plan = {
            'datasets': {'mine': {'loader': 'json', 'path': str(self.data)}},
            'validation_fraction': 0.2,
            'stages': {'a': stage | {'steps': 8, 'save_interval': 4}, 'b': stage | {'steps': 6}},
        }

    def write_data(self, *, seed: int) -> None:
        rng = random.Random(seed)
        rows = [json.dumps({'text': sentences(rng, rng.randint(1, 9))}) for _ in range(60)]
        self.data.write_text('\n'.join(rows))

    def train(self, *flags: str, run: str = 'run') -> int:
        self.plan_file.write_text(json.dumps(self.plan))
        options = ['--training-plan', self.plan_file, '--run-dir', self.folder / run, '--device', 'cpu']
        return main([str(o) for o in ('--exp', self.exp, '--quiet', *options, *flags)])

    @property
    def run(self) -> Path:
        return self.folder / 'run'

    def content(self) -> dict[str, bytes]:
        """All that is in the run's directory."""
        return {str(f.relative_to(self.run)): f.read_bytes() for f in self.run.rglob('*') if f.is_file()}


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def stopped(project: Project, *flags: str, step: int = 4) -> Project:
    with stop_at(step):
        assert project.train(*flags) == 130
    return project


# ---- refused


def another_text(project):
    project.write_data(seed=1)


def fewer_documents(project):
    project.plan['datasets']['mine']['limit'] = 30


def more_held_out(project):
    project.plan['validation_fraction'] = 0.4


def other_domain(project):
    project.plan['datasets']['mine']['domain'] = 'tales'


def stage_key(**keys):
    def change(project):
        project.plan['stages']['a'] |= keys

    return change


@pytest.mark.parametrize(
    'change, flags, told',
    [
        (another_text, [], "'mine': content was "),
        (fewer_documents, [], "'mine': limit was None and is 30"),
        (more_held_out, [], 'validation_fraction was 0.2 and is 0.4'),
        (other_domain, [], "'mine': domain was None and is tales"),
        (stage_key(validation_document_bytes=20), [], 'validation_document_bytes was 2048 and is 20'),
        (stage_key(row_length=16), [], 'row_length was 32 and is 16'),
        (stage_key(packing='pad'), [], 'packing was pack and is pad'),
        (stage_key(), ['--row-length', '16'], 'row_length was 32 and is 16'),
        (stage_key(), ['--amp'], 'precision was float32 and is '),
    ],
)
def test_another_run_is_refused_before_anything_is_written(project, capsys, change, flags, told):
    stopped(project)
    before = project.content()
    change(project)
    assert project.train(*flags) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and '--run-dir' in error and '--reset-history' in error, error
    assert error.count('\n') == 0 and project.content() == before


def test_a_run_with_amp_is_refused_without_it(project, capsys):
    stopped(project, '--amp')
    assert project.train() == 2
    assert 'and is float32' in capsys.readouterr().err
    assert project.train('--amp') == 0


def test_a_start_that_is_refused_for_another_reason_leaves_the_run_as_it_is(project, capsys):
    stopped(project)
    before = project.content()
    project.plan['stages']['b']['dataset'] = 'missing.jsonl'
    assert project.train() == 2
    assert 'Stage "b"' in capsys.readouterr().err and project.content() == before
    assert project.train('--set=embed_dim=8') == 2 and project.content() == before


def test_data_that_moves_is_the_same_data(project):
    stopped(project)
    moved = project.data.rename(project.folder / 'moved.jsonl')
    project.plan['datasets']['mine']['path'] = str(moved)
    assert project.train() == 0


# ---- told


def test_settings_may_change_and_are_told_with_their_step(project):
    stopped(project)
    project.plan['stages']['a'] |= {'lr': 0.02, 'steps': 12, 'mini_batch_size': 2}
    assert project.train() == 0
    (event,) = events(project.run, 'settings')
    assert (event['stage'], event['step']) == ('a', 5)
    assert 'lr from 0.0006 to 0.02' in event['message'] and 'steps from 8 to 12' in event['message']
    (change,) = summary(project.run)['changes']
    assert change == {key: event[key] for key in ('event', 'stage', 'step', 'message')}
    assert f'After 5 steps: {event["message"]}' in (project.run / 'summary.txt').read_text()


def test_a_change_is_told_though_the_run_is_killed_before_its_next_checkpoint(project, cache):
    """Logs are cut back to the checkpoint; the change is found again."""
    stopped(project)
    project.plan['stages']['a'] |= {'lr': 0.02, 'steps': 3000, 'save_interval': 10**6}
    project.plan['stages']['a']['validation_interval'] = 10**6
    project.plan_file.write_text(json.dumps(project.plan))
    arguments = ['--exp', project.exp, '--training-plan', project.plan_file]
    process = start(*arguments, '--run-dir', project.run, '--quiet', cache=cache)
    kill_after_records(process, project.run, len(read_metrics(project.run)) + 3)
    assert process.returncode == -signal.SIGKILL and len(events(project.run, 'settings')) == 1
    assert project.train('--steps', '8') == 0
    (event,) = [e for e in events(project.run, 'settings') if e['message'].startswith('Stage "a"')]
    assert 'lr from 0.0006 to 0.02' in event['message']


def test_a_stage_that_is_over_keeps_its_settings(project):
    stopped(project, step=2)  # of the first stage
    stopped(project, step=2)  # of the second
    assert progress(project.run)['stage'] == 1
    project.plan['stages']['a']['lr'] = 0.5
    assert project.train() == 0
    (event,) = events(project.run, 'settings')
    assert event['message'].startswith('Stage "a" is over and was not trained with changed settings: lr from')
    assert read_run(project.run).stage_settings['a']['lr'] == 0.0006


def test_the_data_of_a_stage_that_is_over_may_be_gone(project):
    project.plan['datasets']['first'] = project.plan['datasets'].pop('mine') | {}
    other = project.folder / 'other.jsonl'
    shutil.copy(project.data, other)
    project.plan['datasets']['second'] = {'loader': 'json', 'path': str(other)}
    project.plan['stages']['a']['dataset'], project.plan['stages']['b']['dataset'] = 'first', 'second'
    stopped(project, step=2)
    stopped(project, step=2)
    project.data.unlink()
    assert project.train() == 0


def test_edited_source_is_told_and_the_earlier_one_kept(project):
    stopped(project)
    text = project.experiment.read_text()
    project.experiment.write_text(text + '# a comment\n')
    assert project.train() == 0
    (event,) = events(project.run, 'source')
    assert event['step'] == 5 and event['message'].endswith('checkpoint: mine/experiments.py.')
    run = read_run(project.run)
    assert run.source['experiments.py'].endswith('# a comment\n') and run.source_changed() == []
    assert (project.run / 'source-before-1' / 'experiments.py').read_text() == text


@pytest.mark.parametrize(
    'content', ['{', '[]', '3', '{"stages": 3}', '{"stages": [null]}', '{"stages": [[1]]}']
)
@pytest.mark.parametrize('recorded', [True, False])
def test_mangled_settings_stop_no_run(project, content, recorded):
    stopped(project)
    (project.run / 'settings.json').write_text(content)
    if not recorded:
        forget_record(project.run)
    assert project.train('--steps', '6') == 0


def forget_record(run: Path) -> None:
    """Makes the run one of before such records."""
    for file in (run / 'checkpoints').glob('step-*/state.json'):
        state = json.loads(file.read_text())
        del state['record'], state['checksum']
        file.write_text(json.dumps(sealed(state)))


def test_a_run_without_a_record_resumes_and_says_so_once(project):
    stopped(project, step=2)
    forget_record(project.run)
    shutil.rmtree(project.run / 'source')
    project.plan['stages']['a']['lr'] = 0.01
    stopped(project, step=5)
    assert project.train() == 0
    assert len(events(project.run, 'unrecorded')) == 1
    assert 'lr from 0.0006 to 0.01' in events(project.run, 'settings')[0]['message']  # of settings.json
    assert read_run(project.run).source and read_run(project.run).source_changed() == []


# ---- --reset-history


def test_a_reset_starts_at_step_0_from_the_weights_with_a_fresh_optimizer(project):
    assert project.train() == 0
    old, kept = weights(project.run), project.content()
    with stop_at(0):
        assert project.train('--reset-history', '--lr', '1e-12') == 130
    assert progress(project.run)['total_step'] == 1
    for name, value in weights(project.run).items():
        assert (value - old[name]).abs().max() < 1e-6
    (event,) = events(project.run, 'reset')
    assert event['step'] == 0 and 'after 14 steps' in event['message'] and 'history-1' in event['message']
    moved = {str(f.relative_to(project.run / 'history-1')) for f in (project.run / 'history-1').rglob('*')}
    assert {'metrics.jsonl', 'summary.json', 'stages.json', 'checkpoints/best', 'source'} <= moved
    assert (project.run / 'history-1/metrics.jsonl').read_bytes() == kept['metrics.jsonl']
    read_run(project.run / 'history-1').model()


def test_earlier_histories_are_no_runs_to_compare_or_draw(project):
    assert project.train() == 0 and project.train('--reset-history') == 0
    for file in ('summary.json', 'metrics.jsonl', '*train_stats.csv'):
        (found,) = find_below(project.folder, file)
        assert found.parent == project.run
    (found,) = find_below(project.run / 'history-1', 'summary.json')  # asked for by its path
    assert found.parent == project.run / 'history-1'


def test_a_reset_that_is_stopped_is_resumed_by_the_same_command(project):
    assert project.train() == 0
    shutil.copytree(project.run, project.folder / 'whole', symlinks=True)
    assert project.train('--reset-history', run='whole') == 0
    with stop_at(3):
        assert project.train('--reset-history') == 130  # in the first stage
        assert project.train('--reset-history') == 130  # in the second
    assert project.train('--reset-history') == 0
    assert_same_run(project.folder / 'whole', project.run)
    assert not (project.run / 'history-2').exists()
    assert [r['step'] for r in train_records(project.run)] == list(range(1, 15))


def test_a_finished_run_can_be_reset_again(project):
    for number in (1, 2):
        assert project.train('--reset-history') == 0
        assert project.train('--reset-history') == 0 and (project.run / f'history-{number}').is_dir()


def test_a_reset_that_is_refused_loses_nothing(project, capsys):
    assert project.train() == 0
    before = project.content()
    for flags in (['--set=embed_dim=8'], ['--row-length', '999'], ['--initial-model', str(project.run)]):
        assert project.train('--reset-history', *flags) == 2
        assert project.content() == before
    assert '--initial-model' in capsys.readouterr().err


def test_other_held_out_text_may_follow_a_reset_and_is_told(project):
    stopped(project)
    another_text(project)
    assert project.train() == 2
    assert project.train('--reset-history') == 0
    assert 'may have been trained on some of it' in events(project.run, 'reset')[0]['message']
    assert losses(project.run) and read_run(project.run).summary['changes'][0]['event'] == 'reset'


@pytest.mark.parametrize('moved', [(), ('metrics.jsonl',), ('metrics.jsonl', 'checkpoints')])
def test_a_reset_that_is_killed_while_it_moves_is_completed(project, moved):
    """Its new checkpoints are whole; some of the old history is moved already."""
    assert project.train() == 0
    shutil.copytree(project.run, project.folder / 'other', symlinks=True)
    with stop_at(0):
        assert project.train('--reset-history', run='other') == 130
    old = weights(project.run)
    pending = project.run / 'checkpoints.reset'
    shutil.copytree(project.folder / 'other' / 'checkpoints', pending, symlinks=True)
    for folder in pending.glob('step-*'):
        rewrite(folder, logs={}, log_checksums={})  # as before the first of its steps
    (project.run / 'history-1').mkdir()
    for name in moved:
        (project.run / name).rename(project.run / 'history-1' / name)
    assert project.train('--reset-history') == 0
    assert not pending.exists()
    kept = [h for h in project.run.glob('history-*') if (h / 'checkpoints').is_dir()]
    assert any((h / 'metrics.jsonl').exists() for h in project.run.glob('history-*'))
    assert_equal(weights(kept[0]), old)


def test_new_checkpoints_that_are_not_whole_are_dropped(project):
    stopped(project)
    (project.run / 'checkpoints.reset' / 'step-00000000').mkdir(parents=True)
    assert project.train() == 0
    assert not (project.run / 'checkpoints.reset').exists() and not list(project.run.glob('history-*'))


def test_nothing_to_reset_is_a_new_run(project):
    assert project.train('--reset-history') == 0
    assert not events(project.run, 'reset')
