"""--profile: a trace, a table, and the costliest operations told."""

import gzip
import json

import torch

from lmplay.device import Compute
from lmplay.train.profiling import StepProfile
from tests.helpers import assert_equal, weights


def test_steps_are_profiled_and_nothing_else_changes(train, capsys):
    code, run = train(exp='mean', flags=['--profile', '2'], stage={'steps': 5}, quiet=False)
    told = capsys.readouterr().err
    assert code == 0 and 'Profile of 2 steps, on the CPU:' in told and ' ms a step ' in told
    trace = json.loads(gzip.decompress((run / 'profile' / 'trace.json.gz').read_bytes()))
    assert len({e['name'] for e in trace['traceEvents'] if e['name'].startswith('ProfilerStep#')}) == 2
    assert 'aten::' in (run / 'profile' / 'table.txt').read_text()
    _, plain = train('plain', exp='mean', stage={'steps': 5})
    assert_equal(weights(run), weights(plain))


def test_a_stage_that_is_too_short_says_so(tmp_path):
    told: list[str] = []
    with StepProfile(2, tmp_path / 'profile', Compute(torch.device('cpu')), told.append) as profile:
        for _ in range(2):
            profile.step()
    assert len(told) == 1 and 'Nothing was profiled' in told[0] and not (tmp_path / 'profile').exists()


def test_a_number_of_steps_is_asked_for(train, capsys):
    code, run = train(exp='mean', flags=['--profile', '0'])
    assert (
        code == 2 and '--profile must be a whole number, from 1 to 1000; given: 0.' in capsys.readouterr().err
    )
