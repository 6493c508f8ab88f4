"""lmp_trainer: lists, describes and trains experiments."""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from ..base.parameters import read_parameters, read_yaml, typed_parameters
from ..base.runner_list import find_entry, find_runner, list_experiments
from ..cli import CommandParser, run_command
from ..errors import UserError, unknown
from ..files import regular, user_path
from ..original import TRAINER, in_new_words
from .listing import show_experiments
from .plan import (
    DEFAULT_EXPERIMENT,
    PARALLEL,
    SETTABLE,
    Plan,
    default_plan,
    key_kind,
    load_plan,
    stage_help,
    stage_value,
)

EXAMPLES = """\
lmp_trainer                                            a first real run, under 3 minutes on a laptop
lmp_trainer --exp list                                 what can be trained
lmp_trainer --exp gpt2ish --device cuda --amp --training-plan wikipedia
lmp_trainer --exp gpt2ish --describe --num-blocks 12   parameters, FLOPs, memory; model parameters are flags
To resume an interrupted run, rerun the same command."""

NOT_IN_A_CONFIG = ('help', 'use_config', 'dump_config', 'set')


if os.environ.get('WORLD_SIZE', '1') != '1':  # before torch is imported: DDP's advice, once per process
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')


def make_parser() -> CommandParser:
    parser = CommandParser(
        'lmp_trainer',
        description='Trains language-model experiments by plans.',
        examples=EXAMPLES,
    )
    _add_actions(parser)
    _add_model_options(parser)
    _add_run_options(parser)
    _add_stage_keys(parser)
    return parser


def _add_actions(parser: CommandParser) -> None:
    add = parser.add_argument_group('what to do').add_argument
    add(
        '--exp',
        metavar='NAME',
        help='experiment to train: a name, the path of a versions.py or of its folder, or "list" '
        f"(default: the plan's, else {DEFAULT_EXPERIMENT})",
    )
    add(
        '--training-plan',
        metavar='PLAN',
        help='path of a plan, or name of a shipped one (default: quickstart, which takes minutes; with '
        '--exp, the plan "default")',
    )
    add(
        '--dataset',
        metavar='NAME',
        help='dataset for all stages: one of the plan, a named one, a hub name (owner/name), or a local file',
    )
    add('--describe', action='store_true', help='show architecture, parameters, FLOPs and memory, and exit')
    add(
        '--dry-run',
        action='store_true',
        help='show what the plan does and roughly how long it takes, and exit',
    )
    add(
        '--save-datasets',
        action='store_true',
        help='fetch and prepare everything the plan needs, and exit; for machines without a network',
    )
    add('--json', action='store_true', help='machine-readable output of --exp list and --describe')
    add('--verbose', action='store_true', help='with --exp list: parameters and modules too')


def _add_model_options(parser: CommandParser) -> None:
    add = parser.add_argument_group(
        'model', "every parameter of the experiment's model is a flag too: --num-blocks 4 --embed-dim 128 ..."
    ).add_argument
    add('--set', metavar='KEY=VALUE', action='append', default=[], help='set a model parameter; repeatable')
    add(
        '--initial-model',
        metavar='PATH',
        help='checkpoint or run whose weights a new run starts from; only read',
    )
    add(
        '--default-freeze',
        action='store_true',
        help='freeze all weights except those marked with `freeze = False`',
    )


