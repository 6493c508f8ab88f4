"""What of a model trains, and what of it a checkpoint keeps.

B sequences, T positions, V vocabulary.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..base.base_model import LMBase, LMOutput, StepContext
from ..errors import ExperimentError
from .probe import CHECK, Probe
from .runnable import defines_both

POSITIONS = 16  # of the texts that are trained on
STEPS = 30  # after which every trainable parameter must have had a gradient
LR = 1e-3


def check_tensors(model: LMBase) -> None:
    """Every tensor of a checkpoint has its shape and its own memory, except tied parameters."""
    named = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in named if is_lazy(tensor)]:
        raise ExperimentError(
            f"'{lazy[0]}' has no shape yet (a lazy module): it would train and save, and could never be "
            'loaded. Give its sizes, or run the module once in __init__.'
        )
    if unseen := _unregistered(model):
        raise ExperimentError(
            f'{unseen} is in a plain list or dictionary: its parameters would neither train nor be saved. '
            'Keep modules in nn.ModuleList or nn.ModuleDict, parameters in nn.ParameterList or '
            'nn.ParameterDict.'
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    owners: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta or not tensor.numel():
            continue
        owner, other = owners.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor))
        if other is not tensor or (name in parameters) != (owner in parameters):
            raise ExperimentError(
                f"'{name}' shares memory with '{owner}' without being the same parameter: a checkpoint "
                'cannot hold both. Register a copy (.clone()).'
            )
        if any(n > 1 and not step for n, step in zip(tensor.shape, tensor.stride())):
            raise ExperimentError(
                f"'{name}' is expanded, several of its values share memory: a checkpoint of it could never "
                'be loaded. Register a copy (.clone()).'
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


def check_head(probe: Probe) -> None:
    """A forward of the model's own gives what the head makes of its features, in evaluation and in training.

    Without dropout, which it may well have of its own in training.
    """
    model = probe.model
    if not defines_both(model):
        return
    x = probe.text(*probe.sizes()[0])
    for training in (False, True):
        with probe.without_dropout(), torch.no_grad():
            logits = probe.result(x, training=training)
            probe.prepare(training=training)
            features = model.features(x)
            features = features.features if isinstance(features, LMOutput) else features
            other = model.fc(features)[..., : logits.shape[-1]]
        difference = (logits - other).abs().max().item()
        if not difference <= probe.limit(probe.precision.equal, logits, in_logits=True):
            raise ExperimentError(
                f'forward(x) and fc(features(x)) are not the same (logits differ by up to {difference:.3g}'
                f'{" in training mode" if training else ""}). Drop `forward` if the second is meant, or '
                'rename `features` if the first is.'
            )


def check_gradients(probe: Probe) -> None:
    """Every trainable parameter gets a gradient, and is updated, within a few steps on random text."""
    model = probe.model.train()
    without = set(probe.trainable())
    if not without:
        return  # all of it is declared frozen, which the optimizer will say
    updated = [p for group in model.param_groups(0.0) for p in group['params']]
    _all_updated(probe, updated)
    for step in range(STEPS):
        x = probe.text(2, min(POSITIONS, model.max_len), seed=step)
        model.before_step(StepContext(CHECK, step, STEPS, 0))
        model.zero_grad()
        with _attached(probe):
            loss = _loss(probe.output(x, training=True, seed=step), x)
        if not loss.requires_grad:
            raise ExperimentError(
                'no gradient reaches any parameter: the logits are detached from the graph.'
            )
        loss.backward()
        without -= {n for n, p in probe.trainable().items() if p.grad is not None and p.grad.any()}
        _update(updated)
        model.after_step(StepContext(CHECK, step, STEPS, x.numel()))
        if not without:
            model.zero_grad()  # which takes as much memory as the model
            return
    raise ExperimentError(
        f'{len(without)} trainable parameters get no gradient: {", ".join(sorted(without)[:5])}. Use them, '
        'or declare them frozen (requires_grad_(False)).'
    )


@torch.no_grad()
def _update(parameters: list[nn.Parameter]) -> None:
    """Adam's first step, without the memory of its moments."""
    for p in parameters:
        if p.grad is not None:
            p.sub_(p.grad.to_dense().sgn(), alpha=LR)


def _all_updated(probe: Probe, updated: list[nn.Parameter]) -> None:
    known = {id(p) for p in updated}
    if left := [name for name, p in probe.trainable().items() if id(p) not in known]:
        raise ExperimentError(
            f'`param_groups` leaves out {len(left)} trainable parameters, which would never be updated: '
            f'{", ".join(left[:5])}. Add them, or declare them frozen (requires_grad_(False)).'
        )


@contextlib.contextmanager
def _attached(probe: Probe) -> Iterator[None]:
    """Inside it, features that carry no gradient to what is trained before them are refused.

    An auxiliary loss may give all of it a gradient, and the loss of the next token none.
    """
    model = probe.model
    features = model.features
    body = [name for name in probe.trainable() if not name.startswith('fc.')]

    def watched(*args, **kwargs):
        out = features(*args, **kwargs)
        given = out.features if isinstance(out, LMOutput) else out
        if body and isinstance(given, Tensor) and not given.requires_grad:
            raise ExperimentError(
                'only the head `fc` gets a gradient: `features` are detached from the graph.'
            )
        return out

    model.features = watched
    try:
        yield
    finally:
        del model.features


def _loss(output: LMOutput, x: Tensor) -> Tensor:
    """The plain objective: cross-entropy of the next token and the weighted auxiliary losses."""
    assert output.logits is not None
    targets = x[:, 1:] if x.shape[1] > 1 else x
    logits = output.logits[:, : targets.shape[1]]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss + sum(value * weight for value, weight in output.losses.values())


def check_kept(probe: Probe) -> None:
    """A model that is built again and given the same weights, as from a checkpoint, computes the same."""
    if probe.rebuild is None:
        return
    size = probe.sizes()[0]
    before = probe.logits_of(probe.baseline(*size))
    try:
        loaded = probe.rebuilt()
        _check_initialised(loaded)
        loaded.load_state_dict(probe.model.state_dict())
    except RuntimeError as error:
        reason = ' '.join(str(error).split())[:300]
        raise ExperimentError(
            'its weights do not fit the model that is built again from its parameters, so that no '
            f'checkpoint could be loaded ({reason}). Make every layer in __init__.'
        ) from error
    with probe.replaced(loaded):
        difference = (probe.logits_of(probe.result(probe.text(*size))) - before).abs().max().item()
    if not difference <= probe.limit(probe.precision.equal, before, in_logits=True):
        raise ExperimentError(
            'a model built again and given the same weights computes something else, by up to '
            f'{difference:.2g}: part of it is not in its state_dict, so that a checkpoint '
            'loses it. Keep modules in nn.ModuleList or nn.ModuleDict, tensors in nn.Parameter or '
            'register_buffer, and what changes in training in buffers too.'
        )


def _check_initialised(fresh: LMBase) -> None:
    """Of a model in whose parameters memory that nothing was written to is NaN."""
    for name, p in fresh.named_parameters():
        if p.isnan().any():
            raise ExperimentError(
                f"parameter '{name}' is made without values (torch.empty, torch.Tensor) and never given any: "
                'it starts with whatever the memory holds. Initialise it in __init__.'
            )
