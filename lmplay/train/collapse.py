"""Says when the routing of a mixture collapses onto one expert.

What is done about it is the caller's decision.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Alarm:
    """layer counts the routed layers from 0; share is the fraction of that layer's assignments that `expert`
    took."""

    status: Literal['ok', 'warning', 'collapse']
    layer: int
    expert: int
    share: float
    message: str


class CollapseAlarm:
    """One expert above `threshold` of a layer's assignments is a warning; `patience` warnings in a row are a
    collapse.

    With k experts to a token no expert can take more than 1 / k of the assignments: there the threshold must
    lie below.
    """

    def __init__(self, *, threshold: float = 0.6, patience: int = 3):
        self.threshold = threshold
        self.patience = patience
        self.warnings = 0  # in a row, up to now

    def update(self, load: Tensor) -> Alarm:
        """Takes the mean load over one window, (layers, E), fractions of each layer's assignments.

        Reads it from its device.
        """
        layers, experts = load.shape
        share, place = load.detach().float().cpu().flatten().max(0)
        share, (layer, expert) = float(share), divmod(int(place), experts)
        if share <= self.threshold or experts == 1:
            self.warnings = 0
            return Alarm('ok', layer, expert, share, '')
        self.warnings += 1
        where = f'expert {expert} of routed layer {layer} (of {layers}) takes {share:.1%} of the assignments'
        if self.warnings < self.patience:
            status, message = (
                'warning',
                f'Routing may collapse: {where} (warning {self.warnings} of {self.patience}).',
            )
        else:
            status, message = (
                'collapse',
                (
                    f'Routing has collapsed: {where}, {self.warnings} windows in a row above '
                    f'{self.threshold:.0%}.'
                ),
            )
        return Alarm(status, layer, expert, share, message)

    def state_dict(self) -> dict[str, int]:
        return {'warnings': self.warnings}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.warnings = state['warnings']
