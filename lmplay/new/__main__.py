"""lmp_new: begins a new experiment as a copy of another."""

import argparse
import os
import sys
from pathlib import Path

from ..cli import CommandParser, run_command
from ..errors import ExperimentError
from .copying import copy_experiment

EXPERIMENTS = Path(__file__).resolve().parent.parent / 'exp'


def make_parser() -> CommandParser:
    p = CommandParser(
        'lmp_new', description='Copies an experiment under a new name, ready to be changed and compared.'
    )
    p.add_argument(
        'name', metavar='NAME', help='of the new experiment: small letters, digits and underscores'
    )
    p.add_argument(
        '--from',
        metavar='EXP',
        dest='origin',
        default='gpt2ish',
        help='experiment to copy (default: %(default)s)',
    )
    p.add_argument(
        '--to',
        metavar='DIR',
        help='folder to put it in, which may be anywhere (default: lmplay/exp of this checkout)',
    )
    return p


def run(args: argparse.Namespace) -> int:
    folder = Path(args.to) if args.to else EXPERIMENTS
    if args.to is None and not (
        (EXPERIMENTS.parent.parent / 'setup.py').is_file() and os.access(EXPERIMENTS, os.W_OK)
    ):
        raise ExperimentError(
            f"lmplay is installed, not a checkout that you work in ('{EXPERIMENTS}'); give a folder for your "
            f'experiments: --to DIR.'
        )
    if not folder.is_dir():
        raise ExperimentError(f"No directory '{folder}' for the experiment.")
    new = copy_experiment(args.name, origin=args.origin, folder=folder)
    print(f'{new} is a copy of {args.origin}.', flush=True)
    exp = args.name if args.to is None else str(new / 'versions.py')
    from ..checks.contract import check

    wrong = 0
    for what, problem in check(exp):
        print(
            f'  {"ok   " if problem is None else "WRONG"} {what}' + (f': {problem}' if problem else ''),
            flush=True,
        )
        wrong += problem is not None
    print(f"""
Next:
  1. change {new / 'model.py'}
  2. lmp_trainer --exp {exp} --describe
  3. lmp_compare {args.origin} {exp} --plan quickstart --seeds 3
and write what you find into {new / 'README.md'}.""")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_new', lambda: run(make_parser().parse_args(argv)))


if __name__ == '__main__':
    sys.exit(main())
