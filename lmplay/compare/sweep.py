"""A search over several settings: the same trials, seeds and length for every experiment.

Each experiment gets a study of Optuna's, with the same seed of its sampler, and asks it for ROUND trials at a
time. Nothing of a study is kept: a search that is resumed asks a fresh one, tells it the losses of the runs
that are finished, and so comes to the same trials. What did best is then trained beside the plan's own
settings with seeds that the search did not use, and chosen only where it is told apart from them.
"""

import copy
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, unknown
from ..runs.finished import FinishedRun
from .folder import Folder, read_job
from .judge import compare_pair
from .launcher import Launcher
from .prepare import Prepared, set_keys
from .runner import Job, run_jobs
from .statistics import ALPHA
from .tuning import SEEDS, part_of

TRIALS = 20  # of each experiment, besides the plan's own settings
ROUND = 5  # trials that are asked for before the losses of any of them are known
SEED = 987_653  # of the runs of a search, and of its sampler
GRID = 5  # values of a single setting


class Range(NamedTuple):
    low: float
    high: float
    log: bool = False


RANGES = {  # lr as a factor of the plan's
    'lr': Range(0.125, 8.0, log=True),
    'weight_decay': Range(1e-3, 1.0, log=True),
    'warmup': Range(0.0, 0.3),
    'final_lr': Range(0.0, 0.5),
    'clip': Range(0.1, 10.0, log=True),
}


def parse_tune(text: str) -> list[str]:
    """'lr,weight_decay' as a list. Raises UserError for what can't be searched, and where Optuna lacks."""
    keys = [key.strip().replace('-', '_') for key in text.split(',')]
    for key in keys:
        if key not in RANGES:
            raise UserError(unknown('setting', key, RANGES, '--tune'))
    if len(set(keys)) < len(keys):
        raise UserError(f'--tune names a setting twice: {text}.')
    if len(keys) > 1 and importlib.util.find_spec('optuna') is None:
        raise UserError('--tune with several settings needs the package optuna: pip install lmplay[sweep].')
    return keys


@dataclass
class Candidate:
    """Settings that are tried with an experiment. keys: none for the plan's own; loss: of its run."""

    prepared: Prepared
    keys: dict[str, float]
    job: Job
    loss: float | None = None


@dataclass
class Sweep:
    """The search of one experiment."""

    owner: Prepared
    folder: Folder
    keys: list[str]
    trials: int
    tried: list[Candidate] = field(default_factory=list)

    def rounds(self) -> Iterator[list[Candidate]]:
        """Candidates to train; their losses are asked for before the next are made."""
        asked = self._grid() if len(self.keys) == 1 else self._asked()
        yield self._add([{}])
        for values in asked:
            yield self._add(values)

    def _add(self, values: Sequence[dict[str, float]]) -> list[Candidate]:
        new = [self._candidate(keys, len(self.tried) + i) for i, keys in enumerate(values)]
        self.tried += new
        return new

    def _candidate(self, keys: dict[str, float], number: int) -> Candidate:
        prepared = copy.deepcopy(self.owner)
        set_keys(prepared, keys)
        name = f'{self.owner.spec.label} trial {number}'
        return Candidate(prepared, keys, self.folder.job(prepared, 'tuning', SEED, name))

    def _grid(self) -> Iterator[list[dict[str, float]]]:
        (key,) = self.keys
        low, high, log = RANGES[key]
        values = np.geomspace(low, high, GRID) if log else np.linspace(low, high, GRID)
        yield [{key: rounded(value)} for value in values]

    def _asked(self) -> Iterator[list[dict[str, float]]]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=2 * ROUND, constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        for first in range(0, self.trials, ROUND):
            known = len(self.tried)
            asked = [study.ask() for _ in range(min(ROUND, self.trials - first))]
            values = [
                {
                    key: trial.suggest_float(key, low, high, log=log)
                    for key, (low, high, log) in self._ranges()
                }
                for trial in asked
            ]
            yield [{key: rounded(value) for key, value in own.items()} for own in values]
            for trial, candidate in zip(asked, self.tried[known:]):
                failed = candidate.loss is None
                state = optuna.trial.TrialState.FAIL if failed else None
                study.tell(trial, candidate.loss, state=state)

    def _ranges(self) -> list[tuple[str, Range]]:
        return [(key, RANGES[key]) for key in self.keys]

    def finalists(self) -> tuple[Candidate, Candidate]:
        """The plan's own settings, and what did best of all others. Raises UserError where none worked."""
        own, *others = self.tried
        usable = [c for c in others if c.loss is not None]
        if not usable:
            raise UserError(
                f'No settings worked for {self.owner.spec.label}: with all, a trial diverged or stopped.'
            )
        return own, min(usable, key=lambda c: c.loss if c.loss is not None else math.inf)

    def confirmation(self) -> list[list[Job]]:
        """The runs of both finalists with seeds that the search did not use."""
        label = self.owner.spec.label
        names = (f"{label}, the plan's settings, seed", f'{label}, the best of the search, seed')
        return [
            [self.folder.job(c.prepared, 'tuning', seed, f'{name} {seed}') for seed in SEEDS]
            for c, name in zip(self.finalists(), names)
        ]


def rounded(value: float) -> float:
    return float(f'{value:.3g}')


