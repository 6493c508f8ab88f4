"""Training from Python. The command lmp_trainer is a thin layer over this."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..base.runner_list import find_entry, find_runner
from ..errors import UserError, unknown
from ..runs.finished import FinishedRun, read_run
from .console import ConsoleReporter
from .plan import STAGE_KEYS, load_plan, parse_plan
from .resolve import Settings
from .session import Session

RUN_OPTIONS = [f.name for f in fields(Settings) if f.name not in ('exp', 'run_dir', 'overrides', 'model')]


def train(
    exp: str | None = None,
    *,
    plan: str | Path | dict = 'default',
    dataset: str | None = None,
    run_dir: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> FinishedRun:
    """Trains an experiment by a plan, or continues the run in `run_dir`, and returns the finished run.

    exp      name of an experiment, or the path of a versions.py (default: the plan's, else gpt2ish)
    plan     name of a shipped plan, path of a JSON file, or its content as a dict
    dataset  train on this in all stages
    run_dir  default: runs/EXPERIMENT-PLAN
    options  whatever lmp_trainer has a flag for, by its name: run options (device, amp, seed, keep, ...), keys of stages
             (lr, tokens, batch_size, ...) and parameters of the model (num_blocks, embed_dim, ...)

    Raises UserError where a command would exit with code 2, and where training had to stop (its state is saved).
    """
    session = make_session(exp, plan, dataset, run_dir, console=ConsoleReporter(quiet=quiet), **options)
    code = session.train()
    if code:
        raise UserError(f"Training in '{session.directory.path}' stopped early; its state is saved.")
    return read_run(session.directory.path)


def make_session(
    exp: str | None,
    plan: str | Path | dict,
    dataset: str | None,
    run_dir: str | Path | None,
    *,
    console: ConsoleReporter,
    **options: Any,
) -> Session:
    """The session of those options; see `train`. Raises UserError for an unknown experiment, plan or option."""
    parsed = parse_plan(plan) if isinstance(plan, dict) else load_plan(str(plan))
    if dataset:
        parsed.use_dataset(dataset)
    exp = exp or parsed.exp or 'gpt2ish'
    entry = find_entry(exp)
    settings = make_settings(exp, options, run_dir=run_dir or Path('runs') / f'{entry.name}-{parsed.name}')
    for index in range(len(parsed.stages)):
        parsed.stage(index, None, settings.overrides)  # a bad value is told before anything is opened
    return Session(parsed, settings, console=console)


def make_settings(exp: str, options: dict[str, Any], *, run_dir: str | Path) -> Settings:
    """Sorts options into those of the run, of its stages and of its model. Raises UserError for one that is none of them."""
    model_parameters = find_runner(exp).function().declared
    run, overrides, model = {}, {}, {}
    for name, value in options.items():
        if name in RUN_OPTIONS:
            run[name] = value
        elif name in STAGE_KEYS:
            overrides[name] = value
        elif name in model_parameters:
            model[name] = value
        else:
            raise UserError(
                unknown('option', name, [*RUN_OPTIONS, *STAGE_KEYS, *model_parameters], f'training {exp}')
            )
    _check(run, 'seed', lambda seed: 0 <= seed < 2**32, 'at least 0 and below 2^32')
    _check(run, 'keep', lambda keep: keep >= 1, 'at least 1')
    return Settings(exp=exp, run_dir=str(run_dir), overrides=overrides, model=model, **run)


def _check(options: dict, name: str, holds: Callable[[int], bool], allowed: str) -> None:
    value = options.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not holds(value)):
        raise UserError(f'{name} must be a whole number, {allowed}; given: {value!r}.')