def _add_run_options(parser: CommandParser) -> None:
    add = parser.add_argument_group('run').add_argument
    add('--device', default='auto', help='cpu, cuda, cuda:1, mps (default: the best available)')
    add('--amp', action='store_true', help='mixed precision: bf16 where the device supports it, else fp16')
    add(
        '--compile-model',
        action=argparse.BooleanOptionalAction,
        help='torch.compile the model (default: on a GPU, where it pays off)',
    )
    add('--seed', type=int, help="seed of data order, weights and dropout (default: the plan's, else 0)")
    add(
        '--run-dir',
        metavar='DIR',
        help='where the run is kept and resumed from (default: runs/EXPERIMENT-PLAN)',
    )
    add(
        '--reset-history',
        action='store_true',
        help="start the run's history again: the plan from its first step, from the weights of the last "
        'checkpoint, with a fresh optimizer; the old history moves to DIR/history-N',
    )
    add('--ignore-optimizer', action='store_true', help="do not load the optimizer's state")
    add(
        '--keep',
        type=int,
        default=2,
        help='number of newest checkpoints to keep, besides the best and those at the ends of stages '
        '(default: %(default)s)',
    )
    add(
        '--parallel',
        choices=PARALLEL,
        default='ddp',
        help='how processes started by torchrun share the work: ddp, each with the whole model; fsdp, each '
        'with a part of what is trained; fsdp_all, of what is frozen too (default: %(default)s)',
    )
    add(
        '--rank-timeout',
        type=float,
        metavar='SECONDS',
        default=600.0,
        help='how long processes wait for one another before the run ends (default: %(default)g)',
    )
    add(
        '--yes',
        action='store_true',
        help='train although the memory is estimated not to suffice',
    )
    add(
        '--report-to',
        metavar='NAME',
        action='append',
        default=[],
        help='tensorboard, wandb, trackio, or the name of an installed tracker; repeatable',
    )
    add(
        '--profile',
        type=int,
        metavar='STEPS',
        help="record so many steps with torch's profiler: a trace and the costliest operations, in "
        'RUN_DIR/profile',
    )
    add(
        '--check-grads', action='store_true', help='report parameters that are frozen or received no gradient'
    )
    add('--quiet', action='store_true', help='print nothing but errors')
    add('--use-config', metavar='FILE', help='read options from a YAML file; flags on the command line win')
    add(
        '--dump-config',
        nargs='?',
        const='-',
        metavar='FILE',
        help='print the options as YAML for --use-config, or write them to a file, and exit',
    )


def _add_stage_keys(parser: CommandParser) -> None:
    group = parser.add_argument_group(
        'training', 'keys of plan stages; given here, they hold for all stages and win over the plan'
    )
    for key in SETTABLE:
        group.add_argument(
            _flag(key), help=stage_help(key).replace('%', '%%'), **_FLAG_SETTINGS[key_kind(key)]
        )


# How a flag of a stage key is read, by the kind of its values; what they may be, the plan's own checks say.
_FLAG_SETTINGS: dict[type, dict] = {
    bool: {'action': argparse.BooleanOptionalAction},
    int: {'metavar': 'INT'},
    float: {'metavar': 'FLOAT'},
    str: {'metavar': 'VALUE'},
    tuple: {'nargs': '+', 'metavar': 'FLOAT'},
}


