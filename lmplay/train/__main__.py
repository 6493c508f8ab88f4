"""lmp_trainer: lists, describes and trains experiments."""

import argparse
import json
import sys
from pathlib import Path

from ..base.runner_list import Entry, find_entry, list_experiments
from ..cli import CommandParser, run_command
from ..errors import UserError, unknown

EPILOG = """\
examples:
  lmp_trainer --exp list                                        what there is to train
  lmp_trainer --exp gpt2ish --training-plan quickstart          a first real run, under 3 minutes on a laptop
  lmp_trainer --exp gpt2ish --device cuda --amp --training-plan wikipedia
  lmp_trainer --exp gpt2ish --describe --num-blocks 12          parameters, FLOPs, memory; any model parameter is a flag
A run that was interrupted goes on when the same command is given again."""

# Options that are keys of a plan's stages, with the same meaning; given here they win over the plan.
STAGE_OPTIONS = {
    'batch_size': (int, 'rows of an optimizer step (default 50)'),
    'mini_batch_size': (
        str,
        'rows of a forward and backward pass (default 4), or auto; changes memory and speed, never the gradient',
    ),
    'row_length': (int, "tokens of a row (default: the model's max_len)"),
    'packing': (str, 'pack: documents joined (default); pad: one document a row'),
    'epochs': (float, 'passes over the data of every stage'),
    'tokens': (int, 'tokens of every stage'),
    'steps': (int, 'optimizer steps of every stage'),
    'seconds': (
        float,
        'seconds of training of every stage, evaluating and saving not counted; the schedule fits itself to them',
    ),
    'optimizer': (str, 'adamw (default), adam, adagrad, sgd, rmsprop, muon'),
    'lr': (float, 'learning rate (default 0.0006)'),
    'weight_decay': (float, 'weight decay (default 0.01); never on biases, norms and embeddings'),
    'schedule': (str, 'constant, cosine (default), linear, wsd'),
    'warmup': (float, 'warm-up: below 1 a fraction of the steps, else steps'),
    'clip': (float, 'largest gradient norm (default 1; 0: none)'),
    'validation_interval': (int, 'rows between evaluations (default: 20 evaluations a stage)'),
    'validation_bytes': (int, 'size of the held-out text that is evaluated (default 131072)'),
    'save_interval': (int, 'rows between checkpoints (default: as --validation-interval)'),
    'on_nan': (str, 'a step whose gradient is not finite: skip (default) or stop'),
    'on_collapse': (str, 'an expert takes over: warn (default), stop or snapshot'),
}


