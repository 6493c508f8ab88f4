"""--describe and --dry-run: what a model is and what a plan will do, told before anything is trained."""

import torch

from ..base.base_model import LMBase
from ..errors import UserError
from ..tokenizers import as_tokenizer
from .console import count, duration
from .objective import call, fuses_head, head_of


def activation_bytes(model: LMBase, *, rows: int, length: int) -> int:
    """Bytes that autograd keeps from the forward pass of `rows` rows, counted on the meta device; the model's own not counted."""
    seen: dict[int, int] = {}

    def pack(t):
        storage = t.untyped_storage()
        seen[storage._cdata] = storage.nbytes()
        return t

    x = torch.zeros(rows, length, dtype=torch.int64, device='meta')
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward = model.features if fuses_head(model) else model
        out = call(model, forward, x, torch.ones_like(x, dtype=torch.bool))  # noqa: F841  kept alive
    for t in [
        *model.parameters(),
        *model.buffers(),
    ]:  # after the pass, which may have brought them to its precision
        seen.pop(t.untyped_storage()._cdata, None)
    return sum(seen.values())


def training_memory(model: LMBase, *, rows: int, length: int, amp: bool) -> dict[str, int]:
    """Bytes needed to train with AdamW: weights, gradients, optimizer, activations of a micro-batch (halved by AMP, roughly)."""
    activations = activation_bytes(model, rows=rows, length=length)
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    return {
        'weights': weights,
        'gradients': trainable,
        'optimizer': 2 * trainable,
        'activations': activations // 2 if amp else activations,
    }


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


def print_description(model: LMBase, figures: dict, console) -> None:
    from rich.table import Table

    console.print(str(model), highlight=False, markup=False)
    table = Table(title=figures['name'], show_header=False, title_justify='left')
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
            f'about {gib["total"]} with AdamW and {figures["mini_batch_size"]} rows at a time: weights {gib["weights"]}, gradients '
            f'{gib["gradients"]}, optimizer {gib["optimizer"]}, activations {gib["activations"]}',
        ),
        *((k, str(v)) for k, v in figures['hyperparameters'].items()),
    ):
        table.add_row(key, value)
    console.print(table)


def dry_run(run, console) -> None:
    """Prints what the run's plan will do: stages, tokens, steps, memory, estimated time."""
    from rich.table import Table

    from ..device import measured_flops
    from .stage_data import open_data, open_tokenizer

    tokenizer = open_tokenizer(run.plan, run.view.line)
    speed = measured_flops(run.device, run.amp_dtype)
    table = Table(title=f'Plan "{run.plan.name}" on {run.device}', title_justify='left')
    for heading in ('stage', 'experiment', 'data', 'rows', 'tokens', 'steps', 'memory', 'about'):
        table.add_column(
            heading, justify='right' if heading in ('rows', 'tokens', 'steps', 'memory', 'about') else 'left'
        )
    if run.plan.description:
        console.print(run.plan.description, highlight=False)
    total = 0.0
    for i in range(len(run.plan.stages)):
        stage = run.stage(i)
        exp = run.stage_exp(i)
        run.runner = run.runner_of(exp, stage.model, tokenizer)
        model = run.runner.build('meta')
        data = open_data(
            stage,
            run.plan,
            as_tokenizer(model.tokenizer),
            max_len=model.max_len,
            seed=run.seed,
            progress=run.view.line,
        )
        rows = (
            stage.batch_size
            if stage.mini_batch_size == 'auto'
            else min(int(stage.mini_batch_size), stage.batch_size)
        )
        memory = sum(training_memory(model, rows=rows, length=data.row_length, amp=run.settings.amp).values())
        per_row = (
            model.training_flops_per_token(data.row_length) * data.mixture.tokens_per_row / (0.5 * speed)
        )  # seconds
        samples = data.samples or max(1, round(data.seconds / per_row))
        seconds = data.seconds or samples * per_row
        total += seconds
        about = '~' if data.seconds else ''
        table.add_row(
            stage.name,
            exp,
            ', '.join(stage.datasets),
            f'{about}{samples:,} x {data.row_length}',
            about + count(samples * data.mixture.tokens_per_row),
            f'{about}{-(-samples // stage.batch_size):,}',
            f'{memory / 2**30:.1f} GiB',
            duration(seconds),
        )
    console.print(table)
    console.print(
        f'About {duration(total)} in all, at half of the {speed / 1e9:,.0f} GFLOP/s that a matrix product reaches here. '
        'Memory: weights, gradients, optimizer and activations; on a CPU Python and its libraries take half a GiB more. Nothing was trained.',
        highlight=False,
    )


@torch.no_grad()
def check_runnable(model: LMBase) -> None:
    """Raises UserError where the model's forward pass does not give what the contract says, with and without a cache.

    Told before a run begins, not at its end, when text is generated.
    """
    name, vocabulary = type(model).__name__, as_tokenizer(model.tokenizer).n_vocab
    first = next(model.parameters(), None)
    if first is None:
        raise UserError(f'{name} has no parameters: there is nothing to train.')
    length = min(8, model.max_len)
    x = (torch.arange(2 * length, device=first.device) % vocabulary).view(2, length)
    training = model.training
    model.eval()
    try:
        out = model(x)
        cached = model(x, cache=[])
        fused = getattr(model, 'features')(x) if fuses_head(model) else None  # noqa: B009
    finally:
        model.train(training)
    what = f'{name}.forward(x) must return logits of shape (rows, positions, vocabulary)'
    _check_logits(getattr(out, 'logits', out), (2, x.shape[1], vocabulary), what)
    if not isinstance(cached, tuple) or len(cached) != 2:
        raise UserError(
            f'{name}.forward(x, cache=[]) must return (logits, cache); given: {type(cached).__name__}.'
        )
    _check_logits(
        cached[0],
        (2, 1, vocabulary),
        f'{name}.forward(x, cache=[]) must return logits of the last position, (rows, 1, vocabulary)',
    )
    if fused is not None:
        _check_fused(model, out, fused)


def _check_fused(model: LMBase, out, fused) -> None:
    """Training takes `features` and the head `fc`, generation `forward`: they must be one model."""
    name = type(model).__name__
    advice = 'Change both, or rename `features`: then training uses forward, with all its logits in memory.'
    for kind in ('losses', 'metrics'):
        if lost := getattr(out, kind, {}).keys() - getattr(fused, kind, {}).keys():
            raise UserError(
                f'{name}.forward reports {kind} that {name}.features does not ({", ".join(sorted(lost))}), but a model with features and '
                f'a head `fc` is trained on those: return LMOutput(features=..., {kind}=...) from features. {advice}'
            )
    logits = getattr(out, 'logits', out).float()
    other = head_of(model)(getattr(fused, 'features', fused))[..., : logits.shape[-1]].float()
    difference = float('nan') if logits.is_meta else (logits - other).abs().max().item()
    if (
        difference > 0 and difference > 1e-5 * other.abs().max().item()
    ):  # capped logits differ by little at first
        raise UserError(
            f'{name}.forward(x) and {name}.fc({name}.features(x)) are not the same (logits differ by up to {difference:.3g}), and a '
            f'model with features and a head `fc` is trained on the second. {advice}'
        )


def _check_logits(logits, expected: tuple, what: str) -> None:
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f'{what} = {expected}; given: {given}.')
