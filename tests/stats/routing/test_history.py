"""What an X-ray reads of a run's metrics."""
import numpy as np
import pytest

from lmplay.stats.recorder import Recorder
from lmplay.stats.routing.history import read_history


@pytest.fixture
def run(tmp_path):
    recorder = Recorder(tmp_path)
    at = dict(samples=0, tokens=0, loss=1.0, accuracy=0.0)
    recorder.train({'stage': 'dense', 'step': 1, **at})
    for step in (2, 3):
        recorder.train({'stage': 'moe', 'step': step, **at, 'expert_load': [[step / 10, 1 - step / 10], [0.5, 0.5]],
                        'router_entropy': [float('nan'), step / 2], 'three': [1, 2, 3], 'scalar': 4})
        recorder.event({'event': 'warning' if step == 2 else 'collapse', 'step': step, 'message': f'at {step}', 'level': 'info'})
    recorder.event({'event': 'warm_start', 'step': 3, 'message': 'no alarm'})
    recorder.train({'stage': 'other', 'step': 4, **at, 'expert_load': [[1.0]]})
    recorder.close()
    return tmp_path


def test_points_of_the_models_own_shape(run):
    history = read_history(run, 2, 2)
    assert history.step.tolist() == [2, 3]
    assert np.allclose(history.load, [[[0.2, 0.8], [0.5, 0.5]], [[0.3, 0.7], [0.5, 0.5]]])
    assert 'router_entropy' in history.curves and not {'three', 'scalar', 'loss'} & set(history.curves)
    np.testing.assert_array_equal(history.curves['router_entropy'], [[np.nan, 1], [np.nan, 1.5]])
    assert history.alarms == [(2, 'warning', 'at 2'), (3, 'collapse', 'at 3')]


def test_nothing_recorded(run, tmp_path):
    assert read_history(run, 5, 2) is None
    assert read_history(tmp_path / 'elsewhere', 2, 2) is None
