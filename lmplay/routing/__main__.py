"""lmp_routing: what the experts of a trained model do, as pictures, tables and one page."""

import argparse
import sys

from ..cli import CommandParser, run_command
from ..errors import UserError
from ..files import user_path


def parser() -> CommandParser:
    p = CommandParser(
        'lmp_routing',
        description='Shows what the experts of a trained model do: which text goes where, how that '
        'developed, how far they have moved. Writes pictures, CSV tables and one page, index.html.',
        examples="""
            lmp_routing runs/gpt2_moe-moe_emergence
            lmp_routing runs/gpt2_moe-moe_emergence --data my_text.txt""",
    )
    p.add_argument(
        'checkpoint', metavar='CHECKPOINT', help="a run's directory (its best checkpoint) or a checkpoint"
    )
    p.add_argument(
        '--data',
        action='append',
        default=[],
        metavar='NAME',
        help="text to route: a dataset of the run's plan, a named dataset, or a local file; repeatable, each "
        "a domain of its own unless it names domains (default: the held-out text of the run's own plan)",
    )
    p.add_argument(
        '--max-bytes',
        type=int,
        metavar='N',
        help='how much text, all domains together (default: as in validation; 131072 of --data)',
    )
    p.add_argument(
        '--against',
        metavar='CHECKPOINT',
        help='another run or checkpoint, shown side by side on the same text: a collapsed one against a '
        'balanced one',
    )
    p.add_argument(
        '--snapshots',
        action='store_true',
        help='measure the load of the experts in every checkpoint of the run too; how many it keeps, --keep '
        'of lmp_trainer says',
    )
    p.add_argument(
        '--trace',
        metavar='PROMPT',
        help='let the model continue a text, and show which experts served each token of it',
    )
    p.add_argument('--out', metavar='DIR', help="output directory (default: routing in the run's directory)")
    p.add_exp()
    p.add_device()
    return p


def run(args: argparse.Namespace) -> None:
    if args.max_bytes is not None and args.max_bytes < 1:
        raise UserError(f'--max-bytes must be at least 1; given: {args.max_bytes}.')
    from .xray import xray

    print(
        xray(
            user_path(args.checkpoint),
            data=args.data,
            max_bytes=args.max_bytes,
            out=args.out and user_path(args.out),
            exp=args.exp,
            device=args.device,
            amp=args.amp,
            against=args.against and user_path(args.against),
            snapshots=args.snapshots,
            prompt=args.trace,
        ).page
    )


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_routing', lambda: run(parser().parse_args(argv)))


if __name__ == '__main__':
    sys.exit(main())
