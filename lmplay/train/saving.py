"""What a checkpoint of a stage holds."""

from dataclasses import dataclass, replace

import torch

from ..base.base_model import LMBase
from ..errors import CheckpointError
from ..runs.checkpoints import Checkpoints
from ..runs.directory import RunDirectory
from ..runs.recorder import NoRecorder, Recorder
from .optimizer import Optimizer
from .ranks import ALONE, Ranks
from .state import TrainState


@dataclass
class StageCheckpoints:
    """Saves a stage's model, optimizer and state.

    header: what state.json holds that does not change within a stage. sharded: each rank has a
    part of the model, and writes it.
    """

    checkpoints: Checkpoints
    header: dict
    model: LMBase
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    state: TrainState
    recorder: Recorder | NoRecorder
    ranks: Ranks = ALONE
    sharded: bool = False

    def save(self, *, link: str | None = None) -> None:
        """Writes a checkpoint of now, and lets `last`, `link` and, where it is the best so far,
        `best` name it."""
        best = self.state.take_best()
        if not (self.ranks.first or self.sharded):
            return
        states = {'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict()}
        logs = {'logs': self.recorder.offsets(), 'log_checksums': self.recorder.checksums()}
        header = self.header | {'progress': self.state.to_dict()} | logs
        # `last` is linked last: resuming trusts it
        links = [*(['best'] if best else []), *([link] if link else []), 'last']
        what = self.state.total_step, self.model, states, header, links
        if self.sharded:
            self.checkpoints.save_sharded(*what, first=self.ranks.first, gathered=self.ranks.gathered)
        else:
            self.checkpoints.save(*what)

    def removed(self) -> str | None:
        """The name of a file of the run that is no longer where it was written; None where all are. All ranks
        ask, and rank 0 knows."""
        own = self.recorder.removed() or self.checkpoints.removed()
        return self.ranks.gathered(own)[0] if self.ranks.largest(own is not None)[0] else None

    def rescue_what_was_removed(self, directory: RunDirectory) -> None:
        """Where files of the run in `directory` have been removed, writes its logs and a checkpoint of now
        into another. Raises CheckpointError then."""
        if (removed := self.removed()) is None:
            return
        first = str(directory.rescued().path) if self.ranks.first else ''
        elsewhere = RunDirectory(self.ranks.gathered(first)[0])
        self.recorder.copy(elsewhere.path)
        there = Checkpoints(elsewhere.checkpoints, keep=1, background=False)
        replace(self, checkpoints=there).save()
        raise CheckpointError(
            f"'{removed}' was removed from '{directory.path}' while the run was training, so the run was "
            f"stopped. Its records and weights are saved in '{elsewhere.path}'; to resume, give that as "
            '--run-dir.'
        )
