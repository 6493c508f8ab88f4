"""lmp_new: starts a new experiment as a copy of another, and checks one after every edit."""

import argparse
import os
import sys
from pathlib import Path

from ..cli import CommandParser, run_command
from ..errors import ExperimentError, UserError
from ..files import user_path
from .copying import copy_experiment

EXPERIMENTS = Path(__file__).resolve().parent.parent / 'exp'
EXAMPLES = """\
lmp_new my_experiment                     copies gpt2ish to lmplay/exp/my_experiment
lmp_new my_llama --from modern --to ~/experiments
lmp_new --check my_experiment             after an edit: does the model still keep the contract?"""


def make_parser() -> CommandParser:
    p = CommandParser(
        'lmp_new',
        description='Copies an experiment under a new name, ready to be changed and compared.',
        examples=EXAMPLES,
    )
    p.add_argument(
        'name', nargs='?', metavar='NAME', help='new experiment: lower-case letters, digits and underscores'
    )
    p.add_argument(
        '--from',
        metavar='EXP',
        dest='origin',
        default='gpt2ish',
        help='experiment to copy (default: %(default)s)',
    )
    p.add_argument(
        '--all', action='store_true', help='copy all versions of that experiment, not the named one alone'
    )
    p.add_argument(
        '--to', metavar='DIR', help='folder to put it in, anywhere (default: lmplay/exp of this checkout)'
    )
    p.add_argument(
        '--check',
        metavar='EXP',
        help='check an existing experiment, a name or the path of a versions.py, and copy nothing',
    )
    return p


def run(args: argparse.Namespace) -> int:
    if (args.name is None) == (args.check is None):
        raise UserError('Give the name of a new experiment, or --check EXP. See lmp_new --help.')
    if args.check is not None:
        return report_checks(args.check)
    folder = user_path(args.to) if args.to else EXPERIMENTS
    checkout = (EXPERIMENTS.parent.parent / 'setup.py').is_file() and os.access(EXPERIMENTS, os.W_OK)
    if args.to is None and not checkout:
        raise ExperimentError(
            f"lmplay is installed, not a checkout that you work in ('{EXPERIMENTS}'); give a folder for your "
            f'experiments: --to DIR.'
        )
    if not folder.is_dir():
        raise ExperimentError(f"No directory '{folder}' for the experiment.")
    new = copy_experiment(args.name, origin=args.origin, folder=folder, all_versions=args.all)
    print(f'{new} is a copy of {args.origin}.', flush=True)
    exp = args.name if args.to is None else str(new / 'versions.py')
    code = report_checks(exp)
    print(f"""
Next:
  1. change {new / 'model.py'}
  2. lmp_new --check {exp}
  3. lmp_compare {args.origin} {exp} --plan quickstart --seeds 3
and write what you find into {new / 'README.md'}.""")
    return code


def report_checks(exp: str) -> int:
    """Prints each check of the contract; 1 where one fails, else 0."""
    from ..base.runner_list import find_runner
    from ..checks import check_experiment

    find_runner(exp)  # an unknown name is a mistake of the command, not of an experiment
    wrong = 0
    for found in check_experiment(exp):
        print(f'  {"ok   " if found.problem is None else "WRONG"} {found.check}', end='')
        print(f': {found.problem}' if found.problem else '', flush=True)
        wrong += found.problem is not None
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_new', lambda: run(make_parser().parse_args(argv)))


if __name__ == '__main__':
    sys.exit(main())
