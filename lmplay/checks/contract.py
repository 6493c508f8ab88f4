"""The contract of lmplay.base.base_model, check by check. docs/contract.md says when they run.

B sequences, T positions, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..base.base_model import LMBase, LMOutput, StepContext
from ..device import is_out_of_memory
from ..errors import ExperimentError, UserError
from .probe import POSITIONS, SEED, Probe, preserved_random_state
from .runnable import check_runnable

log = logging.getLogger(__name__)
GRADIENT_POSITIONS = 16
LARGEST = 500_000_000  # values of a model that is copied to be checked: 4 GB in float64
STEPS = 30  # after which every trainable parameter must have had a gradient
CUTS = (0.02, 0.35, 0.51, 0.77, 1.0)  # of a sequence: where texts begin to differ
OTHER_CUTS = (0.37, 0.81)  # of other sizes: in evaluation, in training
REPEATS = 6  # of a pass, to learn how much its own chance does


@dataclass(frozen=True)
class Finding:
    """One check of a model; `problem` is None where it holds."""

    check: str
    problem: str | None = None


def check_contract(model: LMBase, rebuild: Callable[[], LMBase] | None = None) -> Iterator[Finding]:
    """Each check of the contract on the very model, whose weights, gradients, mode and random state stay as
    they are.

    rebuild: builds the model once more, as loading a checkpoint does; without it, what a checkpoint would
    lose is not looked for. Checks that need a working forward pass are not made where there is none.
    """
    for title, check in (('tensors that can be saved', _tensors), ('shape of the logits', check_runnable)):
        found = _finding(title, check, model)
        yield found
        if found.problem:
            return
    device = next(model.parameters()).device
    if device.type == 'meta':
        return
    if is_too_large(model):
        log.warning(
            '%s is too large to be copied and checked as it is; its smallest size is checked instead.',
            model.name,
        )
        return
    with preserved_random_state(device):
        try:
            probe = Probe(model, rebuild)
        except Exception as error:  # noqa: BLE001  no copy, no checks; that says nothing about what the model computes
            log.warning('%s could not be copied to be checked (%s).', type(model).__name__, error)
            return
        yield _finding('finite logits', _finite, probe)
        with probe.stirred():
            for title, check in OF_ALL_WEIGHTS.items():
                yield _finding(title, check, probe)
        yield _finding('every trainable parameter gets a gradient', _gradients, probe)


def is_too_large(model: LMBase) -> bool:
    """Whether copies of the model in float64 could exceed a machine's memory."""
    return sum(t.numel() for t in (*model.parameters(), *model.buffers())) > LARGEST


def require_contract(model: LMBase, rebuild: Callable[[], LMBase] | None = None) -> None:
    """Raises ExperimentError with what is wrong with the model, if anything is."""
    for found in check_contract(model, rebuild):
        if found.problem:
            raise ExperimentError(
                f'{type(model).__name__} breaks the contract of a language model ({found.check}): '
                f'{found.problem}'
            )


def _finding(title: str, check: Callable, subject) -> Finding:
    try:
        check(subject)
    except UserError as error:
        return Finding(title, str(error))
    except Exception as error:  # noqa: BLE001  a model may raise anything; it becomes the finding
        if is_out_of_memory(error):
            return Finding(title)  # says nothing about the model
        return Finding(title, f'{type(error).__name__}: {error}')
    return Finding(title)


def _tensors(model: LMBase) -> None:
    """Every tensor of a checkpoint has its shape, and no two share memory, except tied parameters."""
    named = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in named if is_lazy(tensor)]:
        raise ExperimentError(
            f"'{lazy[0]}' has no shape yet (a lazy module): it would train and save, and could never be "
            'loaded. Give its '
            f'sizes, or run the module once in __init__.'
        )
    if unseen := _unregistered(model):
        raise ExperimentError(
            f'{unseen} is in a plain list or dictionary: its parameters would neither train nor be saved. '
            'Keep modules in nn.ModuleList or nn.ModuleDict, parameters in nn.ParameterList or '
            'nn.ParameterDict.'
        )
    owners: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta or not tensor.numel():
            continue
        owner, other = owners.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor))
        if other is not tensor:
            raise ExperimentError(
                f"'{name}' shares memory with '{owner}' without being the same parameter: a checkpoint "
                'cannot hold both. '
                f'Register a copy (.clone()).'
            )