def run_sweep(
    prepared: Sequence[Prepared],
    folder: Folder,
    launcher: Launcher,
    *,
    keys: list[str],
    trials: int,
    metric: str,
) -> tuple[dict, list[str]]:
    """Gives every experiment the settings that its search chooses; returns (its log, by label; what to know
    before trusting the verdict). Raises UserError where no settings are usable."""
    sweeps = [Sweep(p, folder, keys, trials) for p in prepared]
    number = sum(len(jobs) for p in prepared for _, jobs in expected(p, folder, keys=keys, trials=trials))
    folder.say(f'Searching {", ".join(keys)}, the same for every experiment, at full length: {number} runs.')
    for candidates in zip(*(sweep.rounds() for sweep in sweeps)):
        _train([c.job for own in candidates for c in own], candidates, folder, launcher)
        for candidate in (c for own in candidates for c in own):
            candidate.loss = _loss(candidate.job, metric)
    finals = [sweep.confirmation() for sweep in sweeps]
    pairs = [sweep.finalists() for sweep in sweeps]
    _train([job for final in finals for jobs in final for job in jobs], pairs, folder, launcher)
    log, notes = {}, []
    for sweep, final in zip(sweeps, finals):
        log[sweep.owner.spec.label] = found = judged(sweep, [_runs(jobs) for jobs in final], metric)
        set_keys(sweep.owner, found['chosen'])
        text = said(sweep.owner.spec.label, found)
        folder.say(text)
        notes.append(text)
    return log, notes


def _train(
    jobs: list[Job], candidates: Sequence[Sequence[Candidate]], folder: Folder, launcher: Launcher
) -> None:
    for own in candidates:
        for candidate in own:
            folder.write_plan(candidate.prepared)
    run_jobs(jobs, launcher.pool(jobs), say=folder.say)


def _runs(jobs: Sequence[Job]) -> list[FinishedRun | None]:
    return [part_of(read_job(job), tuning=True) if job.finished else None for job in jobs]


def _loss(job: Job, metric: str) -> float | None:
    """On the documents for tuning; None where the run stopped early or diverged."""
    (run,) = _runs([job])
    loss = math.nan if run is None else run.loss(metric)
    return loss if math.isfinite(loss) else None


def judged(sweep: Sweep, finals: Sequence[Sequence[FinishedRun | None]], metric: str) -> dict[str, Any]:
    """The log of a search: every trial, how both finalists did with other seeds, and what is chosen."""
    own, best = sweep.finalists()
    losses = [[run.loss(metric) if run else math.nan for run in runs] for runs in finals]
    usable = [all(map(math.isfinite, values)) for values in losses]
    found: dict[str, Any] = {}
    if all(usable):
        baseline, other = ([run for run in runs if run is not None] for runs in finals)
        found = compare_pair(baseline, other, metric, ALPHA)
    elif not any(usable):
        raise UserError(
            f'No settings worked for {sweep.owner.spec.label}: those that did best diverged later.'
        )
    better = found['verdict'] == 'better' if found else usable[1]
    return {
        'kind': 'sweep',
        'keys': sweep.keys,
        'trials': [{'settings': c.keys, 'loss': c.loss} for c in sweep.tried],
        'best': best.keys,
        'losses': [[v if math.isfinite(v) else None for v in values] for values in losses],
        'sd': [float(np.std(v, ddof=1)) if good else None for v, good in zip(losses, usable)],
        'told_apart': better,
        'chosen': best.keys if better else own.keys,
        'seed': SEED,
        'seeds': list(SEEDS),
        'alpha': ALPHA,
    } | {k: found[k] for k in ('mean', 'low', 'high') if k in found}


def told_settings(keys: Mapping[str, float]) -> str:
    """'lr × 2, warmup 0.05', or "the plan's own"."""
    return (
        ', '.join(f'{k} × {v:g}' if k == 'lr' else f'{k} {v:g}' for k, v in keys.items()) or "the plan's own"
    )


def said(label: str, log: Mapping[str, Any]) -> str:
    """What the search showed, in a sentence."""
    best = told_settings(log['best'])
    begin, others = f'{label}: of {len(log["trials"]) - 1} trials {best} did best', len(log['seeds'])
    if log['told_apart']:
        edges = [key for key, value in log['best'].items() if at_an_edge(value, RANGES[key])]
        edge = f' At the edge of what is tried: {", ".join(edges)}.' if edges else ''
        return f"{begin}, and better than the plan's settings with {others} other seeds.{edge}"
    return f"{begin}, but {others} other seeds do not tell it from the plan's settings, which are kept."


def at_an_edge(value: float, tried: Range) -> bool:
    """Whether a value lies in the first or last twentieth of its range."""
    low, high = (math.log(v) if tried.log else v for v in tried[:2])
    place = ((math.log(value) if tried.log else value) - low) / (high - low)
    return not 0.05 < place < 0.95


def expected(
    p: Prepared, folder: Folder, *, keys: list[str], trials: int
) -> list[tuple[Prepared, list[Job]]]:
    """The runs of a search before it is known what they try; of the later ones, none is there yet."""
    number = GRID if len(keys) == 1 else trials
    known = [folder.job(p, 'tuning', seed, 'own') for seed in (SEED, *SEEDS)]
    others = [copy.copy(known[0]) for _ in range(number + len(SEEDS))]
    for job in others:
        job.folder = folder.path / 'tuning' / 'unknown'
    return [(p, [*known, *others])]
