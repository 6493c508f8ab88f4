"""Trains the search for a learning rate, the same for every experiment. `tuning` judges it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .folder import Folder, read_job
from .launcher import Launcher
from .prepare import Prepared, scale_lr
from .runner import Job, run_jobs
from .sweep import expected, run_sweep
from .tuning import FACTORS, SEEDS, choose, part_of, search_sentence

if TYPE_CHECKING:
    from .comparison import Request


@dataclass
class Trial:
    """One learning rate tried with an experiment, with each seed of the search. rates: by stage."""

    owner: Prepared
    prepared: Prepared
    factor: float
    rates: list[float]
    jobs: list[Job]


def trials_of(p: Prepared, folder: Folder) -> list[Trial]:
    """What the search tries with an experiment."""
    found = []
    for factor in FACTORS:
        trial = copy.deepcopy(p)
        scale_lr(trial, factor)
        rates = [stage['lr'] for stage in trial.plan['stages'].values()]
        name = f'{p.spec.label} lr x {factor:g} seed'
        jobs = [folder.job(trial, 'tuning', seed, f'{name} {seed}') for seed in SEEDS]
        found.append(Trial(p, trial, factor, rates, jobs))
    return found


def tune(
    request: 'Request', prepared: Sequence[Prepared], folder: Folder, launcher: Launcher
) -> tuple[dict, list[str]]:
    """The search that was asked for; see `search` and `run_sweep`."""
    if request.tune == ['lr']:
        return search(prepared, folder, launcher, metric=request.metric)
    keys, trials = request.tune, request.trials
    return run_sweep(prepared, folder, launcher, keys=keys, trials=trials, metric=request.metric)


def runs_of(request: 'Request', p: Prepared, folder: Folder) -> list[tuple[Prepared, list[Job]]]:
    """The runs of an experiment's search; none where none was asked for."""
    if not request.tune:
        return []
    if request.tune == ['lr']:
        return [(t.prepared, t.jobs) for t in trials_of(p, folder)]
    return expected(p, folder, keys=request.tune, trials=request.trials)


def search(
    prepared: Sequence[Prepared], folder: Folder, launcher: Launcher, *, metric: str
) -> tuple[dict, list[str]]:
    """Gives every experiment the learning rate that the search chooses for it; returns (its log, by label;
    what to know before trusting the verdict). Raises UserError where no rate is usable."""
    say: Callable[[str], None] = folder.say
    trials = [trial for p in prepared for trial in trials_of(p, folder)]
    say(
        f'Trying {len(FACTORS)} learning rates with each experiment, each with {len(SEEDS)} seeds at '
        f'full length: {sum(len(t.jobs) for t in trials)} runs.'
    )
    for trial in trials:
        folder.write_plan(trial.prepared)
    for_seed = [job for jobs in zip(*(t.jobs for t in trials)) for job in jobs]
    run_jobs(for_seed, launcher.pool(for_seed), say=say)
    log, notes = {}, []
    for p in prepared:
        log[p.spec.label] = found = _choose_rate(p, [t for t in trials if t.owner is p], metric)
        text = search_sentence(p.spec.label, found, found['chosen'])
        say(text)
        notes += [text] if found['best'] != 1.0 else []
    return log, notes


def _choose_rate(p: Prepared, trials: list[Trial], metric: str) -> dict:
    """Gives an experiment its learning rate; returns the log of its search."""
    runs = {
        t.factor: [part_of(read_job(j), tuning=True) if j.finished else None for j in t.jobs] for t in trials
    }
    log = choose(p.spec.label, runs, metric)
    rates = {t.factor: t.rates for t in trials}
    for point in log['points']:
        point['lr'] = rates[point['factor']]
    log['chosen'] = rates[log['factor']]
    if log['factor'] != 1.0:
        scale_lr(p, log['factor'])
    return log
