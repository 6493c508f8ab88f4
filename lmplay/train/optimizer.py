"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base.base_model import LMBase
from ..base.lazy_dynamo import step_without_dynamo
from ..errors import CheckpointError, PlanError
from .plan import Stage


def learning_rate(stage: Stage, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0): a pure function, so that resuming needs no state.

    Linear warm-up from lr / warm-up steps; then constant, cosine (Loshchilov and Hutter 2017) or linear to
    final_lr * lr at total_steps, or 'wsd': constant, then linear to final_lr * lr over the last fifth (Hu et
    al. 2024, MiniCPM).
    """
    warmup = round(stage.warmup * total_steps) if stage.warmup < 1 else round(stage.warmup)
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if stage.schedule == 'constant':
        return stage.lr
    if stage.schedule == 'cosine':
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    elif stage.schedule == 'linear':
        share = 1 - min(1.0, done)
    else:
        share = min(1.0, (total_steps - step) / max(1, 0.2 * total_steps))
    return stage.lr * (stage.final_lr + (1 - stage.final_lr) * share)


class Optimizer(Protocol):
    """What the trainer asks of an optimizer; torch's own and MuonWithAdamW have it."""

    @property
    def param_groups(self) -> list[dict]: ...

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state_dict: dict) -> None: ...


class MuonWithAdamW:
    """Muon for hidden weight matrices, AdamW for the rest (Jordan et al. 2024); one optimizer to its user."""

    def __init__(self, matrices: list[dict], rest: list[dict], *, lr: float, betas: tuple[float, float]):
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, adjust_lr_fn='match_rms_adamw'),
            torch.optim.AdamW(rest, lr=lr, betas=betas),
        ]

    @property
    def param_groups(self) -> list[dict]:
        return [g for part in self.parts for g in part.param_groups]

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True):
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict:
        return {'parts': [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict):
        for part, part_state in zip(self.parts, state_dict['parts'], strict=True):
            part.load_state_dict(part_state)


def make_optimizer(model: LMBase, stage: Stage) -> Optimizer:
    """The stage's optimizer over the model's parameter groups. Fused where the device has it."""
    groups = model.param_groups(stage.weight_decay)
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
        'sgd': lambda: torch.optim.SGD(groups, lr=stage.lr, momentum=0.9, fused=fused),
        'adagrad': lambda: torch.optim.Adagrad(groups, lr=stage.lr),
        'rmsprop': lambda: torch.optim.RMSprop(groups, lr=stage.lr),
        'muon': lambda: _muon(model, groups, stage),
    }
    optimizer = makers[stage.optimizer]()
    for part in getattr(optimizer, 'parts', [optimizer]):
        step_without_dynamo(part)
    return optimizer


def _muon(model: LMBase, groups: list[dict], stage: Stage) -> MuonWithAdamW:
    """Muon for two-dimensional weights with decay; head and embeddings stay with AdamW."""
    if not hasattr(torch.optim, 'Muon'):
        raise PlanError(f'Optimizer muon needs torch 2.9 or newer; installed: {torch.__version__}.')
    head = {id(p) for p in getattr(model, 'fc', torch.nn.Identity()).parameters()}
    matrices, rest = [], []
    for group in groups:
        chosen = [p for p in group['params'] if p.ndim == 2 and group['weight_decay'] and id(p) not in head]
        ids = {id(p) for p in chosen}
        others = [p for p in group['params'] if id(p) not in ids]
        matrices += [{**group, 'params': chosen}] if chosen else []
        rest += [{**group, 'params': others}] if others else []
    if not matrices:
        raise PlanError(
            'Optimizer muon needs a weight decay above 0 and at least one trainable hidden matrix.'
        )
    return MuonWithAdamW(matrices, rest, lr=stage.lr, betas=stage.betas)


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
    if largest:
        torch.nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], largest, norm)
    return norm
