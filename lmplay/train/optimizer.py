"""Optimizers and learning-rate schedules."""

import math
import re
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base.base_model import LMBase
from ..base.lazy_dynamo import step_without_dynamo
from ..base.roles import parameter_roles
from ..errors import CheckpointError, PlanError
from .plan import Stage


def learning_rate(stage: Stage, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0): a pure function, so that resuming needs no state.

    Linear warm-up from lr / warm-up steps, or from 0 (`warmup_from_zero`); then constant, cosine (Loshchilov
    and Hutter 2017) or linear to final_lr * lr at total_steps, or 'wsd': constant, then linear to
    final_lr * lr over the last fifth (Hu et al. 2024, MiniCPM), or over what a longer warm-up leaves of it.
    """
    warmup = warmup_steps(stage, total_steps)
    if step < warmup:
        return stage.lr * (step + (not stage.warmup_from_zero)) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if stage.schedule == 'constant':
        return stage.lr
    if stage.schedule == 'cosine':
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    elif stage.schedule == 'linear':
        share = 1 - min(1.0, done)
    else:
        decay_steps = max(1, min(0.2 * total_steps, total_steps - warmup))
        share = min(1.0, max(0.0, (total_steps - step) / decay_steps))
    return stage.lr * (stage.final_lr + (1 - stage.final_lr) * share)


def warmup_steps(stage: Stage, total_steps: int) -> int:
    if stage.warmup >= 1:
        return round(stage.warmup)
    # whole steps begun, as the code does that hands them to transformers' schedules
    return int(stage.warmup * total_steps) if stage.warmup_from_zero else round(stage.warmup * total_steps)


def unfinished_warmup(stage: Stage, total_steps: int) -> str | None:
    """A sentence where the warm-up leaves nothing of the stage to the schedule, else None."""
    warmup = warmup_steps(stage, total_steps)
    if warmup < total_steps or warmup < 2:
        return None
    highest = learning_rate(stage, total_steps - 1, total_steps)
    rises = 'until its last step' if warmup == total_steps else f'only to {highest:.3g} of {stage.lr:g}'
    return (
        f'Stage "{stage.name}": the warm-up of {warmup:,} steps takes the whole stage of {total_steps:,}; '
        f'the learning rate rises {rises}, and schedule {stage.schedule} never begins. '
        f'Shorten --warmup or lengthen the stage.'
    )


class Optimizer(Protocol):
    """What the trainer asks of an optimizer; torch's own and MuonWithAdamW have it."""

    @property
    def param_groups(self) -> list[dict]: ...

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state_dict: dict) -> None: ...


class _Skipping:
    """Makes the step of one of torch's optimizers do nothing where `found_inf` is 1, as fused kernels do by
    themselves, without reading it: weights and moments are put back on their device.

    Counters that torch keeps on the host count skipped steps too; they enter no number of these optimizers.
    """

    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None
    param_groups: list[dict]
    state: dict

    @torch.no_grad()
    def step(self) -> None:
        found_inf, own = self.found_inf, [p for g in self.param_groups for p in g['params']]
        if found_inf is None:
            super().step()  # type: ignore[misc]
            return
        own = [p for p in own if p.grad is not None]
        before = {id(t): t.clone() for p in own for t in (p, *self.state[p].values()) if _is_on(found_inf, t)}
        self.found_inf = None  # Adagrad's own step would refuse it
        super().step()  # type: ignore[misc]
        self.found_inf = found_inf
        for p in own:
            for t in (p, *self.state[p].values()):
                if _is_on(found_inf, t):
                    # what has just been made began at 0
                    torch.where(found_inf == 0, t, before.get(id(t), torch.zeros_like(t)), out=t)


