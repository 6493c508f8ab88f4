"""How far the experts of each layer have come from where they began.

E experts, P parameters of one expert.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from ..base.base_model import Experts, LMBase
from ..errors import UserError
from ..runs.checkpoint import find_checkpoint, load_model
from ..train.stages import Run


@dataclass
class Drift:
    """norm (E,): length of what was added to an expert since its start, relative to the start's. cosine (E,): between an expert
    and its start. between (E, E): cosines between what was added to two experts, NaN where nothing was."""

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


def start_of(model: LMBase, run: Run | None, stage: str) -> tuple[list[Experts] | None, str]:
    """(the experts as they were when the model got them in `stage` or before it, what they are called), or (None, why there is
    nothing better than their mean). A warm start is done again; it is the same each time."""
    if run is None:
        return None, 'their mean, for the run that they were trained in is not here'
    stages = list(run.plan.stages)
    if stage not in stages:
        return None, 'their mean, for the plan of the run has changed since'
    try:
        begun = _began(model, run, stages.index(stage))
    except (UserError, OSError) as error:
        return None, f'their mean, for what they began as is not to be had: {error}'
    if begun is None:
        E = len(getattr(model, 'experts')()[0].weights[0])  # noqa: B009
        return None, (
            f'their mean, for each began with random weights of its own. Experts that have nothing in common are {(E - 1) ** 0.5:.2f} away '
            f'from it, with cosines of {-1 / max(1, E - 1):.2f}'
        )
    return begun.experts(), 'their start, as the warm start left them'


def _began(model: LMBase, run: Run, index: int) -> LMBase | None:
    """The model as its warm start left it before stage `index` or, where that only carried its experts on, an earlier one; None
    where it began with random weights."""
    names = list(run.plan.stages)
    initial = run.settings.initial_model if index == 0 else None
    source = initial or run.stage(index).init_from
    if source == 'scratch' or source == 'previous' and index == 0:
        return None
    if source == 'previous' or source.startswith('stage:'):
        before = index - 1 if source == 'previous' else names.index(source.removeprefix('stage:'))
        source, _ = load_model(run.checkpoints / f'stage-{names[before]}')
        if _same_experts(source, model):
            return _began(model, run, before)
    elif not source.startswith('pretrained:'):
        try:
            source, _ = load_model(find_checkpoint(source))
        except UserError:
            pass  # a folder of another format, which the model knows to read
        if isinstance(source, LMBase) and _same_experts(source, model):
            return source
    begun = copy.deepcopy(model)
    begun.import_pretrained(source)
    return begun


def _same_experts(one: LMBase, other: LMBase) -> bool:
    def shapes(model):
        return [
            [w.shape for w in layer.weights]
            for layer in (model.experts() if hasattr(model, 'experts') else [])
        ]

    return shapes(one) == shapes(other)
