"""Resuming is exact: a run killed at any moment ends as one that was not.

With the same weights, optimizer, statistics and order of the data.
"""

import json
import random
import shutil
import signal
import time

import pytest

from lmplay.errors import CheckpointError
from lmplay.files import sealed
from lmplay.runs.checkpoint import save_checkpoint
from lmplay.runs.links import point
from lmplay.runs.recorder import LOGS, read_metrics
from lmplay.train.plan import parse_plan
from lmplay.train.resolve import ResolvedStage, Settings, resolve
from lmplay.train.resume import SavedRun, find_saved
from lmplay.train.state import TrainState
from tests.helpers import assert_equal, assert_same_run, kill_after_records, make_trainer, statistics, tiny
from tests.helpers import start as start_process


def start(plan, run_dir, cache, *flags):
    return start_process('--training-plan', plan, '--run-dir', run_dir, '--quiet', *flags, cache=cache)


@pytest.fixture
def plan(tiny_plan, corpus):
    """One and a half epochs, then a stage on a padded mixture with another rate; dropout on."""
    first = {'steps': None, 'epochs': 1.5, 'batch_size': 5}
    second = {'dataset': None, 'mix': {'mine': 3, 'other': 1}, 'steps': 14, 'packing': 'pad'}
    model = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=32, tokenizer='bytes', ff_dropout=0.3)
    file = tiny_plan({'first': first, 'second': second | {'lr': 0.003, 'row_length': 24}}, model=model)
    content = json.loads(file.read_text())
    content['datasets']['other'] = {'loader': 'text', 'path': str(corpus)}
    file.write_text(json.dumps(content))
    return file


FLAGS = ('--validation-interval', '60', '--save-interval', '35', '--optimizer')


@pytest.mark.parametrize('optimizer, seed', [('adamw', 1), ('muon', 2)])
def test_killed_twice_is_as_not_killed(plan, cache, tmp_path, optimizer, seed):
    whole = start(plan, tmp_path / 'whole', cache, *FLAGS, optimizer)
    assert whole.wait() == 0, whole.log.read_text()
    records = len(read_metrics(tmp_path / 'whole'))
    rng = random.Random(seed)
    for at in sorted(rng.sample(range(3, records - 3), 2)):
        kill_after_records(
            start(plan, tmp_path / 'killed', cache, *FLAGS, optimizer), tmp_path / 'killed', at
        )
    last = start(plan, tmp_path / 'killed', cache, *FLAGS, optimizer)
    assert last.wait() == 0, last.log.read_text()
    assert_same_run(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_stop_saves_where_it_is_and_resumes(plan, cache, tmp_path, number, code):
    whole = start(plan, tmp_path / 'whole', cache)
    assert whole.wait() == 0
    process = start(plan, tmp_path / 'stopped', cache)
    records = tmp_path / 'stopped/train_stats.csv'
    while process.poll() is None and not (
        records.exists() and records.read_text().count('\n') > 1
    ):  # a step was taken
        time.sleep(0.002)
    process.send_signal(number)
    assert process.wait() == code
    assert (tmp_path / 'stopped/checkpoints/last/state.json').exists()
    assert start(plan, tmp_path / 'stopped', cache).wait() == 0
    assert_same_run(tmp_path / 'whole', tmp_path / 'stopped')


def test_two_processes_cannot_train_in_one_directory(plan, cache, tmp_path):
    first = start(plan, tmp_path / 'run', cache, '--epochs', '200')
    while first.poll() is None and not (tmp_path / 'run/metrics.jsonl').exists():
        time.sleep(0.01)
    second = start(plan, tmp_path / 'run', cache)
    assert second.wait() == 2 and 'Another process is training' in second.log.read_text()
    first.send_signal(signal.SIGKILL)
    first.wait()


def test_a_finished_run_given_again_trains_nothing(plan, cache, tmp_path):
    assert start(plan, tmp_path / 'run', cache).wait() == 0
    before = statistics(tmp_path / 'run')
    assert start(plan, tmp_path / 'run', cache).wait() == 0
    assert statistics(tmp_path / 'run') == before


# ---- what a run finds in its directory


SHAPE = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=24)
PLAIN = dict(attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0, tokenizer='bytes')  # as helpers.tiny


@pytest.fixture
def saved(tmp_path) -> SavedRun:
    """A run that stopped in its second stage, as its directory holds it."""
    model = tiny()
    trainer = make_trainer(model, tmp_path / 'logs')
    tokenizer = {'name': 'bytes', 'fingerprint': model.tokenizer.fingerprint}
    state = {
        'seed': 3,
        'stage': 'b',
        'progress': TrainState(stage=1, step=7).to_dict(),
        'tokenizer': tokenizer,
        'logs': {},
    }
    state['hyperparameters'] = json.loads(json.dumps(model.hyperparameters))
    moments = {'optimizer': trainer.optimizer.state_dict(), 'scaler': {}}
    folder = tmp_path / 'run' / 'checkpoints'
    save_checkpoint(folder / 'step-00000007', model, moments, state)
    point(folder / 'last', folder / 'step-00000007')
    return find_saved(tmp_path / 'run', folder)


