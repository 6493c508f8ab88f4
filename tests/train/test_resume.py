"""Resuming is exact: a run killed at any moment ends with the weights, the optimizer, the statistics and the data order of one
that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from lmplay.runs.recorder import read_metrics

# Times, speeds and sizes of a process are its own; everything else that is recorded must be equal.
OWN = ('seconds', 'tokens_per_second', 'memory', 'data_wait', 'mfu')


def statistics(run_dir):
    records = [{k: v for k, v in r.items() if k not in OWN} for r in read_metrics(run_dir)]
    return (
        [r for r in records if r['kind'] != 'event'],
        (run_dir / 'train_stats.csv').read_text(),
        (run_dir / 'samples.jsonl').read_text(),
    )


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, (dict, list, tuple)):
        assert len(a) == len(b)
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_equal(a[key], b[key])
    else:
        assert a == b


def assert_same_run(a, b):
    ours, theirs = (load_file(d / 'checkpoints/last/model.safetensors') for d in (a, b))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    moments = [torch.load(d / 'checkpoints/last/optimizer.pt', weights_only=True) for d in (a, b)]
    assert_equal(*moments)
    for ours, theirs in zip(statistics(a), statistics(b)):
        assert ours == theirs
    progress = [json.loads((d / 'checkpoints/last/state.json').read_text())['progress'] for d in (a, b)]
    mine, others = ({k: v for k, v in p.items() if not k.endswith('seconds')} for p in progress)
    assert mine == others


def start(plan, run_dir, cache, *flags):
    arguments = [
        sys.executable,
        '-m',
        'lmplay.train',
        '--training-plan',
        str(plan),
        '--run-dir',
        str(run_dir),
        '--device',
        'cpu',
        '--quiet',
        *flags,
    ]
    return subprocess.Popen(
        arguments,
        env=os.environ | {'LMP_DATASETS': str(cache), 'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after_records(process, run_dir, records):
    """SIGKILL once the run has written that many lines, wherever it is then."""
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        file = run_dir / 'metrics.jsonl'
        if file.exists() and file.read_bytes().count(b'\n') >= records:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()


@pytest.fixture
def two_stages(tiny_plan):
    """Two stages of one and a half epochs each, the second on a padded mixture with another rate; dropout on."""
    return tiny_plan(
        {
            'first': {'dataset': 'mine', 'steps': None, 'epochs': 1.5, 'batch_size': 5},
            'second': {
                'dataset': None,
                'mix': {'mine': 3, 'other': 1},
                'steps': 14,
                'packing': 'pad',
                'lr': 0.003,
                'row_length': 24,
            },
        },
        model={
            'num_blocks': 1,
            'embed_dim': 16,
            'num_heads': 2,
            'max_len': 32,
            'tokenizer': 'bytes',
            'ff_dropout': 0.3,
        },
    )


def with_other(plan, corpus):
    content = json.loads(plan.read_text())
    content['datasets']['other'] = {'loader': 'text', 'path': str(corpus)}
    content['stages'] = {
        n: {k: v for k, v in s.items() if v is not None} for n, s in content['stages'].items()
    }
    plan.write_text(json.dumps(content))
    return plan


FLAGS = ('--validation-interval', '60', '--save-interval', '35', '--optimizer')


@pytest.mark.parametrize('optimizer, seed', [('adamw', 1), ('muon', 2)])
def test_killed_twice_is_as_not_killed(two_stages, corpus, cache, tmp_path, optimizer, seed):
    plan = with_other(two_stages, corpus)
    whole = start(plan, tmp_path / 'whole', cache, *FLAGS, optimizer)
    assert whole.wait() == 0, whole.stderr.read()
    records = len(read_metrics(tmp_path / 'whole'))
    rng = random.Random(seed)
    for at in sorted(rng.sample(range(3, records - 3), 2)):
        kill_after_records(
            start(plan, tmp_path / 'killed', cache, *FLAGS, optimizer), tmp_path / 'killed', at
        )
    last = start(plan, tmp_path / 'killed', cache, *FLAGS, optimizer)
    assert last.wait() == 0, last.stderr.read()
    assert_same_run(tmp_path / 'whole', tmp_path / 'killed')


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_stop_saves_where_it_is_and_resumes(two_stages, corpus, cache, tmp_path, number, code):
    plan = with_other(two_stages, corpus)
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


def test_two_processes_cannot_train_in_one_directory(two_stages, corpus, cache, tmp_path):
    plan = with_other(two_stages, corpus)
    first = start(plan, tmp_path / 'run', cache, '--epochs', '200')
    while first.poll() is None and not (tmp_path / 'run/metrics.jsonl').exists():
        time.sleep(0.01)
    second = start(plan, tmp_path / 'run', cache)
    assert second.wait() == 2 and 'Another process is training' in second.stderr.read()
    first.kill()
    first.wait()


def test_a_finished_run_given_again_trains_nothing(two_stages, corpus, cache, tmp_path):
    plan = with_other(two_stages, corpus)
    assert start(plan, tmp_path / 'run', cache).wait() == 0
    before = statistics(tmp_path / 'run')
    assert start(plan, tmp_path / 'run', cache).wait() == 0
    assert statistics(tmp_path / 'run') == before