def _flag(key: str) -> str:
    return f'--{key.replace("_", "-")}'


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; `stage` holds stage keys, `model` model parameters, both typed.

    Raises UserError for a flag, a key or a value that is not allowed.
    """
    parser = make_parser()
    argv = in_new_words(sys.argv[1:] if argv is None else argv, TRAINER)
    args, rest = parser.parse_known_args(argv)
    config = _read_config(args.use_config, parser) if args.use_config else {}
    config_stage = {key: config.pop(key) for key in SETTABLE if key in config}
    config_model = config.pop('model', {})
    if config:
        parser.set_defaults(**config)
        args, rest = parser.parse_known_args(argv)
    args.stage = {
        key: stage_value(key, value, f"In the config '{args.use_config}', {key}")
        for key, value in config_stage.items()
    }
    for key in SETTABLE:
        value = vars(args).pop(key)
        if value is not None:
            text = ' '.join(value) if isinstance(value, list) else value
            args.stage[key] = stage_value(key, text, _flag(key))
    args.model = (
        _model_parameters(args, config_model, rest, parser) if config_model or args.set or rest else {}
    )
    return args


def _model_parameters(
    args: argparse.Namespace, config: dict, rest: list[str], parser: CommandParser
) -> dict[str, Any]:
    """Parameters of the model: from the config, from --set, and from flags that the parser does not know."""
    named = args.exp not in (None, 'list')
    exp = args.exp if named else plan_of(args).experiment()
    runner = find_runner(exp).function()
    model = getattr(runner.model_class, '__name__', '')
    texts = []
    for item in args.set:
        key, equals, value = item.partition('=')
        if not equals:
            raise UserError(f"--set takes KEY=VALUE; given: '{item}'.")
        texts.append((key.replace('-', '_'), value))
    texts += _model_flags(rest, runner.declared, parser)
    return typed_parameters(config, runner.declared, model) | read_parameters(texts, runner.declared, model)


def _model_flags(
    rest: list[str], declared: dict[str, Any], parser: CommandParser
) -> Iterator[tuple[str, str]]:
    """(parameter, text) of --num-blocks 4 and --num-blocks=4."""
    rest = list(rest)
    while rest:
        flag, equals, value = rest.pop(0).partition('=')
        name = flag.removeprefix('--').replace('-', '_')
        if not flag.startswith('--') or name not in declared:
            flags = [option for action in parser._actions for option in action.option_strings]
            raise UserError(parser.unknown(flag, [*flags, *map(_flag, declared)]))
        if not equals:
            if not rest or rest[0].startswith('--'):
                raise UserError(f"Option '{flag}' needs a value.")
            value = rest.pop(0)
        yield name, value


def _read_config(path: str, parser: CommandParser) -> dict[str, Any]:
    """The options of a config file; null means not given. `model` and stage keys are left to be typed."""
    try:
        config = read_yaml(regular(user_path(path)).read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Can't read the config '{path}': {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise UserError(f"The config '{path}' must be a YAML mapping of option names to values.")
    config = {str(k).replace('-', '_'): v for k, v in config.items() if v is not None}
    model = config.get('model', {})
    if not isinstance(model, dict) or not all(isinstance(key, str) for key in model):
        raise UserError(
            f"In the config '{path}', model must map names of model parameters to values; given: {model!r}."
        )
    actions = {a.dest: a for a in parser._actions if a.dest not in NOT_IN_A_CONFIG}
    for key, value in config.items():
        if key not in actions and key != 'model':
            raise UserError(unknown('option', key, [*actions, 'model'], path))
        if key in actions and key not in SETTABLE:
            _check_option(actions[key], value, path)
    return config


def _check_option(action: argparse.Action, value: Any, where: str) -> None:
    """Refuses a value of a config that the flag itself could not have."""
    if isinstance(action.default, list):
        good, what = isinstance(value, list) and all(isinstance(v, str) for v in value), 'a list of strings'
    elif action.nargs == 0:
        good, what = isinstance(value, bool), 'true or false'
    elif action.type is int:
        good, what = isinstance(value, int) and not isinstance(value, bool), 'a whole number'
    else:
        good, what = isinstance(value, str), 'a string'
    if not good:
        raise UserError(f"In the config '{where}', {action.dest} must be {what}; given: {value!r}.")


def dump_config(args: argparse.Namespace) -> str:
    """The options that differ from the defaults, as YAML."""
    parser = make_parser()
    hidden = (*NOT_IN_A_CONFIG, 'json', 'stage', 'model')
    chosen = {k: v for k, v in vars(args).items() if k not in hidden and v != parser.get_default(k)}
    chosen |= {k: 'none' if v is None else v for k, v in args.stage.items()}
    chosen |= {'model': args.model} if args.model else {}
    return yaml.safe_dump(chosen, sort_keys=True) if chosen else '{}\n'


def plan_of(args: argparse.Namespace) -> Plan:
    return load_plan(args.training_plan or default_plan(args.exp))


def run(args: argparse.Namespace) -> int:
    plan = plan_of(args)  # mistakes in a plan or a name are reported before torch is imported
    find_entry(plan.experiment(args.exp))

    from .api import RUN_OPTIONS, make_session
    from .console import ConsoleReporter
    from .describe import describe_stage, dry_run
    from .stage_data import save_datasets

    session = make_session(
        args.exp,
        plan,
        dataset=args.dataset,
        run_dir=args.run_dir,
        console=ConsoleReporter(quiet=args.quiet),
        run={name: getattr(args, name) for name in RUN_OPTIONS},
        stage=args.stage,
        model=args.model,
    )
    if args.describe:
        # a plan's tokenizer may have to be trained; only a plan that was asked for does that
        asked = args.training_plan not in (None, 'default')
        describe_stage(session.plan, session.settings, with_tokenizer=asked, as_json=args.json)
    elif args.dry_run:
        dry_run(session)
    elif args.save_datasets:
        save_datasets(session.resolve(), seed=session.seed, tell=session.console.line)
    else:
        return session.train()
    return 0


def _main(argv: list[str] | None) -> int:
    args = parse(argv)
    if args.dump_config == '-':
        print(dump_config(args), end='')
        return 0
    if args.dump_config:
        try:
            user_path(args.dump_config).write_text(dump_config(args), encoding='utf-8')
        except OSError as error:
            raise UserError(f"Can't write the config '{args.dump_config}': {error.strerror}.") from error
        return 0
    if args.verbose and args.exp != 'list':
        raise UserError(
            '--verbose goes with --exp list; everything of a run is in metrics.jsonl of its directory.'
        )
    if args.exp == 'list':
        show_experiments(list_experiments(), verbose=args.verbose, as_json=args.json)
        return 0
    return run(args)


def main(argv: list[str] | None = None) -> int:
    return run_command('lmp_trainer', lambda: _main(argv))


if __name__ == '__main__':
    sys.exit(main())