def _unregistered(model: LMBase) -> str | None:
    """Where the model keeps a module with parameters, or a parameter, that torch does not know to be its."""
    known = {id(p) for p in model.parameters()}
    for path, module in model.named_modules():
        for name, held in vars(module).items():
            if name.startswith('_') or not isinstance(held, (list, tuple, dict)):
                continue
            for value in held.values() if isinstance(held, dict) else held:
                own = value.parameters() if isinstance(value, nn.Module) else [value]
                if any(isinstance(p, nn.Parameter) and id(p) not in known for p in own):
                    return f"'{path}.{name}'" if path else f"'{name}'"
    return None


def _finite(probe: Probe) -> None:
    for sequences, length in _sizes(probe):
        for training in (False, True):
            result = probe.baseline(sequences, length, training=training)
            if not (result.isfinite().all() and probe.logits_of(result[:, -1]).isfinite().all()):
                mode = 'training' if training else 'evaluation'
                raise ExperimentError(
                    f'logits are not finite (in {mode} mode, in a text of {length} positions).'
                )


def _sizes(probe: Probe) -> list[tuple[int, int]]:
    """Of the texts to try, (sequences, positions): several short ones, one as long as can be."""
    longest = probe.model.max_len
    return [(3, min(POSITIONS, longest)), *([(1, longest)] if longest > POSITIONS else [])]


def _odd_size(probe: Probe) -> tuple[int, int]:
    """Of a larger batch, whose length divides into no usual block."""
    return 8, min(27, probe.model.max_len)


def _repeatable(probe: Probe) -> None:
    """In evaluation, the same text gives the same result, whatever was computed before."""
    size = _sizes(probe)[0]
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


def _causal(probe: Probe) -> None:
    """No position sees a later one, in evaluation and in training, in short texts and at full length."""
    if not probe.model.causal or probe.model.max_len < 2:
        return
    short, *long = _sizes(probe)
    for training in (False, True):
        _no_leak(probe, short, CUTS, training=training)
        for size in (_odd_size(probe), *long):
            _no_leak(probe, size, OTHER_CUTS[training : training + 1], training=training)
        if probe.takes_mask:
            _ignores_padding(probe, short, training=training)


