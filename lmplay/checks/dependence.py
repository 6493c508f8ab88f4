"""What a result depends on: on no later position, no other sequence, nothing that was computed before.

B sequences, T positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.base_model import StepContext
from ..errors import ExperimentError
from .probe import CHECK, SEED, Probe

CUTS = (0.02, 0.35, 0.51, 0.77, 1.0)  # of a sequence: where texts begin to differ
OTHER_CUTS = (0.37, 0.81)  # of other sizes: in evaluation, in training
MANY = (17, 8)  # sequences and positions of a batch larger than most micro-batches
LATER = StepContext(CHECK, 50_000, 100_000, 10**9)  # a step far into a stage


def check_finite(probe: Probe) -> None:
    for name, p in probe.model.named_parameters():
        if not p.isfinite().all():
            raise ExperimentError(f"parameter '{name}' is not finite.")
    for sequences, length in probe.sizes():
        for training in (False, True):
            result = probe.baseline(sequences, length, training=training)
            if not (result.isfinite().all() and probe.logits_of(result[:, -1]).isfinite().all()):
                mode = 'training' if training else 'evaluation'
                raise ExperimentError(
                    f'logits are not finite (in {mode} mode, in a text of {length} positions).'
                )


def check_repeatable(probe: Probe) -> None:
    """The same text gives the same result, whatever was computed before it; in evaluation, by any chance."""
    size = probe.sizes()[0]
    x, before = probe.text(*size), probe.baseline(*size)
    probe.result(probe.other(x))
    for seed, why in {
        SEED: 'after another text: the model keeps a state from one batch to the next, or draws random '
        'numbers of its own. Its losses would depend on the order of the data',
        SEED
        + 1: 'with other random numbers: part of the model draws them although it is not training (dropout '
        'that ignores `self.training`). Its losses would depend on chance',
    }.items():
        difference = (probe.result(x, seed=seed) - before).abs().max().item()
        if not difference <= probe.limit(probe.precision.equal, before):
            raise ExperimentError(
                f'in evaluation mode the same text gives another result, by up to {difference:.2g}, {why}.'
            )
    if not probe.model.batch_dependent:
        _keeps_nothing(probe, x[:, :16])


def _keeps_nothing(probe: Probe, x: Tensor) -> None:
    """In training, nothing but buffers goes from one batch to the next."""
    results = [probe.result(x, training=True) for _ in range(3)]
    probe.result(probe.other(x), training=True)
    limit = probe.limit(probe.precision.equal, results[-1])
    chance = max((a - results[-1]).abs().max().item() for a in results[1:-1])
    difference = (probe.result(x, training=True) - results[-1]).abs().max().item()
    if not difference <= limit + 2 * chance:
        raise ExperimentError(
            'in training mode the model keeps something of one batch for the next, outside parameters and '
            f'buffers (results differ by up to {difference:.2g}). A checkpoint loses it, and what is '
            'computed depends on how a batch is divided. Declare `batch_dependent = True` on the class if '
            'that is meant.'
        )


def check_causal(probe: Probe) -> None:
    """No position sees a later one, in evaluation and in training, in short texts and at full length."""
    if not probe.model.causal or probe.model.max_len < 2:
        return
    short, *long = probe.sizes()
    for training in (False, True):
        _no_leak(probe, short, CUTS, training=training)
        _no_leak(probe, probe.odd_size(), OTHER_CUTS[training : training + 1], training=training)
        for size in long:
            _no_leak(probe, size, OTHER_CUTS[training : training + 1], training=training)
        if probe.takes_mask:
            _ignores_padding(probe, short, training=training)
    if not probe.model.batch_dependent:
        for size in (short, *long):
            _ignores_length(probe, size)
    for size in long:  # blocks of any power of two end at the largest
        _no_leak(probe, size, [(1 << (size[1] - 1).bit_length() - 1) / size[1]], training=False)


def _no_leak(probe: Probe, size: tuple[int, int], shares: Sequence[float], *, training: bool) -> None:
    x, before = probe.text(*size), probe.baseline(*size, training=training)
    length = x.shape[1]
    for cut in sorted({min(length - 1, max(1, round(share * length))) for share in shares}):
        changed = torch.cat([x[:, :cut], probe.other(x)[:, cut:]], dim=1)
        leak = (probe.result(changed, training=training) - before)[:, :cut].abs().max().item()
        if not _is_rounding(probe, leak, before, training=training):
            raise ExperimentError(
                f'changing the tokens from position {cut} on changes what the model computes before it, by '
                f'up to {leak:.2g}{_in_mode(training)}: it sees the future. Mask its attention (experts that '
                'choose their tokens see all of them), or declare `causal = False` on the class, and it is '
                'never ranked against models that predict the next token.'
            )


def _ignores_padding(probe: Probe, size: tuple[int, int], *, training: bool) -> None:
    """Where a text ends is part of its future."""
    x, before = probe.text(*size), probe.baseline(*size, training=training)
    end = max(1, x.shape[1] // 2)
    mask = (torch.arange(x.shape[1], device=x.device) < end).expand(x.shape)
    leak = (probe.result(x, training=training, mask=mask) - before)[:, :end].abs().max().item()
    if not _is_rounding(probe, leak, before, training=training):
        raise ExperimentError(
            f'padding from position {end} on changes what the model computes before it, by up to '
            f'{leak:.2g}{_in_mode(training)}: by its `mask` it sees the future, where a text ends. Use it '
            'for losses and metrics alone.'
        )


def _ignores_length(probe: Probe, size: tuple[int, int]) -> None:
    """How long a text is is part of its future, and unknown when text is generated."""
    x, before = probe.text(*size), probe.baseline(*size)
    end = max(1, x.shape[1] // 2)
    difference = (probe.result(x[:, :end]) - before[:, :end]).abs().max().item()
    if not difference <= probe.limit(probe.precision.cached, before):
        raise ExperimentError(
            f'the first {end} positions of a text compute something else where the text ends there, by up to '
            f'{difference:.2g}: the model sees how long its text is (positions counted from the end or as a '
            'share of the length), so that generated text would not be its own. If experts have a capacity, '
            'declare `batch_dependent = True` on the class.'
        )


def check_independent(probe: Probe) -> None:
    """What is computed of a sequence does not depend on the rest of its batch."""
    if probe.model.batch_dependent:
        return
    short, *long = probe.sizes()
    for training in (False, True):
        for size, places in ((short, (0, short[0] - 1)), (probe.odd_size(), (0,))):
            x, before = probe.text(*size), probe.baseline(*size, training=training)
            for kept in places:
                mixed = probe.other(x)
                mixed[kept] = x[kept]
                mixing = (probe.result(mixed, training=training) - before)[kept].abs().max().item()
                _check_mixing(probe, mixing, before, training=training)
    for size in long:
        x, before = probe.text(*size), probe.baseline(*size)
        mixing = (probe.result(torch.cat([x, probe.other(x)]))[:1] - before).abs().max().item()
        _check_mixing(probe, mixing, before, training=False)


def check_alone(probe: Probe) -> None:
    """A sequence gives in a large batch what it gives alone.

    In training without dropout, which draws other numbers in a batch of another size; not of a model that has
    chance of other kinds.
    """
    if probe.model.batch_dependent:
        return
    x = probe.text(MANY[0], min(MANY[1], probe.model.max_len))
    for training in (False, True):
        with probe.without_dropout():
            result = probe.result(x, training=training)
            if training and not torch.equal(result, probe.result(x, training=training, seed=SEED + 1)):
                return
            difference = (probe.result(x[:1], training=training) - result[:1]).abs().max().item()
        if not _is_rounding(probe, difference, result, training=training):
            raise ExperimentError(
                f'a sequence gives another result in a batch of {len(x)} than alone, by up to '
                f'{difference:.2g}{_in_mode(training)}: what is computed depends on the size of a batch. '
                'Declare `batch_dependent = True` on the class if that is meant; reports then say so.'
            )


def check_later(probe: Probe) -> None:
    """After steps have been taken, and far into a stage, positions and sequences still see what they may."""
    probe.model.before_step(LATER)
    probe.forget()
    size = probe.sizes()[0]
    for training in (False, True):
        if probe.model.causal and size[1] > 1:
            _no_leak(probe, size, CUTS[2:3], training=training)
        if not probe.model.batch_dependent:
            x, before = probe.text(*size), probe.baseline(*size, training=training)
            mixed = torch.cat([x[:1], probe.other(x)[1:]])
            mixing = (probe.result(mixed, training=training) - before)[0].abs().max().item()
            _check_mixing(probe, mixing, before, training=training)


def _check_mixing(probe: Probe, mixing: float, before: Tensor, *, training: bool) -> None:
    if not _is_rounding(probe, mixing, before, training=training):
        raise ExperimentError(
            'other sequences of a batch change what the model computes of a sequence, by up to '
            f'{mixing:.2g}{_in_mode(training)} (batch norm, an average over the batch, experts that '
            'choose tokens). Declare `batch_dependent = True` on the class if that is meant; reports '
            'then say so.'
        )


def _is_rounding(probe: Probe, difference: float, result: Tensor, *, training: bool) -> bool:
    """Whether a difference to this result is rounding, or chance that the model keeps to itself."""
    limit = probe.limit(probe.precision.equal, result)
    return difference <= limit or difference <= limit + 2 * probe.chance(training=training)


def _in_mode(training: bool) -> str:
    return ' in training mode' if training else ''
