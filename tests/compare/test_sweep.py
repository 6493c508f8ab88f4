"""A search over several settings: the same for all, resumed without a file of its own, honest about noise."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lmplay.compare import sweep
from lmplay.compare.__main__ import main
from lmplay.compare.comparison import ComparisonSession, Request
from lmplay.compare.folder import Folder
from lmplay.compare.prepare import apply_budget, parse_spec, prepare
from lmplay.compare.sweep import GRID, RANGES, ROUND, Sweep, judged, parse_tune, said
from lmplay.errors import UserError
from lmplay.runs.finished import FinishedRun
from lmplay.train.__main__ import main as lmp_trainer
from lmplay.train.plan import load_plan

KEYS = ['lr', 'weight_decay', 'warmup']


@pytest.fixture
def prepared(tmp_path, write_plan):
    plan = load_plan(str(write_plan(tmp_path)))
    found = prepare([parse_spec('gpt2ish', [])], plan, device='cpu', amp=False, progress=lambda line: None)
    apply_budget(found[0], None)
    return found[0]


def searched(prepared, folder: Path, loss, *, keys=KEYS, trials=11, stop=99) -> Sweep:
    """A search whose runs would end with loss(settings)."""
    found = Sweep(prepared, Folder(folder, 'plan', print), keys, trials)
    for number, candidates in enumerate(found.rounds()):
        if number == stop:
            break
        for candidate in candidates:
            candidate.loss = loss(candidate.keys)
    return found


def bowl(keys) -> float | None:
    if keys.get('lr', 1) > 6:
        return None  # diverged
    return abs(math.log(keys.get('lr', 1) / 2)) + keys.get('warmup', 0.1)


def test_a_search_that_is_resumed_comes_to_the_same_trials(prepared, tmp_path):
    whole = searched(prepared, tmp_path, bowl)
    tried = [c.keys for c in whole.tried]
    assert len(tried) == 12 and tried[0] == {} and len({str(k) for k in tried}) == 12
    for keys in tried[1:]:
        assert all(RANGES[key].low <= keys[key] <= RANGES[key].high for key in KEYS)
    assert [c.keys for c in searched(prepared, tmp_path, bowl, stop=2).tried] == tried[: 1 + 2 * ROUND]
    other = searched(prepared, tmp_path, lambda keys: keys.get('warmup', 1.0))
    assert [c.keys for c in other.tried][: 1 + 2 * ROUND] == tried[: 1 + 2 * ROUND]
    assert [c.keys for c in other.tried] != tried  # what was learned differs
    own, best = whole.finalists()
    assert own.keys == {} and best.loss == min(c.loss for c in whole.tried[1:] if c.loss is not None)


def test_a_trial_trains_with_its_settings(prepared, tmp_path):
    found = searched(prepared, tmp_path, bowl, trials=1)
    stage = found.tried[1].prepared.plan['stages']['only']
    keys = found.tried[1].keys
    assert stage['lr'] == pytest.approx(0.006 * keys['lr'], rel=1e-4) and stage['warmup'] == keys['warmup']
    assert found.tried[0].prepared.plan == prepared.plan
    assert len({c.prepared.digest for c in found.tried}) == 2


def test_a_single_setting_gets_a_grid(prepared, tmp_path):
    found = searched(prepared, tmp_path, bowl, keys=['warmup'])
    assert [c.keys for c in found.tried[1:]] == [{'warmup': v} for v in (0.0, 0.075, 0.15, 0.225, 0.3)]
    assert len(found.tried) == 1 + GRID


def runs_with(*shifts: float) -> list[FinishedRun]:
    """A finished run for each seed, whose losses are shifted by so many nats per token."""
    tokens = np.full(60, 20.0)
    noise = np.random.default_rng(0).normal(0, 0.05, (len(shifts), 60))
    columns = {'domain': np.full(60, 'a'), 'hash': np.arange(60, dtype=np.uint64), 'tokens': tokens}
    columns |= {'bytes': 4 * tokens}
    made = dict(plan={}, settings={}, stages={}, environment={}, records=[])
    return [
        FinishedRun(
            Path(),
            **made,
            summary={'seed': seed},
            documents=columns | {'loss': (3 + own + noise[seed]) * tokens},
        )
        for seed, own in enumerate(shifts)
    ]


def test_the_best_is_chosen_only_where_other_seeds_tell_it_apart(prepared, tmp_path):
    baseline = runs_with(0.0, 0.02, -0.01)
    found = searched(prepared, tmp_path, bowl)
    best = found.finalists()[1].keys
    log = judged(found, [baseline, runs_with(-0.3, -0.31, -0.29)], 'loss')
    assert log['told_apart'] and log['chosen'] == best and log['high'] < 0 and len(log['trials']) == 12
    assert 'and better than the plan' in said('mine', log)
    log = judged(found, [baseline, runs_with(-0.3, -0.02, 0.01)], 'loss')
    assert not log['told_apart'] and log['chosen'] == {} and log['sd'][1] > 0
    assert 'which are kept' in said('mine', log)
    log = judged(found, [[None, *baseline[1:]], baseline], 'loss')
    assert log['chosen'] == best and log['sd'][0] is None
    with pytest.raises(UserError, match='diverged later'):
        judged(found, [[None], [None]], 'loss')
    with pytest.raises(UserError, match='No settings worked for gpt2ish'):
        searched(prepared, tmp_path, lambda keys: None).finalists()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--tune', 'lr,weight_deca'], "Did you mean 'weight_decay'"),
        (['--tune', 'lr,lr'], 'names a setting twice'),
        (['--tune', 'lr', '--trials', '3'], 'goes with --tune of several settings'),
        (['--trials', '3'], 'goes with --tune of several settings'),
        (['--tune', 'lr,warmup', '--trials', '0'], 'from 1 to 1000'),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, message):
    assert main(['gpt2ish', 'modern', *arguments]) == 2
    assert message in capsys.readouterr().err


def test_optuna_is_asked_for_where_it_lacks(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert parse_tune('weight-decay') == ['weight_decay']
    with pytest.raises(UserError, match=r'pip install lmplay\[sweep\]'):
        parse_tune('lr,warmup')


class InProcess:
    """A pool that trains its jobs here, one after the other."""

    def __init__(self, jobs):
        self.waiting, self.done = [job for job in jobs if not job.finished], []

    def __bool__(self):
        return bool(self.waiting or self.done)

    def launch(self):
        if self.waiting:
            job = self.waiting.pop(0)
            trained = [*job.arguments, '--run-dir', str(job.folder), '--device', 'cpu', '--quiet']
            job.process = type('Ended', (), {'returncode': lmp_trainer(trained)})
            self.done.append(job)
            yield job

    def collect(self):
        while self.done:
            yield self.done.pop()

    def terminate(self):
        pass


def test_a_search_from_first_to_last(tmp_path, monkeypatch, write_plan):
    monkeypatch.setattr(sweep, 'SEEDS', sweep.SEEDS[:2])
    monkeypatch.setattr('lmplay.compare.runner.POLL_SECONDS', 0.0)
    plan = write_plan(tmp_path, tokens=600, batch_size=8, mini_batch_size=8, validation_bytes=30_000)
    plan.write_text(plan.read_text().replace('"validation_fraction": 0.1', '"validation_fraction": 0.3'))
    told: list[str] = []
    request = Request(['gpt2ish', 'gpt2ish,embed_dim=16'], str(plan), 1, tune=['lr', 'warmup'], trials=2)
    request.device, request.out = 'cpu', tmp_path / 'out'

    def session():
        made = ComparisonSession(request, told.append)
        monkeypatch.setattr(made.launcher, 'pool', InProcess)
        return made

    assert 'In all: 16 runs to train' in session().dry_run()
    found = session().run()
    logs = json.loads((tmp_path / 'out' / 'tuning.json').read_text())
    assert {tuple(log['keys']) for log in logs.values()} == {('lr', 'warmup')}
    first, second = ([t['settings'] for t in log['trials']] for log in logs.values())
    assert first == second and len(first) == 3
    assert sum(line.endswith('training on .') for line in told) == 16
    page = found.report.read_text()
    assert 'Every trial' in page and 'lr × ' in page and 'None' not in page.split('id="tuning"')[1]
    told.clear()
    session().run()
    assert not [line for line in told if 'training on' in line]
