"""lmp_plotstats: curves of runs and their differences, as a picture."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import CommandParser, run_command
from ..errors import DataError, UserError, unknown

if TYPE_CHECKING:
    from .plot import Run

PLACES = ('runs', 'out_gpt')


def parser() -> CommandParser:
    p = CommandParser(
        'lmp_plotstats',
        description='Draws loss and accuracy of runs, and their differences against one of them.',
    )
    p.add_argument(
        'runs',
        nargs='*',
        metavar='RUN',
        help="a run's directory, the original lmplay's *_train_stats.csv, or a directory that holds some "
        '(all under ./runs or ./out_gpt unless given)',
    )
    p.add_argument(
        '--out',
        metavar='FILE|DIR',
        help='where the picture goes: .png, .svg or .pdf, or a directory '
        "(curves.png in the run's directory; of several runs, in this one)",
    )
    p.add_argument(
        '--x', choices=('samples', 'tokens', 'seconds'), default='samples', help='horizontal axis (samples)'
    )
    p.add_argument(
        '--smooth',
        type=int,
        metavar='N',
        help='training points that a smoothed one averages (a fiftieth of them); 1: none',
    )
    p.add_argument(
        '--baseline',
        metavar='RUN',
        help='what differences are taken against: the name or directory of a run (the longest)',
    )
    p.add_argument(
        '--metric',
        action='append',
        default=[],
        metavar='NAME',
        help='what to draw: loss, perplexity or any other number that was recorded; repeatable (loss and accuracy)',
    )
    return p


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_plotstats', lambda: print(draw(parser().parse_args(argv))))


def draw(args: argparse.Namespace) -> Path:
    from .plot import find_runs, plot

    if args.smooth is not None and args.smooth < 1:
        raise UserError(f'--smooth takes a whole number of points, at least 1; given: {args.smooth}.')
    places = args.runs or [p for p in PLACES if Path(p).is_dir()]
    if not places:
        raise DataError('No run given, and there is neither ./runs nor ./out_gpt here.')
    runs = {run.source: run for place in places for run in find_runs(place)}
    baseline = _baseline(args.baseline, runs) if args.baseline else None
    names = [run.name for run in runs.values()]
    for i, run in enumerate(runs.values()):  # equal names are told apart by a number, in the order given
        if names.count(names[i]) > 1:
            run.name = f'{names[i]} ({names[:i].count(names[i]) + 1})'
        if run.empty:
            print(f'{run.name} has recorded no points yet; it is left out.', file=sys.stderr)
    by_bytes = args.metric == ['bits_per_byte']
    if differing := _differing(runs.values(), 'text' if by_bytes else 'evaluation'):
        way_out = (
            '' if by_bytes or _differing(runs.values(), 'text') else ' --metric bits_per_byte compares them.'
        )
        print(
            f'{" and ".join(differing)} were evaluated on different {"text" if by_bytes else "tokens, by their data or their tokenizer"}: what '
            f'their losses differ by says nothing about the models.{way_out}',
            file=sys.stderr,
        )
    return plot(
        list(runs.values()),
        output(args, len(runs)),
        x=args.x,
        metrics=args.metric,
        smoothing=args.smooth,
        baseline=baseline,
    )


def _differing(runs: Iterable['Run'], what: str) -> list[str]:
    """The names of two runs that differ in a fingerprint at their end ('evaluation', 'text'); none where all agree, or don't say."""
    from ..runs.fingerprints import STAGES

    first: dict[str, str] = {}
    for run in runs:
        try:
            last = list(json.loads((run.source / STAGES).read_text(encoding='utf-8')).values())[-1]
            first.setdefault(last['fingerprints'][what], run.name)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not a run of ours
    return list(first.values())[:2] if len(first) > 1 else []


def _baseline(given: str, runs: dict[Path, 'Run']) -> 'Run':
    """The run of that name or at that place, which joins `runs` where it is not among them."""
    from .plot import find_runs

    if named := [run for run in runs.values() if run.name == given]:
        return named[0]
    if not Path(given).exists():
        raise UserError(unknown('baseline', given, (run.name for run in runs.values())))
    found = find_runs(given)
    if len(found) > 1:
        raise UserError(
            f"--baseline takes one run; '{given}' holds {len(found)}: {', '.join(run.name for run in found)}."
        )
    return runs.setdefault(found[0].source, found[0])


def output(args: argparse.Namespace, runs: int) -> Path:
    if args.out is None:
        one = runs == 1 and len(args.runs) == 1 and Path(args.runs[0]).is_dir()
        return (Path(args.runs[0]) if one else Path()) / 'curves.png'
    out = Path(args.out)
    return out / 'curves.png' if out.is_dir() or not out.suffix or args.out.endswith('/') else out


if __name__ == '__main__':
    sys.exit(main())
