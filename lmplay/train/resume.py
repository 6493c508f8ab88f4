"""What a run finds in its directory, and whether it may continue it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from ..base.base_model import LMBase
from ..errors import CheckpointError
from ..runs.checkpoint import OPTIMIZER, STATE, load_optimizer, load_weights, read_state, save_checkpoint
from ..runs.directory import RunDirectory
from ..runs.links import LAST, point, restore_links
from ..runs.recorder import changed_log
from ..tokenizers import as_tokenizer, load_tokenizer
from .resolve import ResolvedStage
from .state import TrainState

TRAIN_STATE = TypeAdapter(TrainState)


@dataclass(frozen=True)
class SavedRun:
    """The last checkpoint of a run."""

    run_dir: Path
    folder: Path
    state: dict

    @property
    def train_state(self) -> TrainState:
        return TRAIN_STATE.validate_python(self.state['progress'])

    @property
    def record(self) -> dict[str, Any]:
        """How the run was trained (record.py); empty where that is not recorded, as in older runs."""
        record = self.state.get('record')
        return record if isinstance(record, dict) else {}

    @property
    def is_being_reset(self) -> bool:
        """Whether it began with --reset-history and is not finished: the same command then resumes it."""
        return bool(self.record.get('reset')) and not (self.run_dir / 'summary.json').is_file()

    def check_whole(self) -> None:
        """Raises CheckpointError where the state lacks what resuming reads of it."""
        needed = ('seed', 'stage', 'progress', 'logs', 'tokenizer', 'hyperparameters')
        lacking = [name for name in needed if name not in self.state]
        try:
            if not lacking and self.train_state.stage < 0:
                lacking = ['progress']
        except ValueError:  # not the fields of a TrainState
            lacking = ['progress']
        if lacking:
            raise CheckpointError(
                f"The checkpoint '{self.folder}' is damaged: {STATE} lacks a usable '{lacking[0]}'. Point "
                "'last' to another (ln -sfn step-... last), or use another --run-dir."
            )

    def check(self, stages: Sequence[str], *, seed: int) -> None:
        """Raises CheckpointError unless a run of these stages and this seed may continue it."""
        if self.state['seed'] != seed:
            raise CheckpointError(
                f"The run in '{self.run_dir}' was started with seed {self.state['seed']}; given: {seed}. "
                f'Use another --run-dir.'
            )
        at = self.state['progress']['stage']
        if self.state['stage'] not in list(stages)[at : at + 1]:
            raise CheckpointError(
                f'The run in \'{self.run_dir}\' has reached stage {at + 1}, "{self.state["stage"]}", and '
                f"this plan's stages are {', '.join(stages)}. Use another --run-dir, or --reset-history to "
                'start this plan with its weights.'
            )

    def check_logs(self) -> None:
        """Raises CheckpointError where a log of the run is not as it was when the checkpoint was written."""
        checksums = self.state.get('log_checksums') or {}  # which older runs lack
        if (name := changed_log(self.run_dir, self.state['logs'], checksums)) is not None:
            raise CheckpointError(
                f"The run in '{self.run_dir}' can't be resumed, because {name} is not as it was when its "
                'last checkpoint was written (the checksum differs). Put it back, use another --run-dir, or '
                "give --reset-history to start the run's history again from its weights."
            )

    def load_model(self, stage: ResolvedStage, device: torch.device) -> LMBase:
        """The stage's model with the saved weights.

        Raises CheckpointError where it is another model or tokenizer.
        """
        model = stage.runner.build(device)
        saved = self.state['tokenizer']
        imported = stage.init_from not in ('scratch', 'previous')  # weights that bring their tokenizer
        if 'tokenizer' in stage.runner.declared and (imported or 'tokenizer' not in stage.runner.given):
            model.tokenizer = load_tokenizer(saved['name'], self.folder)
        if saved['fingerprint'] != as_tokenizer(model.tokenizer).fingerprint:
            raise CheckpointError(
                f"The run in '{self.run_dir}' was trained with another tokenizer ({saved['name']}). Use "
                'another --run-dir.'
            )
        self._check_hyperparameters(model)
        try:
            load_weights(model, self.folder)
        except CheckpointError as error:
            raise CheckpointError(f'{error} Use another --run-dir for this model.') from error
        return model

    def load_optimizer(self) -> dict | None:
        """The states of optimizer and gradient scaler; None where they were not saved."""
        return load_optimizer(self.folder) if (self.folder / OPTIMIZER).is_file() else None

    def _check_hyperparameters(self, model: LMBase) -> None:
        """Refuses another model that happens to have weights of the same shapes."""
        saved = self.state['hyperparameters']
        own = json.loads(json.dumps(model.hyperparameters, default=str))
        changed = [f'{k} was {v!r} and is {own.get(k)!r}' for k, v in saved.items() if own.get(k) != v]
        if changed:
            raise CheckpointError(
                f"The run in '{self.run_dir}' has a different architecture: {'; '.join(changed)}. Use "
                'another --run-dir for this model.'
            )


def start_history_again(
    directory: RunDirectory, saved: SavedRun, model: LMBase, header: dict[str, Any]
) -> tuple[SavedRun, Path]:
    """Begins a new history with the model: (its first checkpoint, where the old history is now).

    The checkpoint is of step 0 and has no optimizer. The old history is moved once it is written.
    """
    shutil.rmtree(directory.reset_checkpoints, ignore_errors=True)
    folder = directory.reset_checkpoints / 'step-00000000'
    save_checkpoint(folder, model, None, header | {'progress': TrainState().to_dict(), 'logs': {}})
    point(directory.reset_checkpoints / 'last', folder)
    history = directory.complete_reset()
    assert history is not None
    last = directory.checkpoints / 'last'
    return SavedRun(saved.run_dir, last, read_state(last)), history


def find_saved(run_dir: Path, checkpoints: Path) -> SavedRun | None:
    """The last checkpoint in a run's directory, None where there is none.

    Raises CheckpointError where it is unusable.
    """
    last = checkpoints / LAST
    try:
        restore_links(checkpoints)
    except OSError as error:
        raise CheckpointError(
            f"The run in '{run_dir}' has lost its links to checkpoints, and they can't be restored: "
            f'{error.strerror}.'
        ) from error
    if (last / STATE).is_file():
        saved = SavedRun(run_dir, last, read_state(last))
        saved.check_whole()
        return saved
    if last.is_symlink() or any(checkpoints.glob('step-*')):
        raise CheckpointError(
            f"The run in '{run_dir}' has no usable checkpoint '{last}': it is missing or points to a damaged "
            f"one. Point it to another (ln -sfn step-... '{last}'), or use another --run-dir."
        )
    return None


def whole_model(directory: RunDirectory, stage: ResolvedStage, device: torch.device) -> LMBase:
    """The model at the end of a stage, of which each rank has trained a part."""
    last = directory.checkpoints / LAST
    return SavedRun(directory.path, last, read_state(last)).load_model(stage, device)
