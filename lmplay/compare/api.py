"""Comparison from Python. The command lmp_compare is a thin layer over this."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ..cli import plain
from ..errors import UserError
from ..files import user_path
from .comparison import ComparisonSession, Request
from .finished import compare_runs
from .ladder import Climb, LadderSession
from .outcome import Comparison
from .prepare import parse_budget
from .rungs import TOKENS_PER_PARAMETER, parse_ladder
from .sequential import parse_seeds
from .sweep import TRIALS, parse_tune
from .verify import Verification
from .verify import verify as verified


def compare(
    *experiments: str,
    plan: str | Path = 'quickstart',
    seeds: int | str = 3,
    smallest_effect: float | None = None,
    stop_early: bool = False,
    budget: str | None = None,
    metric: Literal['loss', 'bits_per_byte'] = 'loss',
    settings: Sequence[str] = (),
    tune: str | None = None,
    trials: int | None = None,
    device: str = 'auto',
    amp: bool = False,
    yes: bool = False,
    jobs: int | None = None,
    launcher: Literal['local', 'slurm'] = 'local',
    slurm: str = '',
    out: str | Path | None = None,
    runs: Sequence[str | Path] = (),
    baseline: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Trains experiments side by side, or takes finished runs, and judges whether they differ from the
    baseline.

    experiments  the baseline first: a name or the path of a versions.py, with parameters of its own,
                 'gpt2ish,embed_dim=512'
    seeds        how many, or 'auto', 'auto:MAX', 'auto:open': added until the verdict is known, or, with a
                 smallest_effect, until no larger difference is possible
    budget       'tokens=20M', 'flops=1e15' or 'seconds=600' for each run (default: the plan's)
    settings     'KEY=VALUE' for every experiment
    tune         settings to search first, 'lr' or 'lr,weight_decay,warmup'; trials: of a search of several
    runs         judge finished runs in these directories or below instead of training; baseline: the label of
                 one of them
    say          is given each line about what happens (default: printed to standard error)

    The rest as the options of lmp_compare. Raises UserError for what cannot be compared.
    """
    if runs:
        folder = user_path(out) if out else None
        return compare_runs([str(r) for r in runs], metric=metric, baseline=baseline, out=folder)
    session = _session(
        experiments,
        plan=plan,
        seeds=seeds,
        smallest_effect=smallest_effect,
        stop_early=stop_early,
        budget=budget,
        metric=metric,
        device=device,
        amp=amp,
        yes=yes,
        tune=tune,
        trials=trials,
        settings=settings,
        jobs=jobs,
        launcher=launcher,
        slurm=slurm,
        out=out,
        say=say,
    )
    assert isinstance(session, ComparisonSession)
    return session.run()


def compare_at_scale(*experiments: str, ladder: str = '4', **options) -> Climb:
    """Trains experiments at several sizes and says how the compute they need for a loss compares.

    ladder   'RUNGS' or 'RUNGS:SPAN', the last rung being of the plan's size
    options  as of `compare`, without budget and runs; and tokens_per_parameter, 20 by default

    Raises UserError for what cannot be compared.
    """
    session = _session(experiments, ladder=ladder, **options)
    assert isinstance(session, LadderSession)
    return session.run()


def verify(
    report: str | Path, *, device: str = 'auto', say: Callable[[str], None] | None = None
) -> list[Verification]:
    """Trains one seed of a finished comparison again from what it kept, and compares; see `verify.verify`."""
    return verified(report, device=device, say=say or _say)


def rehearse(*experiments: str, **options) -> str:
    """What `compare` with these options would train: runs, seeds, budget, tokens, expected time.

    Checks all that can be refused before training, and writes nothing but the cache of tokenized data.
    """
    return _session(experiments, **options).dry_run()


def _session(
    experiments: Sequence[str],
    *,
    plan: str | Path = 'quickstart',
    seeds: int | str = 3,
    smallest_effect: float | None = None,
    ladder: str | None = None,
    tokens_per_parameter: float | None = None,
    budget: str | None = None,
    settings: Sequence[str] = (),
    tune: str | None = None,
    trials: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **others,
) -> ComparisonSession | LadderSession:
    """others: as of `Request`."""
    _check_numbers(jobs, tokens_per_parameter)
    keys = parse_tune(tune) if tune else []
    if trials is not None and (len(keys) < 2 or not 1 <= trials <= 1000):
        raise UserError(
            f'--trials takes a whole number from 1 to 1000, and goes with --tune of several settings; given: '
            f'{trials}.'
        )
    request = Request(
        experiments=list(experiments),
        plan=str(plan),
        seeds=parse_seeds(seeds, smallest_effect),
        budget=parse_budget(budget) if budget is not None else None,
        settings=list(settings),
        tune=keys,
        trials=trials or TRIALS,
        jobs=jobs,
        out=user_path(out) if out else None,
        ladder=parse_ladder(ladder) if ladder is not None else None,
        tokens_per_parameter=tokens_per_parameter or TOKENS_PER_PARAMETER,
        **others,
    )
    return (LadderSession if ladder is not None else ComparisonSession)(request, say or _say)


def _check_numbers(jobs: int | None, tokens_per_parameter: float | None) -> None:
    """Raises UserError for a number out of range."""
    if jobs is not None and not 1 <= jobs <= 1000:
        raise UserError(f'--jobs takes a whole number from 1 to 1000; given: {jobs}.')
    if tokens_per_parameter is not None and not 0 < tokens_per_parameter <= 1e6:
        raise UserError(
            f'--tokens-per-parameter takes a number above 0, up to 1e6; given: {tokens_per_parameter:g}.'
        )


def _say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)
