"""What a checkpoint of a stage holds."""

from dataclasses import dataclass

import torch

from ..base.base_model import LMBase
from ..runs.checkpoints import Checkpoints
from ..runs.recorder import Recorder
from .optimizer import Optimizer
from .state import TrainState


@dataclass
class StageCheckpoints:
    """Saves a stage's model, optimizer and state.

    header: what state.json holds that does not change within a stage.
    """

    checkpoints: Checkpoints
    header: dict
    model: LMBase
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    state: TrainState
    recorder: Recorder

    def save(self, *, link: str | None = None) -> None:
        """Writes a checkpoint of now, and lets `last`, `link` and, where it is the best so far,
        `best` name it."""
        best = self.state.take_best()
        states = {'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict()}
        header = self.header | {'progress': self.state.to_dict(), 'logs': self.recorder.offsets()}
        # `last` is linked last: resuming trusts it
        links = [*(['best'] if best else []), *([link] if link else []), 'last']
        self.checkpoints.save(self.state.total_step, self.model, states, header, links)
