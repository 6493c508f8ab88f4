"""--describe and --dry-run: what a model is and what a plan will do, told before anything is trained."""

import json

from ..base.base_model import LMBase
from ..checks import check_runnable
from ..cli import cell, console, count, duration, plain
from ..device import measured_flops
from ..tokenizers import as_tokenizer
from .cost import training_memory
from .length import TimeLength, stage_length
from .optimizer import assignments, unfinished_warmup
from .plan import Plan, Stage
from .readiness import check_model, check_starts, open_stages
from .resolve import ResolvedStage, Settings, resolve
from .session import Session
from .stage_data import StageData, open_tokenizer


def describe(model: LMBase, *, rows: int, length: int, amp: bool) -> dict:
    """Figures of a model on the meta device; see `print_description`."""
    memory = training_memory(model, rows=rows, length=length, amp=amp)
    return {
        'name': model.name,
        'hyperparameters': model.hyperparameters,
        'tokenizer': as_tokenizer(model.tokenizer).name,
        'vocabulary': as_tokenizer(model.tokenizer).n_vocab,
        'total_parameters': model.total_parameters(),
        'trainable_parameters': sum(p.numel() for p in model.parameters() if p.requires_grad),
        'active_parameters': model.active_parameters(),
        'forward_flops_per_token': model.flops_per_token(length),
        'training_flops_per_token': model.training_flops_per_token(length),
        'row_length': length,
        'mini_batch_size': rows,
        'memory_bytes': memory | {'total': sum(memory.values())},
    }


def describe_stage(plan: Plan, settings: Settings, *, with_tokenizer: bool, as_json: bool) -> None:
    """--describe: prints the figures of the plan's first stage.

    with_tokenizer: with the one that the plan asks for.
    """
    tokenizer = open_tokenizer(plan) if with_tokenizer else None
    stage = resolve(plan, settings, tokenizer)[0]
    check_runnable(stage.skeleton)
    rows = stage.settings.mini_batch_size
    rows = int(Stage.mini_batch_size if rows == 'auto' else rows)
    figures = describe(stage.measurable, rows=rows, length=stage.row_length, amp=settings.amp)
    figures['updates'] = assignments(stage.measurable, stage.settings)
    if as_json:
        print(json.dumps(figures, indent=1, default=str))
    else:
        print_description(stage.skeleton, figures, console())
        for note in stage.notes:
            console().print(note, highlight=False, markup=False)


def print_description(model: LMBase, figures: dict, console) -> None:
    from rich.table import Table

    console.print(plain(str(model)), highlight=False, markup=False)
    table = Table(title=cell(figures['name']), show_header=False, title_justify='left')
    memory = figures['memory_bytes']
    gib = {k: f'{v / 2**30:.2f} GiB' for k, v in memory.items()}
    for key, value in (
        ('parameters, total', f'{figures["total_parameters"]:,}'),
        ('parameters, trainable', f'{figures["trainable_parameters"]:,}'),
        ('parameters, active per token', f'{figures["active_parameters"]:,}'),
        (
            'FLOPs per token, forward',
            f'{figures["forward_flops_per_token"] / 1e6:,.1f} M in rows of {figures["row_length"]} tokens',
        ),
        ('FLOPs per token, training', f'{figures["training_flops_per_token"] / 1e6:,.1f} M'),
        ('tokenizer', f'{figures["tokenizer"]}, {figures["vocabulary"]:,} entries'),
        (
            'memory to train',
            f'about {gib["total"]} with AdamW and {figures["mini_batch_size"]} rows at a time: weights '
            f'{gib["weights"]}, gradients '
            f'{gib["gradients"]}, optimizer {gib["optimizer"]}, activations {gib["activations"]}',
        ),
        *(('updated by', line) for line in figures['updates']),
        *((k, str(v)) for k, v in figures['hyperparameters'].items()),
    ):
        table.add_row(cell(key), cell(value))
    console.print(table)


def dry_run(session: Session) -> None:
    """Prints what a plan will do: stages, tokens, steps, memory, estimated time."""
    from rich.table import Table

    out, plan, compute = console(), session.plan, session.compute
    stages = session.resolve()
    check_model(stages[0])
    check_starts(stages, first=0, over=0, checkpoints=session.directory.checkpoints)
    speed = 0.5 * measured_flops(compute.device, compute.dtype)
    table = Table(title=cell(f'Plan "{plan.name}" on {compute.device}'), title_justify='left')
    numbers = ('sequences', 'tokens', 'steps', 'memory', 'about')
    for heading in ('stage', 'experiment', 'data', *numbers):
        table.add_column(heading, justify='right' if heading in numbers else 'left')
    if plan.description:
        out.print(plain(plan.description), highlight=False, markup=False)
    total, warmups = 0.0, []
    data = open_stages(stages, first=0, seed=session.seed, progress=session.console.line)
    for stage in stages:
        row, steps, seconds = _expected(stage, data[stage.index], speed=speed, amp=session.settings.amp)
        table.add_row(*map(cell, row))
        total += seconds
        warmups.append(unfinished_warmup(stage.settings, steps))
    out.print(table)
    for note in [*(note for stage in stages for note in stage.notes), *filter(None, warmups)]:
        out.print(note, highlight=False, markup=False)
    out.print(
        f'About {duration(total)} in all, at half of the {2 * speed / 1e9:,.0f} GFLOP/s that a matrix '
        'product reaches here. Memory: weights, gradients, optimizer and activations; on a CPU, Python and '
        'its libraries take half a GiB more. Nothing was trained.',
        highlight=False,
    )


def _expected(
    stage: ResolvedStage, data: StageData, *, speed: float, amp: bool
) -> tuple[list[str], int, float]:
    """(a row of the dry run's table, steps, seconds). speed: FLOP/s that training reaches."""
    settings, length = stage.settings, stage_length(stage.settings, data.mixture)
    auto = settings.mini_batch_size == 'auto'
    rows = settings.batch_size if auto else min(int(settings.mini_batch_size), settings.batch_size)
    memory = sum(training_memory(stage.measurable, rows=rows, length=stage.row_length, amp=amp).values())
    per_sequence = stage.flops_per_token * data.mixture.tokens_per_row / speed  # seconds
    if isinstance(length, TimeLength):
        about, seconds = '~', length.seconds
        samples = max(1, round(seconds / per_sequence))
    else:
        about, samples = '', length.samples
        seconds = samples * per_sequence
    steps = -(-samples // settings.batch_size)
    row = [
        stage.name,
        stage.exp,
        ', '.join(settings.datasets),
        f'{about}{samples:,} x {stage.row_length}',
        about + count(samples * data.mixture.tokens_per_row),
        f'{about}{steps:,}',
        f'{memory / 2**30:.1f} GiB',
        duration(seconds),
    ]
    return row, steps, seconds
