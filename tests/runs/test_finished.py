"""What is read of a run's directory: a tiny run, trained by the trainer itself, then damaged in every way."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmplay.errors import DataError, UserError
from lmplay.runs.finished import StartedRun, metric_key, read_fingerprints, read_run, read_started
from lmplay.runs.load import load_model
from lmplay.train.__main__ import main
from lmplay.train.plan import parse_plan
from tests.helpers import flip, unseal

STAGE = {
    'dataset': 'mine',
    'steps': 4,
    'batch_size': 4,
    'mini_batch_size': 4,
    'row_length': 32,
    'validation_interval': 8,
    'validation_bytes': 600,
}
MODEL = {'num_blocks': 1, 'embed_dim': 16, 'num_heads': 2, 'max_len': 32}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, corpus, cache):
    """The directory of a finished run of two stages."""
    root = tmp_path_factory.mktemp('finished')
    datasets = {'mine': {'loader': 'json', 'path': str(corpus), 'domain_column': 'kind'}}
    stages = {'first': STAGE, 'second': STAGE | {'steps': 2}}
    plan = {
        'datasets': datasets,
        'tokenizer': 'bytes',
        'validation_fraction': 0.1,
        'model': MODEL,
        'stages': stages,
    }
    (root / 'plan.json').write_text(json.dumps(plan))
    arguments = [
        '--exp',
        'gpt2ish',
        '--training-plan',
        str(root / 'plan.json'),
        '--run-dir',
        str(root / 'run'),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LMP_DATASETS', str(cache))
        assert main([*arguments, '--lr', '0.01', '--seed', '3', '--device', 'cpu', '--quiet']) == 0
    return root / 'run'


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / 'run', symlinks=True)


def test_what_a_finished_run_holds(folder):
    run = read_run(folder)
    assert (run.exp, run.seed, run.summary['seed'], run.causal) == ('gpt2ish', 3, 3, True)
    assert list(run.stages) == list(run.stage_settings) == ['first', 'second']
    assert run.stage_settings['second']['steps'] == 2 and run.stage_settings['second']['lr'] == 0.01
    assert run.plan['validation_fraction'] == 0.1 and run.environment['python']
    assert run.configuration['second.lr'] == 0.01 and run.configuration['model.embed_dim'] == 16
    assert run.cost['tokens'] == run.summary['tokens'] > 0
    assert run.last_stage['hyperparameters']['embed_dim'] == 16
    assert run.fingerprints['evaluation'] == run.last_stage['fingerprints']['evaluation']
    assert run.fingerprints['data'].split() == [s['fingerprints']['data'] for s in run.stages.values()]
    assert repr(run) == f'FinishedRun(folder={folder!r})'


def test_losses_are_those_of_the_last_evaluation(folder):
    run = read_run(folder)
    last = run.validations[-1]
    assert run.loss() == pytest.approx(last['loss'], rel=1e-5)
    assert run.loss('bits_per_byte') == pytest.approx(last['bits_per_byte'], rel=1e-5)
    for domain in ('a', 'b'):
        assert run.loss('loss', domain) == pytest.approx(last['domains'][domain]['loss'], rel=1e-5)


def test_metrics_are_arrays(folder):
    run = read_run(folder)
    curve = run.metrics('validation', 'loss')
    assert len(curve.samples) == len(curve.tokens) == len(curve.values) == len(run.validations)
    assert curve.values.tolist() == [r['loss'] for r in run.validations]
    assert run.metrics('train', 'lr').samples.tolist() == [4, 8, 12, 16, 20, 24]
    with pytest.raises(UserError, match="Unknown metric 'los'.*Did you mean 'loss'"):
        run.metrics('train', 'los')


def test_metrics_of_a_model_have_two_names_and_the_last_shape(copy):
    records = [
        {'kind': 'train', 'samples': 1, 'tokens': 10, 'expert_load': [[0.5, 0.5]]},
        {'kind': 'train', 'samples': 2, 'tokens': 20, 'expert_load': [[0.25, 0.75], [1, 0]]},
        {'kind': 'train', 'samples': 3, 'tokens': 30, 'model/expert_load': [[None, 0.75], [0, 1]]},
        {'kind': 'train', 'samples': 4, 'tokens': 40, 'loss': 1.0},
    ]
    unseal(copy)
    with open(copy / 'metrics.jsonl') as file:
        last = [line for line in file if '"validation"' in line][-1]
    (copy / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records) + last)
    for name in ('expert_load', 'model/expert_load'):
        curve = read_run(copy).metrics('train', name)
        assert curve.samples.tolist() == [2, 3] and curve.values.shape == (2, 2, 2)
        np.testing.assert_array_equal(curve.values[1], [[math.nan, 0.75], [0, 1]])


def test_a_name_finds_either_form():
    assert (
        metric_key({'model/gini': 1}, 'gini') == metric_key({'model/gini': 1}, 'model/gini') == 'model/gini'
    )
    assert metric_key({'gini': 1}, 'gini') == metric_key({'gini': 1}, 'model/gini') == 'gini'
    assert metric_key({'loss': 1, 'model/loss': 2}, 'loss') == 'loss'  # the trainer's own
    assert metric_key({}, 'gini') == 'gini'


def test_the_model_is_that_of_a_checkpoint(folder):
    model, _ = load_model(folder / 'checkpoints' / 'last')
    loaded = read_run(folder).model('last')
    assert all((loaded.state_dict()[k] == v).all() for k, v in model.state_dict().items())
    assert read_run(folder).model().name == model.name


def test_a_run_need_not_be_finished_for_its_settings(copy):
    (copy / 'summary.json').unlink()
    run = read_started(copy)
    assert list(run.stage_settings) == ['first', 'second'] and run.checkpoints.is_dir()
    assert read_started(copy / 'checkpoints') is None
    assert read_fingerprints(copy)['evaluation'] and read_fingerprints(copy / 'checkpoints') == {}
    with pytest.raises(DataError, match='no summary.json'):
        read_run(copy)
    with pytest.raises(DataError, match='No run at'):
        read_run(copy / 'elsewhere')
    for content in ('{}', '[]', 'x', '{"stages": []}'):
        (copy / 'settings.json').write_text(content)
        with pytest.raises(DataError, match="The run in '.*run' is damaged"):
            read_started(copy)


def test_what_a_plan_leaves_open_is_what_the_trainer_takes():
    stages = {'only': {'dataset': 'embedded'}}
    plan = parse_plan({'stages': stages})
    run = StartedRun(Path(), plan=plan.raw, settings={})
    assert run.validation_fraction == plan.validation_fraction and run.datasets == plan.datasets == {}


@pytest.mark.parametrize(
    'name, content',
    [
        ('summary.json', b'{}'),
        ('summary.json', b'[]'),
        ('settings.json', b'{}'),
        ('plan.json', b''),
        ('stages.json', b'{"s": {}}'),
        ('metrics.jsonl', b''),
        ('metrics.jsonl', b'{\n'),
        ('held_out-second.npz', b''),
        ('held_out-second.npz', b'PK\x03\x04 cut short'),
    ],
)
def test_damaged_runs_are_named(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(DataError, match=r"The run in '.*run' is damaged \("):
        read_run(copy)


RECORDS = ['summary.json', 'settings.json', 'plan.json', 'stages.json', 'environment.json', 'metrics.jsonl']


@pytest.mark.parametrize('name', [*RECORDS, 'held_out-second.npz'])
def test_a_record_that_is_another_than_when_the_run_finished_is_named(copy, name):
    """Whatever it says: a digit that became another one is still a number."""
    content = (copy / name).read_bytes()
    at = next(i for i in reversed(range(len(content))) if content[i : i + 1].isdigit())
    flip(copy / name, at)
    with pytest.raises(DataError, match='is damaged'):
        read_run(copy)


def test_records_cut_short_are_no_cheaper_run(copy):
    unseal(copy)
    lines = (copy / 'metrics.jsonl').read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"validation"' in line)
    earlier = max(i for i, line in enumerate(lines[:last]) if '"validation"' in line)
    (copy / 'metrics.jsonl').write_text(''.join(lines[: earlier + 1]))
    with pytest.raises(DataError, match='metrics.jsonl ends at .* tokens, summary.json says'):
        read_run(copy)


def test_reading_needs_no_torch(folder):
    code = (
        f'import sys; from lmplay.runs.finished import read_run; read_run({str(folder)!r}).loss()\n'
        'assert "torch" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
