"""lmp_cleanmodel: a checkpoint without what only training needs."""

import argparse
import sys
from pathlib import Path

from ..cli import CommandParser, run_command
from ..errors import UserError
from ..files import user_path

# keys of state.json that are left out; the first three are written again
TRAINING = ('format', 'lmplay', 'sizes', 'logs', 'log_checksums', 'record', 'aliases')


def parser() -> CommandParser:
    p = CommandParser(
        'lmp_cleanmodel',
        description='Writes a checkpoint without what only training needs: the state of the optimizer. The '
        'result, a third of the size, serves lmp_generator, lmp_routing, lmp_export and --initial-model.',
        examples="""
            lmp_cleanmodel runs/gpt2ish-quickstart
            lmp_cleanmodel runs/gpt2ish-quickstart/checkpoints/last --model-out small""",
    )
    p.add_argument('model', metavar='RUN', help="a run's directory (its best checkpoint) or a checkpoint")
    p.add_argument('--model-out', metavar='DIR', help='a new folder (default: RUN_clean)')
    p.add_exp()
    return p


def clean(path: Path, out: Path, *, exp: str | None = None) -> Path:
    """Writes the checkpoint at `path` without its optimizer's state as a new folder; returns that.

    Raises UserError where it can't be read or written.
    """
    from ..runs.checkpoint import save_checkpoint
    from ..runs.checkpoints import find_checkpoint
    from ..runs.load import load_model

    if out.exists():
        raise UserError(f"'{out}' exists already; give --model-out a new folder.")
    model, state = load_model(find_checkpoint(path), exp=exp)
    kept = {key: value for key, value in state.items() if key not in TRAINING}
    save_checkpoint(out, model, None, kept)
    return out


def run(args: argparse.Namespace) -> None:
    path = user_path(args.model)
    out = user_path(args.model_out) if args.model_out else path.with_name(f'{path.name}_clean')
    print(clean(path, out, exp=args.exp))


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_cleanmodel', lambda: run(parser().parse_args(argv)))


if __name__ == '__main__':
    sys.exit(main())