def _is_on(other: Tensor, tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.device == other.device


class Adagrad(_Skipping, torch.optim.Adagrad):
    """torch's, skipping on the device."""


class RMSprop(_Skipping, torch.optim.RMSprop):
    """torch's, skipping on the device."""


class SGD(torch.optim.SGD):
    """torch's, with momentum that begins at 0: the fused kernel, when it skips the very first step, would
    leave it uninitialised."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group['params'] if p.grad is not None):
            if self.state[p].get('momentum_buffer') is None:
                self.state[p]['momentum_buffer'] = torch.zeros_like(p)
        super().step()


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum, for matrices (A, B) and stacks of them (..., A, B).

    Each matrix of a stack is a weight of its own. The update has the root mean square of AdamW's (Liu et al.
    2025, "Muon is scalable for LLM training", section 2.2), so that AdamW's learning rates and decay serve.
    torch's own takes single matrices only and cannot skip a step without waiting for the device.
    """

    _step_supports_amp_scaling = True  # a step that `found_inf` forbids changes nothing
    found_inf: Tensor | None = None

    def __init__(self, params: list[dict], *, lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    self._step(p, **{k: group[k] for k in ('lr', 'weight_decay', 'momentum')})

    def _step(self, p: Tensor, *, lr: float, weight_decay: float, momentum: float) -> None:
        state, gradient = self.state[p], p.grad
        assert gradient is not None
        if not state:
            state['momentum_buffer'] = torch.zeros_like(p)
        average = state['momentum_buffer'].lerp(gradient, 1 - momentum)
        update = orthogonalized(gradient.lerp(average, momentum))
        moved = (p * (1 - lr * weight_decay)).add_(update, alpha=-lr * 0.2 * max(p.shape[-2:]) ** 0.5)
        for tensor, new in ((state['momentum_buffer'], average), (p, moved)):
            tensor.copy_(new if self.found_inf is None else torch.where(self.found_inf == 0, new, tensor))


def orthogonalized(gradient: Tensor, *, steps: int = 5) -> Tensor:
    """Each matrix (..., A, B) with its singular values moved near 1, in bfloat16: Newton-Schulz iteration
    with the coefficients of Jordan et al. 2024."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.reshape(-1, *gradient.shape[-2:]).bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(gradient.shape)


class MuonWithAdamW:
    """Muon for hidden matrices, AdamW for the rest (Jordan et al. 2024); one optimizer to its user."""

    found_inf: Tensor | None = None

    def __init__(self, matrices: list[dict], rest: Optimizer | None, *, lr: float):
        self.parts: list[Any] = [Muon(matrices, lr=lr), *([] if rest is None else [rest])]
        self._step_supports_amp_scaling = all(skips_by_itself(part) for part in self.parts)

    @property
    def param_groups(self) -> list[dict]:
        return [g for part in self.parts for g in part.param_groups]

    def step(self):
        for part in self.parts:
            part.found_inf = self.found_inf
            part.step()

    def zero_grad(self, set_to_none: bool = True):
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict:
        return {'parts': [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict):
        for part, part_state in zip(self.parts, state_dict['parts'], strict=True):
            part.load_state_dict(part_state)


def skips_by_itself(optimizer: Optimizer) -> bool:
    """Whether a step does nothing where `optimizer.found_inf`, on the device, is 1."""
    return getattr(optimizer, '_step_supports_amp_scaling', False)


def parameter_groups(model: LMBase, stage: Stage) -> list[dict]:
    """The model's parameter groups, all of them with the stage's weight decay where it sets `decay_all`."""
    groups = model.param_groups(stage.weight_decay)
    return [g | {'weight_decay': stage.weight_decay} for g in groups] if stage.decay_all else groups


def make_optimizer(model: LMBase, stage: Stage, groups: list[dict] | None = None) -> Optimizer:
    """The stage's optimizer over the model's parameter groups, unless others are given. Fused where the
    device has it."""
    groups = parameter_groups(model, stage) if groups is None else groups
    parameters = [p for g in groups for p in g['params']]
    if not parameters:
        raise PlanError(
            'No parameter of the model is trainable; with --default-freeze mark those that are with '
            '`p.freeze = False`.'
        )
    fused = parameters[0].device.type in ('cpu', 'cuda') and all(p.is_floating_point() for p in parameters)
    makers: dict[str, Callable[[], Optimizer]] = {
        'adamw': lambda: torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, fused=fused),
        'adam': lambda: torch.optim.Adam(groups, lr=stage.lr, betas=stage.betas, fused=fused),
        'sgd': lambda: SGD(groups, lr=stage.lr, momentum=0.9, fused=fused),
        'adagrad': lambda: Adagrad(groups, lr=stage.lr),
        'rmsprop': lambda: RMSprop(groups, lr=stage.lr),
        'muon': lambda: _muon(model, groups, stage, fused=fused),
    }
    optimizer = makers[stage.optimizer]()
    for part in getattr(optimizer, 'parts', [optimizer]):
        step_without_dynamo(part)
    return optimizer


def _muon(model: LMBase, groups: list[dict], stage: Stage, *, fused: bool) -> MuonWithAdamW:
    """Muon for hidden matrices, stacked ones included; head, embeddings and all else stay with AdamW."""
    roles = parameter_roles(model)
    hidden = {id(p) for name, p in model.named_parameters() if roles[name] == 'matrix'}
    matrices, rest = [], []
    for group in groups:
        chosen = [p for p in group['params'] if id(p) in hidden]
        others = [p for p in group['params'] if id(p) not in hidden]
        matrices += [{**group, 'params': chosen}] if chosen else []
        rest += [{**group, 'params': others}] if others else []
    if not matrices:
        raise PlanError('Optimizer muon needs at least one trainable hidden matrix.')
    adamw = torch.optim.AdamW(rest, lr=stage.lr, betas=stage.betas, fused=fused) if rest else None
    return MuonWithAdamW(matrices, adamw, lr=stage.lr)


def assignments(model: LMBase, stage: Stage) -> list[str]:
    """Which parameters the stage's optimizer updates how: a line for each rule and role, with the names of
    the parameters, numbered layers drawn together."""
    roles = parameter_roles(model)
    found: dict[tuple[str, float, str], list[tuple[str, Tensor]]] = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in parameter_groups(model, stage):
        for p in group['params']:
            role = roles[names[id(p)]]
            muon = stage.optimizer == 'muon'
            rule = 'adamw' if muon and role != 'matrix' else stage.optimizer
            found.setdefault((rule, group['weight_decay'], role), []).append((names[id(p)], p))
    lines = []
    for (rule, decay, role), members in found.items():
        unique = dict.fromkeys(re.sub(r'(^|\.)\d+(?=\.|$)', r'\1*', name) for name, _ in members)
        size = sum(p.numel() for _, p in members)
        lines.append(f'{rule}, weight decay {decay:g}, {role}: {", ".join(unique)} ({size:,} parameters)')
    return lines


def restore_moments(optimizer: Optimizer, state: dict) -> None:
    """Loads the saved moments; the settings (lr, decay, ...) stay those of the stage at hand."""
    own = optimizer.state_dict()
    pairs = list(zip(own['parts'], state['parts'])) if 'parts' in own and 'parts' in state else [(own, state)]
    for mine, saved in pairs:
        if 'parts' in mine or 'parts' in saved or _kind(mine) != _kind(saved):
            raise CheckpointError(
                "The optimizer's saved state is of another optimizer or other parameters. --ignore-optimizer "
                'starts it afresh.'
            )
        mine['state'] = saved['state']
    optimizer.load_state_dict(own)


def _kind(state: dict) -> list:
    """What tells optimizers apart: for each group the number of its parameters,
    and settings that only some optimizers have."""
    return [
        (len(g['params']), {'betas', 'momentum', 'alpha', 'lr_decay'} & g.keys())
        for g in state['param_groups']
    ]


def clip_gradients(parameters: list[Tensor], largest: float | None) -> Tensor:
    """Scales gradients down to norm `largest`; returns the norm before, on the device,
    without waiting for it."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads, foreach=True if grads[0].is_cuda else None)
    if type(norm) is not Tensor:  # of sharded gradients each rank has a part
        norm = norm.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
    if largest:
        torch.nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], largest, norm)
    return norm