def _no_leak(probe: Probe, size: tuple[int, int], shares: Sequence[float], *, training: bool) -> None:
    x, before = probe.text(*size), probe.baseline(*size, training=training)
    length = x.shape[1]
    for cut in sorted({min(length - 1, max(1, round(share * length))) for share in shares}):
        changed = torch.cat([x[:, :cut], probe.other(x)[:, cut:]], dim=1)
        leak = (probe.result(changed, training=training) - before)[:, :cut].abs().max().item()
        if not _is_rounding(probe, leak, before, training=training):
            raise ExperimentError(
                f'changing the tokens from position {cut} on changes what the model computes before it, by '
                f'up to {leak:.2g}{_in_mode(training)}: it sees the future. Mask its attention, or declare '
                '`causal = False` on the class, and it is never ranked against models that predict the next '
                'token.'
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


def _independent(probe: Probe) -> None:
    """What is computed of a sequence does not depend on the rest of its batch."""
    if probe.model.batch_dependent:
        return
    short, *long = _sizes(probe)
    for training in (False, True):
        for size, places in ((short, range(short[0])), (_odd_size(probe), (0,))):
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
    if difference <= limit:
        return True
    size = _sizes(probe)[0]
    x, before = probe.text(*size), probe.baseline(*size, training=training)
    noise = max((probe.result(x, training=training) - before).abs().max().item() for _ in range(REPEATS))
    return difference <= limit + 2 * noise


def _in_mode(training: bool) -> str:
    return ' in training mode' if training else ''


def _cache(probe: Probe) -> None:
    """Generation through the cache gives, at any length, what a pass over the whole text gives."""
    model = probe.model
    if not model.takes_cache or not model.causal:  # without causality the two cannot be the same
        return
    for size in _sizes(probe):
        _through_cache(probe, size, _chunk_ends(size[1]))
        _through_cache(probe, size, sorted({-(-2 * size[1] // 3), size[1]}))  # as after a prompt


def _through_cache(probe: Probe, size: tuple[int, int], ends: list[int]) -> None:
    model, x = probe.model, probe.text(*size)
    whole = probe.logits_of(probe.baseline(*size)[:, [end - 1 for end in ends]])
    limit = probe.limit(probe.precision.cached, whole, in_logits=True)
    cache: list = []
    at = 0
    for place, end in enumerate(ends):
        with torch.no_grad():
            answer = model.eval()(x[:, at:end], cache=cache)
        if not isinstance(answer, tuple):
            return  # logits alone: the model generates without a cache
        logits, cache = answer
        difference = (logits[:, -1] - whole[:, place]).abs().max().item()
        if not difference <= limit:
            raise ExperimentError(
                f'with a cache, logits at position {end - 1} differ from those of a pass over the whole text '
                'by up to '
                f'{difference:.2g} (positions {at} to {end - 1}, after {at} cached ones): generated text '
                'would not be this '
                f"model's."
            )
        at = end


def _chunk_ends(length: int) -> list[int]:
    """Where a text of that length is cut: single tokens at the start, around powers of two and at the end,
    the rest in between."""
    ends = {1, 7, 8, 9, length - 1, length}
    power = 16
    while power < length:
        ends |= {power - 1, power, power + 1}
        power *= 2
    return sorted(end for end in ends if 1 <= end <= length)


def _kept(probe: Probe) -> None:
    """A model that is built again and given the same weights, as from a checkpoint, computes the same."""
    if probe.rebuild is None:
        return
    size = _sizes(probe)[0]
    before = probe.logits_of(probe.baseline(*size))
    try:
        loaded = probe.logits_when_loaded(probe.text(*size))
    except RuntimeError as error:
        reason = ' '.join(str(error).split())[:300]
        raise ExperimentError(
            'its weights do not fit the model that is built again from its parameters, so that no '
            f'checkpoint could be loaded ({reason}). Make every layer in __init__.'
        ) from error
    difference = (loaded - before).abs().max().item()
    if not difference <= probe.limit(probe.precision.equal, before, in_logits=True):
        raise ExperimentError(
            'a model built again and given the same weights computes something else, by up to '
            f'{difference:.2g}: part of it is not in its state_dict, so that a checkpoint '
            'loses it. Keep modules in nn.ModuleList or nn.ModuleDict, tensors in nn.Parameter or '
            'register_buffer.'
        )


def _gradients(probe: Probe) -> None:
    """Every trainable parameter gets a gradient within a few steps on random text."""
    model = probe.model.train()
    without = set(probe.trainable())
    if not without:
        return  # all of it is declared frozen, which the optimizer will say
    optimizer = torch.optim.AdamW([p for g in model.param_groups(0.0) for p in g['params']], lr=1e-3)
    for step in range(STEPS):
        x = probe.text(2, min(GRADIENT_POSITIONS, model.max_len), seed=step)
        model.before_step(StepContext('check', step, STEPS, 0))
        optimizer.zero_grad()
        loss = _loss(probe.output(x, training=True, seed=step), x)
        if not loss.requires_grad:
            raise ExperimentError(
                'no gradient reaches any parameter: the logits are detached from the graph.'
            )
        loss.backward()
        without -= {n for n, p in probe.trainable().items() if p.grad is not None and p.grad.any()}
        if not without:
            return
        optimizer.step()
        model.after_step(StepContext('check', step, STEPS, x.numel()))
    heads = {name for name in probe.trainable() if name.startswith('fc.')}
    if heads and without == probe.trainable().keys() - heads:
        raise ExperimentError('only the head `fc` gets a gradient: `features` are detached from the graph.')
    raise ExperimentError(
        f'{len(without)} trainable parameters get no gradient: {", ".join(sorted(without)[:5])}. Use them, '
        'or declare them '
        f'frozen (requires_grad_(False)).'
    )


def _loss(output: LMOutput, x: Tensor) -> Tensor:
    """The plain objective: cross-entropy of the next token and the weighted auxiliary losses."""
    assert output.logits is not None
    targets = x[:, 1:] if x.shape[1] > 1 else x
    logits = output.logits[:, : targets.shape[1]]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss + sum(value * weight for value, weight in output.losses.values())


OF_ALL_WEIGHTS: dict[str, Callable[[Probe], None]] = {
    'the same text gives the same result': _repeatable,
    'no position sees the future': _causal,
    'sequences of a batch are independent': _independent,
    'generation with the cache equals the whole pass': _cache,
    'a checkpoint keeps all of it': _kept,
}
