"""What is measured between two logging points, summed on the device so that no step waits for it."""

import torch
from torch import Tensor

from ..data.rows import Batch
from .objective import MicroLoss

MODEL = 'model/'  # prefix of what a model reports of itself; it cannot overwrite what is measured here


class MetricAccumulator:
    """Sums since the last `pop`. `seconds` of training and `waited` for data are set by the loop."""

    def __init__(self, device: torch.device):
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self.steps = self.tokens = self.scored = 0
        self.seconds = self.waited = 0.0
        self._loss = torch.zeros((), device=self.device)
        self._correct = self._skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self._norm = self._loss
        self._reported: dict[str, Tensor] = {}

    def begin_step(self) -> None:
        """Starts the sums of one step; those of a step that is retried are dropped."""
        self._step_loss = torch.zeros((), device=self.device)
        self._step_correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self._step_reported: dict[str, Tensor] = {}

    def add(self, micro: MicroLoss, share: float) -> None:
        """Adds a micro-batch that has that share of the step's tokens."""
        self._step_loss += micro.loss.float()
        self._step_correct += micro.correct
        for name, value in micro.output.reported().items():
            _accumulate(self._step_reported, name, value.detach().float() * share)

    def end_step(self, batch: Batch, norm: Tensor, *, seconds: float, waited: float) -> None:
        """Takes the step into the sums; norm: of its gradient, before clipping."""
        self.steps += 1
        self.tokens += batch.tokens
        self.scored += batch.scored
        self.seconds += seconds
        self.waited += waited
        self._norm = norm.detach()
        self._loss = self._loss + self._step_loss * batch.scored
        self._correct = self._correct + self._step_correct
        self._skipped = self._skipped + (~torch.isfinite(self._norm)).long()
        for name, value in self._step_reported.items():
            _accumulate(self._reported, name, value)

    def pop(self) -> dict:
        """The means since the last call, as Python numbers; waits for the device.

        `grad_norm` is the last step's.
        """
        scored = max(1, self.scored)
        record = {
            'steps': self.steps,
            'loss': self._loss.item() / scored,
            'accuracy': self._correct.item() / scored,
            'grad_norm': self._norm.item(),
            'skipped': self._skipped.item(),
            'scored': self.scored,
            'tokens': self.tokens,
            'tokens_per_second': self.tokens / self.seconds if self.seconds else None,
            'data_wait': self.waited / self.seconds if self.seconds else 0.0,
        }
        record |= {MODEL + name: (value / self.steps).tolist() for name, value in self._reported.items()}
        self._clear()
        return record


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
