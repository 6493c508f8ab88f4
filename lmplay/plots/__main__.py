"""lmp_plotstats: curves of runs and their differences, as a picture."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import CommandParser, run_command
from ..errors import DataError, UserError, unknown
from ..files import user_path
from ..original import PLOTSTATS, in_new_words

if TYPE_CHECKING:
    from .curves import Curves

PLACES = ('runs', 'out_gpt')
COMPARED = re.compile(r'/(?:runs|tuning)/([^/]+)-([0-9a-f]{10})/seed-(\d+)$')  # where lmp_compare keeps runs


def parser() -> CommandParser:
    p = CommandParser(
        'lmp_plotstats',
        description='Draws loss and accuracy of runs, and their differences from one of them.',
        examples="""
            lmp_plotstats runs/*
            lmp_plotstats runs/a runs/b --baseline a --out curves.png""",
    )
    p.add_argument(
        'runs',
        nargs='*',
        metavar='RUN',
        help="a run's directory, the original lmplay's *_train_stats.csv, or a directory that holds some "
        '(default: all under ./runs and ./out_gpt)',
    )
    p.add_argument(
        '--out',
        metavar='FILE|DIR',
        help="a .png, .svg or .pdf, or a directory (default: the run's; for several runs, the current one)",
    )
    p.add_argument(
        '--x', choices=('samples', 'tokens', 'seconds'), default='samples', help='x axis (default: samples)'
    )
    p.add_argument(
        '--smooth',
        type=int,
        metavar='N',
        help='training points that a smoothed one averages; 1: none (default: a fiftieth of them)',
    )
    p.add_argument(
        '--baseline',
        metavar='RUN',
        help='the run that differences are taken from: its name or directory (default: the longest)',
    )
    p.add_argument(
        '--metric',
        action='append',
        default=[],
        metavar='NAME',
        help='loss, perplexity or any other recorded number; repeatable (default: loss, accuracy, and Gini '
        'and entropy where recorded)',
    )
    return p


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_plotstats', lambda: print(run(parse(argv))))


def parse(argv: list[str] | None) -> argparse.Namespace:
    return parser().parse_args(in_new_words(sys.argv[1:] if argv is None else argv, PLOTSTATS))


def run(args: argparse.Namespace) -> Path:
    from .plot import plot

    if args.smooth is not None and args.smooth < 1:
        raise UserError(f'--smooth takes a whole number of points, at least 1; given: {args.smooth}.')
    runs, baseline = _read(args)
    if differing := _differing(runs, by_bytes=args.metric == ['bits_per_byte']):
        print(differing, file=sys.stderr)
    return plot(
        runs,
        output(args, len(runs)),
        x=args.x,
        metrics=args.metric,
        smoothing=args.smooth,
        baseline=baseline,
    )


def _read(args: argparse.Namespace) -> tuple[list['Curves'], 'Curves | None']:
    """(the runs asked for, each once and under a unique name; the baseline, where one was given)."""
    from ..runs.finished import what_changed
    from ..runs.recorder import METRICS
    from .curves import find_curves

    places = args.runs or [p for p in PLACES if Path(p).is_dir()]
    if not places:
        raise DataError('No run given, and there is neither ./runs nor ./out_gpt here.')
    # what a run of a comparison printed lies beside its directory, and is matched by the same pattern
    logs = {p for p in places if p.endswith('.log') and Path(p.removesuffix('.log')).is_dir()}
    runs = {run.source: run for place in places if place not in logs for run in find_curves(place)}
    _name_by_experiment(list(runs.values()))
    baseline = _baseline(args.baseline, runs) if args.baseline else None
    names = [run.name for run in runs.values()]
    for i, run in enumerate(runs.values()):
        if names.count(names[i]) > 1:  # equal names get a number, in the order given
            run.name = f'{names[i]} ({names[:i].count(names[i]) + 1})'
        if changed := what_changed(run.source, METRICS):
            print(f'{run.name}: {changed}; its curves may be wrong.', file=sys.stderr)
        if run.empty:
            print(f'{run.name} has recorded no points yet; it is left out.', file=sys.stderr)
    return list(runs.values()), baseline


def _name_by_experiment(runs: list['Curves']) -> None:
    """Names the runs of comparisons by experiment and seed; by digest as well where two would be equal."""
    found = {run.source: match for run in runs if (match := COMPARED.search(run.source.as_posix()))}
    names = [match.expand(r'\1 seed \3') for match in found.values()]
    for run in runs:
        if match := found.get(run.source):
            name = match.expand(r'\1 seed \3')
            run.name = match.expand(r'\1 (\2) seed \3') if names.count(name) > 1 else name


def _baseline(given: str, runs: dict[Path, 'Curves']) -> 'Curves':
    """The run of that name or at that place, which joins `runs` where it is not among them."""
    from .curves import find_curves

    if named := [run for run in runs.values() if run.name == given]:
        return named[0]
    if not user_path(given).exists():
        raise UserError(unknown('baseline', given, (run.name for run in runs.values())))
    found = find_curves(given)
    if len(found) > 1:
        raise UserError(
            f"--baseline takes one run; '{given}' holds {len(found)}: {', '.join(run.name for run in found)}."
        )
    return runs.setdefault(found[0].source, found[0])


def _differing(runs: list['Curves'], *, by_bytes: bool) -> str:
    """A warning where two runs were evaluated on different text or tokens, else empty."""
    tokens, text = (_first_two(runs, name) for name in ('evaluation', 'text'))
    if by_bytes:
        names, what, way_out = text, 'text', ''
    else:
        names, what = tokens, 'tokens, because of their data or their tokenizer'
        way_out = '' if text else ' --metric bits_per_byte compares them.'
    if not names:
        return ''
    return (
        f'{" and ".join(names)} were evaluated on different {what}: they are drawn in panels of their own, '
        f'as the difference of their losses says nothing about the models.{way_out}'
    )


def _first_two(runs: list['Curves'], fingerprint: str) -> list[str]:
    """The names of two runs that differ in a fingerprint; none where all agree."""
    first: dict[str, str] = {}
    for run in runs:
        first.setdefault(run.fingerprints.get(fingerprint, ''), run.name)
    return list(first.values())[:2] if len(first) > 1 else []


def output(args: argparse.Namespace, runs: int) -> Path:
    if args.out is None:
        one = runs == 1 and len(args.runs) == 1 and user_path(args.runs[0]).is_dir()
        return (user_path(args.runs[0]) if one else Path()) / 'curves.png'
    out = user_path(args.out)
    return out / 'curves.png' if out.is_dir() or not out.suffix or args.out.endswith('/') else out


if __name__ == '__main__':
    sys.exit(main())
