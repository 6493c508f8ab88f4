"""python -m tests.faults: injects faults of every kind, as many as you have time for, and counts outcomes.

python -m tests.faults --rounds 2                     short: what CI runs
python -m tests.faults --rounds 50 --seed 7           hours
python -m tests.faults mutations --rounds 20
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lmplay.errors import unknown

from . import generated, long, machine, material, mutations, processes
from .outcomes import Found, Outcome, Tally

PARTS: dict[str, tuple[str, Callable[..., Iterator]]] = {
    'kills': ('SIGKILL at random moments of every command that writes', processes.kills),
    'machine': ('full disks, limits, removed files, clocks, two processes', machine.machines),
    'mutations': ('damaged files of runs, caches and comparisons', mutations.mutations),
    'generated': ('made-up plans, configs, flags and data sets', generated.inputs),
    'long': ('memory, open files and speed over many steps', long.long_run),
}


def campaign(folder: Path, parts: list[str], *, rounds: int, seed: int, tell: Callable[[str], None]) -> Tally:
    """Runs parts of the campaign in a folder; tell: receives a line about each bad outcome."""
    tally = Tally()
    with material.in_place(folder):
        made = material.make(folder)
        for part in parts:
            began = time.monotonic()
            for what, outcome, told in PARTS[part][1](
                made, folder / 'scratch' / part, rounds=rounds, seed=seed
            ):
                tally.add(Found(part, what, outcome, told))
                if outcome not in (Outcome.SURVIVED, Outcome.CLEAN):
                    tell(f'{outcome}: {part}: {what}\n    {told}')
                tally.seconds[part] = time.monotonic() - began
    return tally


def make_parser() -> argparse.ArgumentParser:
    listed = '\n'.join(f'  {name:12}{what}' for name, (what, _) in PARTS.items())
    parser = argparse.ArgumentParser(
        'python -m tests.faults',
        description=__doc__,
        epilog=f'parts:\n{listed}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('part', nargs='*', metavar='PART', help=f'any of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--rounds', type=int, default=2, metavar='N', help='rounds of each part (default: 2)')
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='seed of the faults (default: 0)')
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if wrong := [part for part in args.part if part not in PARTS]:
        parser.error(unknown('part', wrong[0], PARTS))
    with tempfile.TemporaryDirectory() as folder:
        tally = campaign(
            Path(folder),
            args.part or list(PARTS),
            rounds=args.rounds,
            seed=args.seed,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(tally.table())
    return 1 if tally.bad else 0


if __name__ == '__main__':
    sys.exit(main())