def second_stage(**model) -> ResolvedStage:
    stages = {name: {'dataset': 'embedded', 'steps': 9} for name in 'ab'}
    plan = parse_plan({'stages': stages, 'tokenizer': 'bytes'})
    return resolve(plan, Settings(exp='gpt2ish', model=SHAPE | PLAIN | model), None)[1]


def test_what_was_saved_is_found(saved):
    assert saved.train_state == TrainState(stage=1, step=7)
    saved.check(['a', 'b'], seed=3)
    saved.check(['renamed', 'b', 'more'], seed=3)  # what is behind it, and what is still to come, may change
    assert_equal(saved.load_model(second_stage(), 'cpu').state_dict(), tiny().state_dict())
    assert saved.load_optimizer()['scaler'] == {}


@pytest.mark.parametrize(
    'stages, seed, message',
    [
        (['a', 'b'], 4, 'was started with seed 3; given: 4. Use another --run-dir'),
        (['a'], 3, r'has reached stage 2, "b", and this plan\'s stages are a\. .*--reset-history'),
        (['b', 'a'], 3, 'has reached stage 2, "b", and this plan\'s stages are b, a'),
    ],
)
def test_another_plan_or_seed_is_refused(saved, stages, seed, message):
    with pytest.raises(CheckpointError, match=message):
        saved.check(stages, seed=seed)


def test_another_architecture_is_refused_even_where_its_weights_would_fit(saved):
    with pytest.raises(
        CheckpointError, match='a different architecture: num_heads was 2 and is 4. Use another --run-dir'
    ):
        saved.load_model(second_stage(num_heads=4), 'cpu')
    with pytest.raises(CheckpointError, match='different architecture'):
        saved.load_model(second_stage(embed_dim=32), 'cpu')


def test_a_parameter_that_is_new_since_the_run_began_changes_no_architecture(saved):
    del saved.state['hyperparameters']['gelu']
    saved.load_model(second_stage(), 'cpu')


def test_another_tokenizer_is_refused(saved):
    saved.state['tokenizer']['fingerprint'] = 'other'
    with pytest.raises(CheckpointError, match=r'trained with another tokenizer \(bytes\)'):
        saved.load_model(second_stage(), 'cpu')


def test_a_run_without_saved_moments_has_none(saved):
    (saved.folder / 'optimizer.pt').unlink()
    assert saved.load_optimizer() is None


def test_what_is_in_the_directory_decides_whether_a_run_is_new(saved, tmp_path):
    folder = saved.run_dir / 'checkpoints'
    assert find_saved(tmp_path / 'new', tmp_path / 'new' / 'checkpoints') is None
    last = folder / 'last'
    last.unlink()
    assert find_saved(saved.run_dir, folder).train_state == saved.train_state  # killed in its first save
    last.unlink()
    shutil.rmtree(folder / 'step-00000007')
    assert find_saved(saved.run_dir, folder) is None
    (folder / 'step-00000009').mkdir()
    with pytest.raises(CheckpointError, match="has no usable checkpoint '.*/last'"):
        find_saved(saved.run_dir, folder)
    last.symlink_to('step-00000009')
    with pytest.raises(CheckpointError, match='ln -sfn'):
        find_saved(saved.run_dir, folder)


@pytest.mark.parametrize(
    'mangled, part',
    [(lambda s: s.pop('seed'), 'seed'), (lambda s: s.pop('logs'), 'logs')]
    + [
        (lambda s: s.pop('progress'), 'progress'),
        (lambda s: s.update(progress={'nothing': 1}), r'progress\.\w+: Field required'),
    ],
)
def test_a_state_that_lacks_a_part_is_damaged(saved, mangled, part):
    file = saved.folder.resolve() / 'state.json'
    state = json.loads(file.read_text())
    mangled(state)
    file.write_text(json.dumps(sealed({k: v for k, v in state.items() if k != 'checksum'})))
    with pytest.raises(CheckpointError, match=f'is damaged: .*state.json.*{part}'):
        find_saved(saved.run_dir, saved.run_dir / 'checkpoints')


@pytest.mark.parametrize('log', LOGS)
def test_a_log_that_has_changed_is_told_before_anything_is_written(train, log):
    """One byte of the right form is another: every line reads, and none is what was recorded."""
    _, run = train(stage={'steps': 6, 'save_interval': 4})
    (run / 'summary.json').unlink()  # as of a run that has not ended
    content = (run / log).read_bytes()
    at = max(i for i, byte in enumerate(content) if chr(byte).isdigit())
    (run / log).write_bytes(content[:at] + b'%d' % (9 - int(content[at : at + 1])) + content[at + 1 :])
    before = _contents(run)
    code, _ = train(stage={'steps': 8, 'save_interval': 4})
    assert code == 2 and _contents(run) == before
    (run / log).write_bytes(content)
    assert train(stage={'steps': 8, 'save_interval': 4})[0] == 0


def _contents(run):
    return {f: f.read_bytes() for f in run.rglob('*') if f.is_file() and f.name != '.lock'}
