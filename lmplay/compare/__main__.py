"""lmp_compare: did the change help? Trains experiments side by side and says what may be concluded."""

import argparse
import sys
from pathlib import Path

from ..cli import CommandParser, run_command
from ..errors import UserError

EXAMPLES = """\
lmp_compare gpt2ish my_experiment --plan quickstart --seeds 3
lmp_compare gpt2ish gpt2ish,embed_dim=512 --plan quickstart --budget flops=1e15 --device cuda --jobs 2
lmp_compare gpt2ish my_experiment --plan ladder_small --ladder 4
lmp_compare --runs runs/a runs/b runs/c              judge finished runs
lmp_compare --verify compare/DIR                     train one seed again: is the result the same?
lmp_compare --leaderboard runs                       every finished run below, best first
To resume an interrupted comparison, rerun the same command."""


MODES = ('experiments', 'runs', 'baseline', 'leaderboard', 'verify', 'dry_run')  # what to do, and with what
OF_LADDERS = ('ladder', 'tokens_per_parameter')


def make_parser() -> CommandParser:
    p = CommandParser(
        'lmp_compare',
        description='Compares experiments with a baseline, the first one given, and writes a report.',
        examples=EXAMPLES,
    )
    p.add_argument(
        'experiments',
        nargs='*',
        metavar='EXP[,KEY=VALUE...]',
        help='the baseline, then one experiment or more: a name or the path of a versions.py, with model '
        'parameters and training options of its own',
    )
    _add_training_options(p)
    _add_reading_options(p)
    p.add_argument(
        '--metric',
        choices=('loss', 'bits_per_byte'),
        default='loss',
        help='what is compared (default: %(default)s); bits_per_byte compares across tokenizers and data',
    )
    p.add_argument(
        '--out', metavar='DIR', help='where everything is kept (default: compare/EXPERIMENTS-PLAN)'
    )
    return p


def _add_training_options(parser: CommandParser) -> None:
    p = parser.add_argument_group('training')
    p.add_argument(
        '--plan',
        metavar='PLAN',
        default='quickstart',
        help='path of a plan, or the name of a shipped one (default: %(default)s)',
    )
    p.add_argument(
        '--seeds',
        default='3',
        metavar='N',
        help='seeds to train each experiment with (default: %(default)s); one gives no verdict. auto[:MAX] '
        'adds seeds until the verdict is known, up to 20 or MAX; auto:open has no maximum',
    )
    p.add_argument(
        '--smallest-effect',
        type=float,
        metavar='X',
        help='with --seeds auto: also stop when the difference is known to be smaller than this',
    )
    p.add_argument(
        '--stop-early',
        action='store_true',
        help='stop runs that are further behind the baseline than any finished run ever made up, and count '
        'them as worse; the first seed of each experiment is always finished',
    )
    p.add_argument(
        '--ladder',
        metavar='RUNGS[:SPAN]',
        help='compare at several sizes, the last that of the plan, over a span of compute (default: 64), and '
        'say how the difference changes with scale',
    )
    p.add_argument(
        '--tokens-per-parameter',
        type=float,
        metavar='N',
        help='with --ladder: tokens of a run for each parameter of the baseline, embeddings and head not '
        'counted (default: 20)',
    )
    p.add_argument(
        '--budget',
        metavar='KIND=AMOUNT',
        help="tokens=20M, flops=1e15 or seconds=600 for each run, all stages together (default: the plan's)",
    )
    p.add_argument(
        '--tune',
        metavar='KEY[,KEY...]',
        help='search settings first (lr, weight_decay, warmup, final_lr, clip), the same search for every '
        'experiment, at full length, on seeds and held-out documents of its own; lr alone takes 15 more runs '
        'each, several settings go through Optuna',
    )
    p.add_argument(
        '--trials',
        type=int,
        metavar='N',
        help='with --tune of several settings: trials of each experiment (default: 20)',
    )
    p.add_argument(
        '--set',
        dest='settings',
        metavar='KEY=VALUE',
        action='append',
        default=[],
        help='a model parameter or training option for every experiment; repeatable',
    )
    p.add_argument(
        '--device',
        default='auto',
        metavar='DEVICE[,DEVICE...]',
        help='cpu, cuda (all GPUs), cuda:0,cuda:1, mps (default: the best available)',
    )
    p.add_argument(
        '--dry-run', action='store_true', help='say what would be trained and for how long, and train nothing'
    )
    p.add_argument('--yes', action='store_true', help='train although the memory is estimated not to suffice')
    p.add_argument('--amp', action='store_true', help='mixed precision')
    p.add_argument(
        '--jobs',
        type=int,
        metavar='N',
        help='runs at a time on this machine (default: one on each GPU; on a CPU one on each core, as far as '
        'memory goes; runs of a length in seconds one after the other)',
    )
    p.add_argument(
        '--launcher',
        choices=('local', 'slurm'),
        default='local',
        help='where runs are trained: on this machine, or as jobs of Slurm (default: %(default)s)',
    )
    p.add_argument(
        '--slurm',
        metavar='KEY=VALUE,...',
        default='',
        help='with --launcher slurm, what a job asks for: partition=gpu,gpus_per_node=1,timeout_min=240',
    )


