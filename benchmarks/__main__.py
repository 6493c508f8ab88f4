"""python -m benchmarks [SUBSET ...]: measures lmplay against its references, interleaved, in one run."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from .measure import BenchmarkError, environment

SUBSETS = {
    'step': "training step against the limit, nanoGPT's form, Hugging Face and the original's way of working",
    'overhead': "the trainer's loop against the bare step",
    'data': 'tokenizing, batches, opening prepared data',
    'moe': "gpt2_moe's layer against a dense MLP and a loop over experts",
    'some': "SoME's layer and key update against the published form",
    'generate': 'generation against Hugging Face',
    'checkpoint': 'saving and loading against torch.save',
    'startup': 'commands, and the first step on prepared data',
    'weak': 'one process and two, a core each: DDP, FSDP, and what communicating takes',
    'flat': 'a step later on against one at first: after many steps, with many documents, in a late stage',
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'python -m benchmarks',
        description='Measures lmplay against its references, interleaved, in one run.',
        epilog='subsets:\n'
        + '\n'.join(f'  {name:12}{text}' for name, text in SUBSETS.items())
        + '\n\npython -m benchmarks gpu [--help]: everything that only a GPU can show, in one command',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        'subset', nargs='*', metavar='SUBSET', help=f'any of {", ".join(SUBSETS)} (default: all)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the rows there, as a JSON list')
    parser.add_argument(
        '--quick',
        action='store_true',
        help='tiny shapes and short blocks: shows that it works, measures nothing',
    )
    parser.add_argument('--device', default='cpu', help='cpu (default) or cuda')
    parser.add_argument(
        '--threads',
        type=int,
        nargs='+',
        default=[None],
        metavar='N',
        help='OMP_NUM_THREADS (default: unset, even if exported)',
    )
    parser.add_argument(
        '--dtype', nargs='+', choices=['fp32', 'bf16'], default=['fp32', 'bf16'], help='default: both'
    )
    parser.add_argument(
        '--shape',
        nargs='+',
        metavar='LxD',
        help='layers x width of step, overhead, startup and checkpoint (default: 4x256)',
    )
    parser.add_argument('--context', type=int, metavar='N', help='tokens of a row (default: 256)')
    parser.add_argument('--rows', type=int, metavar='N', help='rows of a step (default: 8)')
    parser.add_argument('--nanogpt', metavar='DIR', help='a checkout of nanoGPT, for step to run itself')
    parser.add_argument('--original', metavar='DIR', help='a checkout of the original lmplay, likewise')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='contenders of step to run (default: all)')
    parser.add_argument('--rounds', type=int, metavar='N', help='blocks of each contender (default: 5)')
    parser.add_argument('--seconds', type=float, metavar='S', help='length of a block at least (default: 3)')
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['gpu']:
        from . import gpu

        return gpu.main(argv[1:])
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in args.subset:
        if name not in SUBSETS:
            parser.error(f"unknown subset '{name}'; there are {', '.join(SUBSETS)}")
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.seconds = args.seconds if args.seconds is not None else 0.0 if args.quick else 3.0
    args.tell = lambda text: print(text, file=sys.stderr, flush=True)
    args.failures = []
    rows: list[dict] = []
    for name in args.subset or SUBSETS:
        module = importlib.import_module(f'.{name}', 'benchmarks')
        before = environment()
        args.tell(f'{name}: load {before["load"][0]}')
        try:
            found = module.run(args)
        except BenchmarkError as error:
            args.tell(str(error))
            return 1
        rows += [{'subset': name, **row, 'device': args.device, 'environment': before} for row in found]
        show(name, found, module.COLUMNS)
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1))
    return 1 if args.failures else 0


def show(title: str, rows: list[dict], columns: list[str]) -> None:
    """A table; of a figure with a range, median (least - greatest)."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify='left')
    for column in columns:
        table.add_column(
            column.replace('_', ' '),
            justify='left' if column in ('name', 'dtype', 'shape', 'part', 'setting') else 'right',
        )
    for row in rows:
        table.add_row(*(cell(row, column) for column in columns))
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def cell(row: dict, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ''
    if not isinstance(value, (int, float)):
        return str(value)
    text = number(value)
    return (
        f'{text} ({number(row[f"{column}_min"])} - {number(row[f"{column}_max"])})'
        if f'{column}_min' in row
        else text
    )


def number(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


if __name__ == '__main__':
    sys.exit(main())
