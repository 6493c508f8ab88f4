"""lmp_export: a trained model in a format for use elsewhere."""

import argparse
import sys

from ..cli import CommandParser, run_command


def parser() -> CommandParser:
    p = CommandParser(
        'lmp_export',
        description='Writes a trained model in a format for use elsewhere.',
        examples="""
            lmp_export runs/gpt2ish-quickstart --to my_model        for AutoModelForCausalLM
            lmp_export runs/gpt2ish-quickstart --to weights --format safetensors""",
    )
    p.add_argument(
        'checkpoint',
        metavar='RUN',
        help="a run's directory (its best checkpoint), a checkpoint, or a model file",
    )
    p.add_argument('--to', required=True, metavar='DIR', help='a new folder')
    p.add_argument(
        '--format',
        default='huggingface',
        metavar='NAME',
        help='huggingface (the default), for any model: a folder for AutoModelForCausalLM and AutoTokenizer; '
        'safetensors, for any model: its tensors, and model.json, which says how to build it; '
        'moe-emergence, for GPT-2 and mixtures upcycled from it: the files of that study',
    )
    p.add_exp()
    return p


def run(args: argparse.Namespace) -> None:
    from .formats import export

    for file in export(args.checkpoint, args.to, format=args.format, exp=args.exp):
        print(file)


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_export', lambda: run(parser().parse_args(argv)))


if __name__ == '__main__':
    sys.exit(main())
