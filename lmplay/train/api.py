"""Training from Python. The command lmp_trainer is a thin layer over this."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..base.runner_list import find_entry, find_runner
from ..errors import UserError, unknown
from ..runs.finished import FinishedRun, read_run
from ..runs.trackers import find_trackers
from .console import ConsoleReporter
from .plan import PARALLEL, STAGE_KEYS, Plan, default_plan, load_plan, parse_plan
from .resolve import Settings
from .session import Session

RUN_OPTIONS = [f.name for f in fields(Settings) if f.name not in ('exp', 'run_dir', 'overrides', 'model')]


def train(
    exp: str | None = None,
    *,
    plan: str | Path | dict | None = None,
    dataset: str | None = None,
    run_dir: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> FinishedRun:
    """Trains an experiment by a plan, or continues the run in `run_dir`, and returns the finished run.

    exp      name of an experiment, or the path of a versions.py (default: the plan's, else gpt2ish)
    plan     name of a shipped plan, path of a JSON file, or its content as a dict (default: "quickstart";
             with an experiment, "default")
    dataset  train on this in all stages
    run_dir  default: runs/EXPERIMENT-PLAN
    options  whatever lmp_trainer has a flag for, by its name: run options (device, amp, seed, keep, ...),
             keys of stages (lr, tokens, batch_size, ...) and parameters of the model (num_blocks, ...)

    Raises UserError where a command would exit with code 2, and where training stopped; its state is saved.
    """
    plan = default_plan(exp) if plan is None else plan
    parsed = parse_plan(plan) if isinstance(plan, dict) else load_plan(str(plan))
    run, stage, model = sort_options(parsed.experiment(exp), options)
    session = make_session(
        exp,
        parsed,
        dataset=dataset,
        run_dir=run_dir,
        console=ConsoleReporter(quiet=quiet),
        run=run,
        stage=stage,
        model=model,
    )
    code = session.train()
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"Training in '{session.directory.path}' stopped early; its state is saved.")
    return read_run(session.directory.path)


def sort_options(exp: str, options: dict[str, Any]) -> tuple[dict, dict, dict]:
    """(options of the run, keys of stages, parameters of the model).

    Raises UserError for one that is none of them.
    """
    model_parameters = find_runner(exp).function().declared
    sorted_options: tuple[dict, dict, dict] = ({}, {}, {})
    for name, value in options.items():
        for kind, names in zip(sorted_options, (RUN_OPTIONS, STAGE_KEYS, model_parameters)):
            if name in names:
                kind[name] = value
                break
        else:
            allowed = [*RUN_OPTIONS, *STAGE_KEYS, *model_parameters]
            raise UserError(unknown('option', name, allowed, f'training {exp}'))
    return sorted_options


def make_session(
    exp: str | None,
    plan: Plan,
    *,
    dataset: str | None,
    run_dir: str | Path | None,
    console: ConsoleReporter,
    run: dict[str, Any],
    stage: dict[str, Any],
    model: dict[str, Any],
) -> Session:
    """The session of a plan with options of the run, keys for every stage, and parameters of the model; see
    `train`.

    Raises UserError for an unknown experiment or a bad value, before anything is opened.
    """
    if dataset:
        plan.use_dataset(dataset)
    if exp is not None:
        _check_clash(exp, plan)
    exp = plan.experiment(exp)
    entry = find_entry(exp)
    for index in range(len(plan.stages)):
        plan.stage(index, None, stage)
    _check_run_options(run)
    folder = run_dir or Path('runs') / f'{entry.name}-{plan.name}'
    settings = Settings(exp=exp, run_dir=str(folder), overrides=stage, model=model, **run)
    return Session(plan, settings, console=console)


def _check_run_options(run: dict[str, Any]) -> None:
    """Raises UserError for options of a run that are out of range, or that exclude each other."""
    _check(run, 'seed', lambda seed: 0 <= seed < 2**32, 'at least 0 and below 2^32')
    _check(run, 'keep', lambda keep: keep >= 1, 'at least 1')
    _check(run, 'profile', lambda steps: 1 <= steps <= 1000, 'from 1 to 1000')
    if run.get('parallel', 'ddp') not in PARALLEL:
        raise UserError(unknown('kind', run['parallel'], PARALLEL, '--parallel'))
    if run.get('parallel', 'ddp') != 'ddp' and run.get('check_grads'):
        raise UserError(
            f'--check-grads reads whole gradients; it goes with --parallel ddp, not {run["parallel"]}.'
        )
    if not 0 < run.get('rank_timeout', 1) < 1e6:
        raise UserError(f'--rank-timeout must be a number of seconds above 0; given: {run["rank_timeout"]}.')
    find_trackers(run.get('report_to', ()))
    if run.get('reset_history') and run.get('initial_model'):
        raise UserError(
            '--reset-history starts from the weights in --run-dir, --initial-model from others; give one.'
        )


def _check_clash(exp: str, plan: Plan) -> None:
    """Raises UserError where the plan's first stage names another experiment than the one asked for."""
    name, first = next(iter(plan.stages.items()))
    if first.get('exp') and find_entry(first['exp']).name != find_entry(exp).name:
        raise UserError(
            f'--exp names {exp}, and stage "{name}" of plan {plan.where} names {first["exp"]}; leave one out.'
        )


def _check(options: dict, name: str, holds: Callable[[int], bool], allowed: str) -> None:
    value = options.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not holds(value)):
        raise UserError(f'--{name} must be a whole number, {allowed}; given: {value!r}.')
