"""How many runs a machine trains at a time."""

import pytest

from lmplay.compare.launcher import Launcher
from lmplay.errors import UserError

GIB = 2**30


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    def make(device='cpu', *, jobs=None, cores=4, free=100, needs=1):
        monkeypatch.setattr('os.cpu_count', lambda: cores)
        monkeypatch.setattr('lmplay.device.available_memory', lambda: free * GIB)
        monkeypatch.setattr('lmplay.compare.launcher.devices_of', lambda names: names.split(','))
        made = Launcher('local', '', device, jobs, tmp_path, print)
        made.memory = needs * GIB
        return made

    return make


@pytest.mark.parametrize(
    'given, expected',
    [
        ({}, 4),
        ({'cores': 2}, 2),
        ({'free': 8, 'needs': 3}, 2),
        ({'free': 1, 'needs': 3}, 1),
        ({'jobs': 7}, 7),
        ({'device': 'cuda:0,cuda:1'}, 2),
    ],
)
def test_runs_at_a_time(launcher, given, expected):
    made = launcher(**given)
    assert made.at_a_time == expected and made.pool([]).running == [None] * expected


def test_runs_that_are_timed_have_a_device_each(launcher):
    made = launcher()
    made.check_timed('--budget seconds')
    assert made.at_a_time == 1
    with pytest.raises(UserError, match='--jobs 2, and 1 device'):
        launcher(jobs=2).check_timed('--budget seconds')


def test_time_is_shared_by_runs_on_one_device(launcher):
    assert launcher().abreast == 1 and launcher('cuda:0,cuda:1').abreast == 2
