"""How far the experts of each layer have moved from where they started.

E experts, P parameters of one expert.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from ..base.base_model import LMBase
from ..base.routed import Experts, RoutedLM
from ..errors import UserError
from ..runs.checkpoints import find_checkpoint
from ..runs.finished import StartedRun
from ..runs.load import load_model


@dataclass
class Drift:
    """How far the experts of one layer have moved.

    norm     (E,) norm of an expert's change, relative to that of its start
    cosine   (E,) between an expert and its start
    between  (E, E) cosines between the changes of two experts, NaN where one has not changed
    """

    norm: np.ndarray
    cosine: np.ndarray
    between: np.ndarray


@torch.no_grad()
def drift(now: Experts, start: Experts | None) -> Drift:
    """The drift of a layer's experts from `start`, each from its own; without one, from their mean."""
    E = len(now.weights[0])
    gram, dot, own, length = torch.zeros(E, E), torch.zeros(E), torch.zeros(E), torch.zeros(E)
    for i, stacked in enumerate(now.weights):
        w_EP = stacked.detach().float().cpu().flatten(1)
        begun_EP = (
            w_EP.mean(0, keepdim=True)
            if start is None
            else start.weights[i].detach().float().cpu().flatten(1)
        )
        start_EP = begun_EP.expand_as(w_EP)
        added_EP = w_EP - start_EP
        gram += added_EP @ added_EP.t()
        dot += (w_EP * start_EP).sum(1)
        own += w_EP.square().sum(1)
        length += start_EP.square().sum(1)
    added = gram.diagonal().clamp(min=0).sqrt()
    between = torch.where(torch.outer(added, added) > 0, gram / torch.outer(added, added), torch.nan)
    tiny = torch.finfo(torch.float32).tiny
    cosine = dot / (own * length).sqrt().clamp(min=tiny)
    return Drift(
        (added / length.sqrt().clamp(min=tiny)).numpy(),
        cosine.clamp(-1, 1).numpy(),
        between.clamp(-1, 1).numpy(),
    )


def experts_of(model: LMBase) -> list[Experts]:
    """The experts of a model, by layer; empty for a dense one."""
    return model.experts() if isinstance(model, RoutedLM) else []


def start_of(model: LMBase, run: StartedRun | None, stage: str) -> tuple[list[Experts] | None, str]:
    """(the experts as the model got them, what that is called), or (None, why their mean serves instead).

    A warm start is repeated; it is the same each time.
    """
    if run is None:
        return None, 'their mean, because the run that they were trained in is not here'
    if stage not in run.stage_settings:
        return None, 'their mean, because the plan of the run has changed since'
    try:
        begun = _start(model, run, stage)
    except (UserError, OSError) as error:
        return None, f'their mean, because their start is unavailable ({str(error).rstrip(".")})'
    if begun is None:
        E = len(experts_of(model)[0].weights[0])
        return None, (
            f'their mean, because each started from random weights of its own; unrelated experts are '
            f'{(E - 1) ** 0.5:.2f} away from it, with cosines of {-1 / max(1, E - 1):.2f}'
        )
    return experts_of(begun), 'their state after the warm start'


def _start(model: LMBase, run: StartedRun, stage: str) -> LMBase | None:
    """The model as its experts began, before `stage` or an earlier one; None where from random weights."""
    origin = run.origin(stage)
    if origin == 'scratch':
        return None
    source = origin if origin.startswith('pretrained:') else _load(run, origin)
    if isinstance(source, LMBase) and _same_experts(source, model):
        return _start(model, run, origin.removeprefix('stage:')) if origin.startswith('stage:') else source
    begun = copy.deepcopy(model)
    begun.import_pretrained(source)
    return begun


def _load(run: StartedRun, origin: str) -> LMBase | str:
    """The model of an earlier stage or a checkpoint; the path where only the model can read it."""
    if origin.startswith('stage:'):
        return load_model(run.checkpoints / f'stage-{origin.removeprefix("stage:")}')[0]
    try:
        return load_model(find_checkpoint(origin))[0]
    except UserError:
        return origin


def _same_experts(one: LMBase, other: LMBase) -> bool:
    first, second = ([[w.shape for w in layer.weights] for layer in experts_of(m)] for m in (one, other))
    return first == second