def make_parser() -> CommandParser:
    parser = CommandParser(
        'lmp_trainer',
        description='Trains language-model experiments by plans.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group('what to do')
    what.add_argument(
        '--exp',
        metavar='NAME',
        help="experiment to train: a name, the path of a versions.py, or 'list' (default: the plan's, else gpt2ish)",
    )
    what.add_argument(
        '--training-plan',
        metavar='PLAN',
        default='default',
        help='path of a plan, or the name of a shipped one (default: %(default)s)',
    )
    what.add_argument(
        '--dataset',
        metavar='NAME',
        help='train on this in all stages: a named dataset, a dataset of the plan, hub-user/name, or a local file',
    )
    what.add_argument(
        '--describe',
        action='store_true',
        help='tell the architecture, parameters, FLOPs and memory, and exit',
    )
    what.add_argument(
        '--dry-run',
        action='store_true',
        help='tell what the plan will do and about how long it takes, and exit',
    )
    what.add_argument(
        '--save-datasets',
        action='store_true',
        help='fetch and prepare all that the plan needs, and exit; for machines without a network',
    )
    what.add_argument(
        '--json', action='store_true', help='with --exp list or --describe: output for machines'
    )
    model = parser.add_argument_group(
        'model', "every parameter of the experiment's model is a flag too: --num-blocks 4 --embed-dim 128 ..."
    )
    model.add_argument(
        '--set',
        metavar='KEY=VALUE',
        action='append',
        default=[],
        help='set a model parameter; may be repeated',
    )
    model.add_argument(
        '--initial-model',
        metavar='PATH',
        help='weights that a new run begins with: a checkpoint or a run; only read',
    )
    model.add_argument(
        '--default-freeze',
        action='store_true',
        help='freeze all weights but those marked with `freeze = False`',
    )
    run = parser.add_argument_group('run')
    run.add_argument('--device', default='auto', help='cpu, cuda, cuda:1, mps (default: the best there is)')
    run.add_argument(
        '--amp', action='store_true', help='mixed precision: bf16 where the device has it, else fp16'
    )
    run.add_argument(
        '--compile-model',
        action=argparse.BooleanOptionalAction,
        help='torch.compile the model (default: on a GPU, where it pays)',
    )
    run.add_argument('--seed', type=int, help="seed of everything (default: the plan's, else 0)")
    run.add_argument(
        '--run-dir',
        metavar='DIR',
        help='where the run is kept and resumed from (default: runs/EXPERIMENT-PLAN)',
    )
    run.add_argument(
        '--reset-history',
        action='store_true',
        help='keep the weights of the run that is there, forget its history, begin the plan anew',
    )
    run.add_argument('--ignore-optimizer', action='store_true', help="don't load the optimizer's state")
    run.add_argument(
        '--keep',
        type=int,
        default=2,
        help='newest checkpoints to keep, beside the best and those at the ends of stages (default: %(default)s)',
    )
    run.add_argument(
        '--report-to',
        metavar='NAME',
        action='append',
        default=[],
        help='tensorboard or wandb; may be repeated',
    )
    run.add_argument(
        '--check-grads', action='store_true', help='tell which parameters are frozen or got no gradient'
    )
    run.add_argument('--quiet', action='store_true', help='say nothing but errors')
    run.add_argument(
        '--use-config', metavar='FILE', help='take options from a YAML file; flags on the command line win'
    )
    run.add_argument(
        '--dump-config', action='store_true', help='print the options as YAML for --use-config, and exit'
    )
    stage = parser.add_argument_group(
        'training', 'these are keys of plan stages too; here they win over the plan, in all its stages'
    )
    for name, (kind, text) in STAGE_OPTIONS.items():
        stage.add_argument(
            f'--{name.replace("_", "-")}',
            type=kind,
            help=text,
            metavar=kind.__name__.upper() if kind is not str else 'VALUE',
        )
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; `model` holds model parameters. Raises UserError for a flag, a key or a value that is not allowed."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if args.use_config:
        config = _read_config(args.use_config)
        model = config.pop('model', {})
        allowed = [
            a.dest for a in parser._actions if a.dest not in ('help', 'use_config', 'dump_config', 'set')
        ]
        if not isinstance(model, dict) or not all(isinstance(key, str) for key in model):
            raise UserError(
                f"In the config '{args.use_config}', model must map names of model parameters to values; given: {model!r}."
            )
        for key, value in config.items():
            if key not in allowed:
                raise UserError(unknown('option', key, [*allowed, 'model'], args.use_config))
            _check_option(next(a for a in parser._actions if a.dest == key), value, args.use_config)
        parser.set_defaults(**{key: value for key, value in config.items() if value is not None})
        args, rest = parser.parse_known_args(argv)
    else:
        model = {}
    args.model = dict(model)
    for item in args.set:
        key, equals, value = item.partition('=')
        if not equals:
            raise UserError(f"--set takes KEY=VALUE; given: '{item}'.")
        args.model[key.replace('-', '_')] = read_value(value)
    flags = [option for action in parser._actions for option in action.option_strings]
    while rest:
        flag, equals, value = rest.pop(0).partition('=')
        name = flag.removeprefix('--').replace('-', '_')
        declared = _declared(args, name)
        if not flag.startswith('--') or name not in declared:
            flags += [f'--{n.replace("_", "-")}' for n in declared]
            raise UserError(parser.unknown(flag, flags))
        if not equals:
            if not rest or rest[0].startswith('--'):
                raise UserError(f"Option '{flag}' needs a value.")
            value = rest.pop(0)
        args.model[name] = read_value(value)
    if args.mini_batch_size not in (None, 'auto'):
        try:
            args.mini_batch_size = int(args.mini_batch_size)
        except ValueError:
            raise UserError(
                f"--mini-batch-size takes a whole number or 'auto'; given: '{args.mini_batch_size}'."
            ) from None
    return args


def _declared(args: argparse.Namespace, name: str) -> list[str]:
    """Parameters that the experiment's model declares, read without importing it where that is enough."""
    exp = args.exp if args.exp not in (None, 'list') else 'gpt2ish'
    entry = find_entry(exp)
    declared = list(entry.parameters)
    if name in declared:
        return declared
    from ..base.runner_list import find_runner

    return list(find_runner(exp).function().declared)


def read_value(text: str):
    """A value from the command line: 3, 6e-4, true, null, a list, or a string."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads 6e-4 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_config(path: str) -> dict:
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Can't read the config '{path}': {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise UserError(f"The config '{path}' must be a YAML mapping of option names to values.")
    return {str(k).replace('-', '_'): v for k, v in config.items()}


def _check_option(action: argparse.Action, value, where: str) -> None:
    """Refuses a value of a config that the flag itself could not have."""
    if isinstance(action.default, list):
        good, what = isinstance(value, list) and all(isinstance(v, str) for v in value), 'a list of strings'
    elif action.nargs == 0:
        good, what = isinstance(value, bool), 'true or false'
    elif action.type in (int, float):
        good, what = (
            isinstance(value, (int, float, str)) and not isinstance(value, bool),
            'a number',
        )  # of strings, argparse says it
    else:
        good, what = (
            isinstance(value, str) or action.dest == 'mini_batch_size' and isinstance(value, int),
            'a string',
        )
    if value is not None and not good:
        raise UserError(f"In the config '{where}', {action.dest} must be {what}; given: {value!r}.")


def show_experiments(entries: list[Entry], *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                [
                    {
                        'name': e.name,
                        'description': e.description,
                        'module': e.module,
                        'where': e.where,
                        'parameters': e.parameters,
                        'error': e.error,
                    }
                    for e in entries
                ],
                indent=1,
            )
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title='Experiments', title_justify='left')
    for heading in ('name', 'description', 'from', 'parameters'):
        table.add_column(heading, no_wrap=heading == 'name', overflow='fold')
    for e in entries:
        parameters = ' '.join(f'{k}={v}' for k, v in e.parameters.items() if k != 'version')
        table.add_row(
            e.name,
            e.description if e.error is None else f'[red]broken: {_escape(e.error)}[/red]',
            _escape(e.module),
            _escape(parameters),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def dump_config(args: argparse.Namespace) -> str:
    """The options that differ from the defaults, as YAML."""
    import yaml

    parser = make_parser()
    hidden = ('use_config', 'dump_config', 'set', 'json')
    chosen = {
        k: v for k, v in vars(args).items() if k not in hidden and k != 'model' and v != parser.get_default(k)
    }
    return (
        yaml.safe_dump(chosen | ({'model': args.model} if args.model else {}), sort_keys=True)
        if chosen or args.model
        else '{}\n'
    )


def run(args: argparse.Namespace) -> int:
    from .plan import load_plan

    plan = load_plan(args.training_plan)
    if args.dataset:
        plan.use_dataset(args.dataset)
    overrides = {k: getattr(args, k) for k in STAGE_OPTIONS if getattr(args, k) is not None}
    exp = args.exp or plan.exp or 'gpt2ish'
    entry = find_entry(exp)  # before torch is imported: an unknown name is told at once
    for i in range(len(plan.stages)):
        plan.stage(i, None, overrides)  # and a bad value too

    if args.seed is not None and not 0 <= args.seed < 2**32:
        raise UserError(f'--seed must be at least 0 and below 2^32; given: {args.seed}.')
    if args.keep < 1:
        raise UserError(f'--keep takes a whole number, at least 1; given: {args.keep}.')

    from .console import ConsoleReporter
    from .describe import describe_stage, dry_run
    from .resolve import Settings
    from .session import Session
    from .stage_data import save_datasets

    settings = Settings(
        exp=exp,
        device=args.device,
        amp=args.amp,
        compile_model=args.compile_model,
        seed=args.seed,
        run_dir=args.run_dir or str(Path('runs') / f'{entry.name}-{plan.name}'),
        report_to=args.report_to,
        reset_history=args.reset_history,
        initial_model=args.initial_model,
        ignore_optimizer=args.ignore_optimizer,
        default_freeze=args.default_freeze,
        check_grads=args.check_grads,
        keep=args.keep,
        overrides=overrides,
        model=args.model,
    )
    if args.describe:
        # a plan's tokenizer may have to be trained; only a plan that was asked for does that
        describe_stage(plan, settings, with_tokenizer=args.training_plan != 'default', as_json=args.json)
        return 0
    session = Session(plan, settings, console=ConsoleReporter(quiet=args.quiet))
    if args.dry_run:
        dry_run(session)
        return 0
    if args.save_datasets:
        save_datasets(session.resolve(), seed=session.seed, tell=session.console.line)
        return 0
    return session.train()


def _main(argv: list[str] | None) -> int:
    args = parse(argv)
    if args.dump_config:
        print(dump_config(args), end='')
        return 0
    if args.exp == 'list':
        show_experiments(list_experiments(), as_json=args.json)
        return 0
    return run(args)


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_trainer', lambda: _main(argv))


if __name__ == '__main__':
    sys.exit(main())
