"""What training takes: memory, checked before a run starts, and time, said when a stage begins."""

from collections.abc import Sequence

import torch

from ..base.base_model import LMBase
from ..cli import duration
from ..device import Compute, available_memory, measured_flops
from ..errors import UserError
from ..tokenizers import as_tokenizer
from .length import SampleLength
from .objective import Objective
from .resolve import ResolvedStage, Settings
from .trainer import Trainer

LIGHT = 5e10  # FLOPs of a pass, half a second on a slow CPU; a lighter one needs little memory
LEAST = 2**30  # bytes of a process that trains a light model
PYTHON = 3 * 2**28  # bytes of Python and its libraries
PER_ENTRY = 5 * 1024 * 4  # bytes for each entry of the vocabulary: logits of a chunk in an evaluation
KEPT = 1.2  # as freed memory is kept, in pieces that are not always of use
LONG = 3600.0  # seconds of a stage from which on its length is said
SLOW = 1e9  # FLOP/s that any machine reaches
CPU_TOKENS = 4096  # of a micro-batch on a CPU, where mini_batch_size is "auto"
SHORTER = 'lmp_trainer without arguments trains a small model within minutes'


def activation_bytes(model: LMBase, *, rows: int, length: int) -> int:
    """Bytes that autograd keeps from the forward pass of `rows` rows, without the model's own.

    The meta device will do.
    """
    seen: dict[int, int] = {}

    def pack(t):
        storage = t.untyped_storage()
        seen[storage._cdata] = storage.nbytes()
        return t

    x = torch.zeros(rows, length, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        mask = torch.ones_like(x, dtype=torch.bool)
        out = Objective(model).output(x, mask)  # noqa: F841  kept alive
    for t in [
        *model.parameters(),
        *model.buffers(),
    ]:  # after the pass, which may have brought them to its precision
        seen.pop(t.untyped_storage()._cdata, None)
    return sum(seen.values())


def training_memory(model: LMBase, *, rows: int, length: int, amp: bool) -> dict[str, int]:
    """Bytes needed to train with AdamW: weights, gradients, optimizer,
    activations of a micro-batch (halved by AMP, roughly)."""
    activations = activation_bytes(model, rows=rows, length=length)
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    return {
        'weights': weights,
        'gradients': trainable,
        'optimizer': 2 * trainable,
        'activations': activations // 2 if amp else activations,
    }


def first_mini_batch(stage: ResolvedStage, compute: Compute, ranks: int = 1) -> int:
    """Sequences of a micro-batch. "auto" begins with a rank's share of the batch on a GPU, where it is halved
    when memory runs out, and with about CPU_TOKENS tokens on a CPU."""
    settings = stage.settings
    share = -(-settings.batch_size // ranks)
    if settings.mini_batch_size != 'auto':
        return min(int(settings.mini_batch_size), share)
    if not compute.is_cpu:
        return share
    return max(1, min(share, CPU_TOKENS // stage.row_length))


def check_memory(stages: Sequence[ResolvedStage], settings: Settings, compute: Compute, ranks: int) -> None:
    """Raises UserError where a stage is estimated to need more memory than is free, unless the settings say
    `yes`.

    On a CPU only, where the system would end the process without a word; a GPU that is full says so at the
    first step.
    """
    if settings.yes or not compute.is_cpu or settings.parallel != 'ddp':
        return
    for stage in stages:
        rows = first_mini_batch(stage, compute, ranks)
        if _is_light(stage, rows):
            continue
        needed, free = (_needed(stage, rows, amp=settings.amp), available_memory())
        if needed <= free:
            continue
        smaller = _needed(stage, 1, amp=settings.amp)
        advice = f'--mini-batch-size 1 needs {_gib(smaller)}. ' if smaller <= free else ''
        raise UserError(
            f'Stage "{stage.name}" needs about {_gib(needed)} of memory, for {stage.skeleton.name} with '
            f'{rows} x {stage.row_length} tokens at a time, and {_gib(free)} are free here. {advice}'
            f'Nothing was started; --yes starts it all the same, and {SHORTER}.'
        )


def needed_memory(stages: Sequence[ResolvedStage], compute: Compute, *, amp: bool) -> int:
    """Bytes that a process needs, by estimate, to train these stages one after the other."""
    needed = [LEAST]
    for stage in stages:
        rows = first_mini_batch(stage, compute)
        if not _is_light(stage, rows):
            needed.append(_needed(stage, rows, amp=amp))
    return max(needed)


def _is_light(stage: ResolvedStage, rows: int) -> bool:
    return 2 * stage.skeleton.total_parameters() * rows * stage.row_length < LIGHT


def _needed(stage: ResolvedStage, rows: int, *, amp: bool) -> int:
    """With what a process takes besides: Python, the evaluation's logits, and the model that checks build."""
    memory = training_memory(stage.measurable, rows=rows, length=stage.row_length, amp=amp)
    training = sum(memory.values()) + memory['weights']
    return round(KEPT * training) + PYTHON + PER_ENTRY * as_tokenizer(stage.skeleton.tokenizer).n_vocab


def _gib(size: float) -> str:
    return f'{size / 2**30:.1f} GiB'


def time_left(trainer: Trainer) -> str:
    """'; about 5:20:00 here', for a stage that takes longer than an hour, else ''."""
    length, state = trainer.length, trainer.state
    if not isinstance(length, SampleLength):
        return ''  # whose seconds are said
    tokens = (length.samples - state.samples) * trainer.loader.mixture.tokens_per_row
    flops = trainer.flops_per_token * tokens / trainer.ranks.size
    if flops < LONG * SLOW:
        return ''
    compute = trainer.compute
    seconds = flops / (0.5 * measured_flops(compute.device, compute.dtype))
    shorter = f' ({SHORTER})' if compute.is_cpu else ''
    return f'; about {duration(seconds)} here{shorter}' if seconds > LONG else ''
