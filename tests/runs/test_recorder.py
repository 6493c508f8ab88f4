import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmplay
from lmplay.errors import DataError
from lmplay.runs.recorder import LOGS, Recorder, read_metrics, to_json


def point(samples, **more):
    return {
        'stage': 'a',
        'step': samples,
        'samples': samples,
        'tokens': 10 * samples,
        'seconds': samples / 2,
        'loss': 1 / samples,
        'accuracy': 0.25,
    } | more


def logs(folder):
    return {name: (Path(folder) / name).read_bytes() for name in LOGS}


def record(recorder, first, last):
    for n in range(first, last):
        recorder.train(point(n) | {'model/expert_load': torch.tensor([[0.25, 0.75]])})
        if n % 3 == 0:
            recorder.validation(point(n, domains={'code': {'loss': 1.5}}))
            recorder.sample({'prompt': 'one\n"', 'truth': 'zwei ü', 'prediction': '漢'})
        if n % 4 == 0:
            recorder.event({'message': 'something', 'step': n})


def test_busiest_and_dead_experts_follow_from_the_load(tmp_path):
    load = torch.tensor([[0.25, 0.75, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    recorder = Recorder(tmp_path)
    recorder.train(point(5) | {'model/expert_load': load})
    recorder.validation(point(5) | {'model/expert_load': [[1.0, math.nan]]})
    recorder.train(point(6, expert_load=load))  # measured by no model
    recorder.close()
    first, *others = read_metrics(tmp_path)
    assert first['model/busiest_share'] == [0.75, 0.25] and first['model/dead_experts'] == [2, 0]
    assert not any('model/busiest_share' in record or 'busiest_share' in record for record in others)


def test_what_is_written_is_read_back(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.train(point(5, loss=torch.tensor(0.5), accuracy=None, load=torch.tensor([[1.0, 0.0]])))
    recorder.validation(point(5, domains={'code': {'loss': 1.0, 'tokens': 3}}))
    recorder.close()
    train, validation = read_metrics(tmp_path)
    assert train['kind'] == 'train' and train['loss'] == 0.5 and train['load'] == [[1.0, 0.0]]
    assert validation['kind'] == 'validation' and validation['domains'] == {
        'code': {'loss': 1.0, 'tokens': 3}
    }
    assert (tmp_path / 'train_stats.csv').read_text() == 'iter,accuracy,loss,tokens\n5,,0.5,50\n'
    assert (tmp_path / 'validate_stats.csv').read_text() == 'iter,accuracy,loss,tokens\n5,0.25,0.2,50\n'


@settings(max_examples=20, deadline=None)
@given(saved=st.integers(1, 12), lost=st.integers(0, 9), after=st.integers(0, 9), torn=st.binary(max_size=9))
def test_resumed_logs_equal_uninterrupted_ones(tmp_path_factory, saved, lost, after, torn):
    whole, resumed = tmp_path_factory.mktemp('whole'), tmp_path_factory.mktemp('resumed')
    recorder = Recorder(whole)
    record(recorder, 1, saved + after)
    recorder.close()

    recorder = Recorder(resumed)
    record(recorder, 1, saved)
    offsets = json.loads(json.dumps(recorder.offsets()))
    record(recorder, saved, saved + lost)
    recorder.close()
    with open(resumed / 'metrics.jsonl', 'ab') as file:
        file.write(torn)
    recorder = Recorder(resumed, offsets=offsets)
    record(recorder, saved, saved + after)
    recorder.close()
    assert logs(whole) == logs(resumed)


def test_offsets_survive_a_kill(tmp_path):
    script = textwrap.dedent("""
        import json, os, signal, sys
        from lmplay.runs.recorder import Recorder
        recorder = Recorder(sys.argv[1])
        for n in range(1, 50):
            recorder.train({'samples': n, 'tokens': n, 'loss': 1.0, 'accuracy': 0.5})
        print(json.dumps(recorder.offsets()), flush=True)
        for n in range(50, 60):
            recorder.train({'samples': n, 'tokens': n, 'loss': 1.0, 'accuracy': 0.5})
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, '-c', script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    offsets = json.loads(done.stdout)
    for name, length in offsets.items():
        assert os.path.getsize(tmp_path / name) >= length
    Recorder(tmp_path, offsets=offsets).close()
    assert [r['samples'] for r in read_metrics(tmp_path)] == list(range(1, 50))


def test_a_fresh_start_removes_the_earlier_history(tmp_path):
    recorder = Recorder(tmp_path)
    record(recorder, 1, 9)
    recorder.close()
    Recorder(tmp_path).close()
    assert read_metrics(tmp_path) == []
    assert (tmp_path / 'samples.jsonl').read_bytes() == b''
    assert (tmp_path / 'train_stats.csv').read_text() == 'iter,accuracy,loss,tokens\n'


def test_a_log_that_was_shortened_keeps_its_whole_lines(tmp_path, caplog):
    recorder = Recorder(tmp_path)
    record(recorder, 1, 9)
    offsets = recorder.offsets()
    recorder.close()
    os.truncate(tmp_path / 'metrics.jsonl', offsets['metrics.jsonl'] - 5)
    (tmp_path / 'train_stats.csv').unlink()
    recorder = Recorder(tmp_path, offsets=offsets)
    recorder.train(point(9))
    recorder.close()
    assert 'is shorter' in caplog.text
    assert read_metrics(tmp_path)[-1]['samples'] == 9
    assert (tmp_path / 'train_stats.csv').read_text().splitlines()[0] == 'iter,accuracy,loss,tokens'


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def same(a, b):
    """Equal but for what is not finite, which is None in b."""
    if isinstance(a, float) and not math.isfinite(a):
        return b is None
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(st.dictionaries(st.text(max_size=5).filter(lambda k: k != 'non_finite'), values, max_size=5))
def test_lines_are_strict_json(given):
    def refuse(constant):
        raise AssertionError(constant)

    line = to_json(given)
    assert '\n' not in line
    read = json.loads(line, parse_constant=refuse)
    bad = read.pop('non_finite', [])
    assert same(given, read)
    constants = {}
    for key, value in given.items():
        json.loads(json.dumps(value), parse_constant=lambda _, key=key: constants.setdefault(key))
    assert bad == list(constants)


def test_non_finite_fields_are_named(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.train(
        point(
            1, loss=float('nan'), grad_norm=torch.tensor(float('inf')), load=torch.tensor([1.0, float('nan')])
        )
    )
    recorder.close()
    (read,) = read_metrics(tmp_path)
    assert read['loss'] is None and read['grad_norm'] is None and read['load'] == [1.0, None]
    assert read['non_finite'] == ['loss', 'grad_norm', 'load']
    assert (tmp_path / 'train_stats.csv').read_text().splitlines()[1] == '1,0.25,,10'


def test_torn_and_damaged_lines(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"kind": "train"}\n{"kind": "tr')
    assert read_metrics(tmp_path) == [{'kind': 'train'}]
    for line in ('{"kind": "tr', '7', '[1]', 'null'):
        (tmp_path / 'metrics.jsonl').write_text(line + '\n{"kind": "train"}\n')
        with pytest.raises(DataError, match='line 1 is not a record'):
            read_metrics(tmp_path)
    assert read_metrics(tmp_path / 'nothing') == []


def test_rare_records_are_on_the_disk_at_once(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.train(point(1))
    recorder.event({'message': 'here', 'level': 'warning'})
    assert [r['kind'] for r in read_metrics(tmp_path)] == ['train', 'event']
    recorder.close()


def test_events_are_logged_at_their_level(tmp_path, caplog):
    recorder = Recorder(tmp_path)
    recorder.event({'message': 'step skipped', 'level': 'warning'})
    recorder.close()
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [('WARNING', 'step skipped')]


def test_tensorboard_resumes_without_repeating(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    recorder = Recorder(tmp_path, report_to=['tensorboard'], config={'lr': 1e-3})
    for n in range(1, 5):
        recorder.train(point(n))
    offsets = recorder.offsets()
    for n in range(5, 9):
        recorder.train(point(n, loss=99.0))
    recorder.close()
    recorder = Recorder(tmp_path, report_to=['tensorboard'], offsets=offsets)
    for n in range(5, 7):
        recorder.train(point(n, load=torch.tensor([[0.2, 0.8]])))
    recorder.validation(point(6, domains={'code': {'loss': 2.0}}))
    recorder.close()
    events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars('train/loss')] == [
        (n, pytest.approx(1 / n)) for n in range(1, 7)
    ]
    assert [e.value for e in events.Scalars('validation/domains/code/loss')] == [2.0]
    assert [e.value for e in events.Scalars('train/load/max')] == [pytest.approx(0.8)] * 2
    Recorder(tmp_path, report_to=['tensorboard']).close()
    events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert events.Tags()['scalars'] == []


def test_wandb_offline_continues_its_run(tmp_path):
    pytest.importorskip('wandb')
    script = textwrap.dedent("""
        import sys
        from lmplay.runs.recorder import Recorder
        recorder = Recorder(sys.argv[1], report_to=['wandb'], run_name='hello', config={'lr': 1e-3})
        recorder.train({'samples': 1, 'tokens': 1, 'loss': 1.0, 'load': [[0.2, 0.8]]})
        offsets = recorder.offsets()
        recorder.close()
        recorder = Recorder(sys.argv[1], report_to=['wandb'], offsets=offsets)
        recorder.train({'samples': 2, 'tokens': 2, 'loss': 0.5})
        recorder.close()
    """)
    subprocess.run(
        [sys.executable, '-c', script, str(tmp_path)],
        check=True,
        capture_output=True,
        env=os.environ | {'WANDB_MODE': 'offline', 'PYTHONPATH': str(Path(lmplay.__file__).parent.parent)},
    )
    run_id = (tmp_path / 'wandb_id').read_text()
    assert len(list((tmp_path / 'wandb').glob(f'offline-run-*/run-{run_id}.wandb'))) >= 1
