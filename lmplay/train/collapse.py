"""Says when the routing of a mixture collapses onto one expert.

What is done about it is the caller's decision.

L routed layers, E experts, k of them serve a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

# The study's alarm: one expert of eight above 60 % of the load with k = 1. Other k and E get as much of the
# way from a uniform load (0) to total collapse (1), in the busiest expert's load and in the entropy lost; at
# 60 % the least is lost where the other seven share the rest evenly.
STUDY_SHARE, STUDY_EXPERTS = 0.6, 8
ALWAYS = 0.99  # of the way: an expert that practically every token chooses


@dataclass(frozen=True)
class Alarm:
    """layer counts the routed layers from 0; share is the fraction of that layer's assignments that `expert`
    took. onset: this is the evaluation at which a collapse is first seen."""

    status: Literal['ok', 'warning', 'collapse']
    layer: int
    expert: int
    share: float
    message: str
    onset: bool = False


def concentration(load: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(L,) each: how far the load (L, E) is from uniform (0) on its way to total collapse (1), by its busiest
    expert and by its entropy.

    With k experts to a token none can take more than 1 / k, and no load has less entropy than log k.
    """
    E = load.shape[1]
    busiest = (load.amax(1) - 1 / E) / (1 / k - 1 / E)
    entropy = -torch.special.xlogy(load, load).sum(1)
    return busiest, (log(E) - entropy) / (log(E) - log(k))


def _study() -> tuple[float, float]:
    rest = (1 - STUDY_SHARE) / (STUDY_EXPERTS - 1)
    load = torch.tensor([[STUDY_SHARE, *[rest] * (STUDY_EXPERTS - 1)]], dtype=torch.float64)
    busiest, lost = concentration(load, 1)
    return busiest.item(), lost.item()


class CollapseAlarm:
    """A layer whose load has gone as far towards total collapse as the study's threshold is a warning;
    `patience` warnings in a row are a collapse.

    k: experts that serve a token. Where each of them serves every token there is nothing to collapse.
    names: of the layers; their numbers where there are none.
    """

    def __init__(self, *, k: int = 1, patience: int = 3, names: Sequence[str] = ()):
        self.k, self.names = k, names
        self.patience = patience
        self.warnings = 0  # in a row, up to now

    def update(self, load: Tensor) -> Alarm:
        """Takes the mean load over one window, (L, E), fractions of each layer's assignments.

        Reads it from its device.
        """
        load = load.detach().double().cpu()
        layers, E = load.shape
        collapsing = torch.zeros(layers, dtype=torch.bool)
        busiest = load.amax(1)
        if self.k < E:
            busiest, lost = concentration(load, self.k)
            least_busiest, least_lost = _study()
            collapsing = (busiest > least_busiest) & (lost > least_lost) | (busiest > ALWAYS)
        layer = int(torch.where(collapsing, busiest, busiest - 2).argmax())
        expert = int(load[layer].argmax())
        place = layer, expert, float(load[layer, expert])
        if not collapsing.any():
            self.warnings = 0
            return Alarm('ok', *place, '')
        self.warnings += 1
        named = f'routed layer {layer} (of {layers})'
        if len(self.names) == layers:
            named = self.names[layer]
        where = f'expert {expert} of {named} takes {place[2]:.1%} of the assignments'
        where += f', of at most {1 / self.k:.1%}' if self.k > 1 else ''
        if self.warnings < self.patience:
            told = f'Routing may collapse: {where} (warning {self.warnings} of {self.patience}).'
            return Alarm('warning', *place, told)
        told = f'Routing has collapsed: {where}, the evaluation number {self.warnings} in a row.'
        return Alarm('collapse', *place, told, onset=self.warnings == self.patience)

    def state_dict(self) -> dict[str, int]:
        return {'warnings': self.warnings}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.warnings = state['warnings']