def _add_reading_options(parser: CommandParser) -> None:
    p = parser.add_argument_group('finished runs')
    p.add_argument(
        '--runs',
        nargs='+',
        metavar='DIR',
        help='compare the finished runs in these directories or below; the first is the baseline',
    )
    p.add_argument(
        '--verify',
        metavar='REPORT',
        help='train one seed of a finished comparison again, from the source and settings kept with that '
        'report, and say whether the result is the same; this runs the code kept there',
    )
    p.add_argument('--baseline', metavar='EXP', help='with --runs: the baseline')
    p.add_argument(
        '--leaderboard', nargs='+', metavar='DIR', help='rank all finished runs in these directories or below'
    )


def run(args: argparse.Namespace) -> int:
    _check(args)
    out = Path(args.out) if args.out else None
    if args.leaderboard:
        from .leaderboard import leaderboard

        leaderboard(args.leaderboard, metric=args.metric, out=out)
        return 0
    if args.verify:
        from .api import verify

        found = verify(args.verify, device=args.device)
        print(*found, sep='\n')
        return 0 if all(v.holds for v in found) else 1
    from .api import compare, compare_at_scale, rehearse

    left_out = MODES if args.ladder else (*MODES, *OF_LADDERS)
    options = {name: value for name, value in vars(args).items() if name not in left_out}
    if args.dry_run:
        print(rehearse(*args.experiments, **options))
    elif args.ladder:
        print(compare_at_scale(*args.experiments, **options))
    else:
        print(compare(*args.experiments, **options, runs=args.runs or (), baseline=args.baseline))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    named = {'experiments': 'experiments'} | {name: f'--{name}' for name in ('runs', 'leaderboard', 'verify')}
    modes = [shown for name, shown in named.items() if getattr(args, name)]
    if not modes:
        raise UserError(
            'Give experiments to train, or --runs, --leaderboard or --verify. See lmp_compare --help.'
        )
    if len(modes) > 1:
        raise UserError(
            f'Give experiments to train, or --runs, --leaderboard or --verify; not '
            f'{" and ".join(modes)} together.'
        )
    for name in ('dry_run', 'ladder'):
        if getattr(args, name) and not args.experiments:
            flag = f'--{name.replace("_", "-")}'
            raise UserError(f'{flag} goes with experiments to train; given: {modes[0]}.')
    if args.tokens_per_parameter is not None and not args.ladder:
        raise UserError('--tokens-per-parameter goes with --ladder; the length of a run is --budget.')
    if args.slurm and args.launcher != 'slurm':
        raise UserError(f'--slurm goes with --launcher slurm; given: --launcher {args.launcher}.')
    if args.baseline and not args.runs:
        raise UserError('--baseline goes with --runs; of experiments, the first is the baseline.')


def main(argv: list[str] | None = None) -> int:
    return run_command(
        'lmp_compare',
        lambda: run(make_parser().parse_args(argv)),
        stopped='stopped; rerun the same command to resume.',
    )


if __name__ == '__main__':
    sys.exit(main())
