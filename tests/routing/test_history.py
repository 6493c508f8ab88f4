"""What an X-ray reads of a run's metrics."""

from pathlib import Path

import numpy as np
import pytest

from lmplay.routing.history import lineage, read_history
from lmplay.runs.finished import StartedRun
from lmplay.runs.recorder import Recorder


@pytest.fixture
def run(tmp_path):
    recorder = Recorder(tmp_path)
    at = dict(samples=0, tokens=0, loss=1.0, accuracy=0.0)
    recorder.train({'stage': 'dense', 'step': 1, **at})
    for step in (2, 3):
        recorder.train(
            {
                'stage': 'moe',
                'step': step,
                **at,
                'expert_load': [[step / 10, 1 - step / 10], [0.5, 0.5]],
                'router_entropy': [float('nan'), step / 2],
                'three': [1, 2, 3],
                'scalar': 4,
            }
        )
        recorder.event(
            {
                'event': 'warning' if step == 2 else 'collapse',
                'stage': 'moe',
                'step': step,
                'message': f'at {step}',
                'level': 'info',
            }
        )
    recorder.event({'event': 'warm_start', 'stage': 'moe', 'step': 3, 'message': 'no alarm'})
    recorder.train({'stage': 'other', 'step': 4, **at, 'expert_load': [[1.0]]})
    recorder.train({'stage': 'ablation', 'step': 5, **at, 'expert_load': [[1.0, 0.0], [0.5, 0.5]]})
    recorder.event(
        {'event': 'collapse', 'stage': 'ablation', 'step': 5, 'message': 'of another model', 'level': 'info'}
    )
    recorder.close()
    return tmp_path


def test_points_of_the_models_own_stages_and_shape(run):
    history = read_history(run, 2, 2, ['moe', 'other', 'dense'])
    assert history.step.tolist() == [2, 3]
    assert np.allclose(history.load, [[[0.2, 0.8], [0.5, 0.5]], [[0.3, 0.7], [0.5, 0.5]]])
    assert 'router_entropy' in history.curves and not {'three', 'scalar', 'loss'} & set(history.curves)
    np.testing.assert_array_equal(history.curves['router_entropy'], [[np.nan, 1], [np.nan, 1.5]])
    assert history.alarms == [(2, 'warning', 'at 2'), (3, 'collapse', 'at 3')]


def test_a_long_run_has_means(tmp_path):
    recorder = Recorder(tmp_path)
    for step in range(1, 502):
        recorder.train(
            {
                'stage': 'moe',
                'step': step,
                'samples': step,
                'tokens': step,
                'loss': 1.0,
                'expert_load': [[step / 501, 1 - step / 501]],
                'router_entropy': [float('nan') if step == 1 else step],
            }
        )
    recorder.close()
    history = read_history(tmp_path, 1, 2, ['moe'])
    assert len(history.step) == 167 and history.step[:3].tolist() == [3, 6, 9] and history.step[-1] == 501
    assert np.allclose(history.load[:, 0, 0], (history.step - 1) / 501)
    assert np.allclose(history.curves['router_entropy'][:2, 0], [2.5, 5])


def test_nothing_recorded(run, tmp_path):
    assert read_history(run, 5, 2, ['moe']) is None
    assert read_history(tmp_path / 'elsewhere', 2, 2, ['moe']) is None


@pytest.mark.parametrize(
    'stage, expected',
    [
        ('a', ['a']),
        ('b', ['b', 'a']),
        ('c', ['c', 'b', 'a']),
        ('d', ['d', 'a']),
        ('e', ['e']),
        ('f', ['f', 'e']),
        ('gone', ['gone']),
    ],
)
def test_the_stages_that_trained_a_models_weights(stage, expected):
    sources = {
        'a': 'previous',
        'b': 'previous',
        'c': 'previous',
        'd': 'stage:a',
        'e': 'scratch',
        'f': 'previous',
    }
    stages = [{'name': name, 'init_from': source} for name, source in sources.items()]
    assert lineage(StartedRun(Path(), plan={}, settings={'stages': stages}), stage) == expected


def test_metrics_under_their_newer_names(tmp_path):
    """Names as in older runs come out; a model's own names do not hide the trainer's."""
    recorder = Recorder(tmp_path)
    at = {'stage': 'moe', 'samples': 0, 'tokens': 0, 'loss': 1.0}
    own = {'expert_load': [[0.2, 0.8]], 'busiest_share': [0.8], 'step': [7.0]}
    recorder.train(at | {'step': 3} | {f'model/{name}': value for name, value in own.items()})
    recorder.close()
    history = read_history(tmp_path, 1, 2, ['moe'])
    assert history.step.tolist() == [3] and history.load.tolist() == [[[0.2, 0.8]]]
    assert history.curves['busiest_share'].tolist() == [[0.8]] and 'step' not in history.curves
