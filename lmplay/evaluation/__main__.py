"""lmp_eval: tasks of lm-evaluation-harness, asked of a trained model."""

import argparse
import sys

from ..cli import CommandParser, cell, console, run_command
from ..errors import UserError


def make_parser() -> CommandParser:
    p = CommandParser(
        'lmp_eval',
        description='Asks a trained model the tasks of lm-evaluation-harness. Its scores, by item, go to '
        'evaluation/ in the run, and into reports of lmp_compare.',
        examples="""
            lmp_eval runs/mine                                        the three tasks that come with lmplay
            lmp_eval runs/mine --tasks agreement my_tasks/ arc_easy   ours, a folder of task files, lm_eval's
            lmp_eval runs/mine --tasks bits_per_byte --data book.txt  on a text of your own""",
    )
    p.add_argument(
        'checkpoint', metavar='RUN', help="a run's directory (its best checkpoint) or a checkpoint"
    )
    _add_tasks(p)
    p.add_argument(
        '--out', metavar='DIR', help="output directory (default: evaluation in the run's directory)"
    )
    p.add_exp()
    p.add_device()
    size = 'sequences of a batch (%(default)s)'
    p.add_argument('--batch-size', type=int, default=32, metavar='N', help=size)
    return p


def _add_tasks(p: CommandParser) -> None:
    p.add_argument(
        '--tasks',
        nargs='+',
        metavar='TASK',
        help='cloze, agreement, bits_per_byte (the default is these three); names of lm_eval, also with *; '
        'task files (.yaml) and folders of them. A task file may run code: name those you trust',
    )
    p.add_argument(
        '--data',
        action='append',
        default=[],
        metavar='NAME',
        help="text for cloze and bits_per_byte: a dataset of the run's plan, a named dataset, or a local "
        "file; repeatable (default: the held-out text of the run's own plan)",
    )
    p.add_argument(
        '--max-bytes',
        type=int,
        metavar='N',
        help='how much text bits_per_byte scores, all domains together (131072)',
    )
    p.add_argument('--limit', type=int, metavar='N', help='only the first N items of each task')
    shots = 'examples before each item, of tasks that have some'
    p.add_argument('--num-fewshot', type=int, metavar='N', help=shots)


def run(args: argparse.Namespace) -> None:
    for name in ('max_bytes', 'limit', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} must be at least 1; given: {value}.')
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UserError(f'--num-fewshot must be 0 or above; given: {args.num_fewshot}.')
    from .api import SHIPPED, evaluate
    from .texts import MAX_BYTES

    tasks = [name for given in args.tasks or SHIPPED for name in given.split(',') if name]
    results = evaluate(
        args.checkpoint,
        tasks,
        data=args.data,
        max_bytes=args.max_bytes or MAX_BYTES,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        batch_size=args.batch_size,
        device=args.device,
        amp=args.amp,
        exp=args.exp,
        out=args.out,
    )
    _print(results)


def _print(results: dict) -> None:
    from rich.table import Table

    table = Table('task', 'metric', 'score', '± standard error', 'items')
    for column in table.columns[2:]:
        column.justify = 'right'
    for name, result in results.items():
        for metric, scores in result.metrics.items():
            error = '' if scores.error is None else f'{scores.error:.4f}'
            table.add_row(cell(name), cell(metric), f'{scores.value:.4f}', error, f'{result.items:,}')
            for part, value in scores.parts.items() if len(scores.parts) > 1 else ():
                table.add_row('', cell(f'  {part}'), f'{value:.4f}', '', '')
    console().print(table)


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_eval', lambda: run(make_parser().parse_args(argv)))


if __name__ == '__main__':
    sys.exit(main())
