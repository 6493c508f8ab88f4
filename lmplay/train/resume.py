"""What a run finds in its directory, and whether it may continue it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..base.base_model import LMBase
from ..errors import CheckpointError
from ..runs.checkpoint import OPTIMIZER, STATE, load_optimizer, load_weights, read_state
from ..runs.links import LAST, restore_links
from ..tokenizers import as_tokenizer, load_tokenizer
from .resolve import ResolvedStage
from .state import TrainState


@dataclass(frozen=True)
class SavedRun:
    """The last checkpoint of a run."""

    run_dir: Path
    folder: Path
    state: dict

    @property
    def train_state(self) -> TrainState:
        return TrainState(**self.state['progress'])

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
                "this plan's "
                f'stages are {", ".join(stages)}. Use another --run-dir, or --reset-history to start this '
                'plan with '
                f'its weights.'
            )

    def load_model(self, stage: ResolvedStage, device: torch.device) -> LMBase:
        """The stage's model with the saved weights.

        Raises CheckpointError where it is another model or tokenizer.
        """
        model = stage.runner.build(device)
        saved = self.state['tokenizer']
        if 'tokenizer' in stage.runner.declared and 'tokenizer' not in stage.runner.given:
            model.tokenizer = load_tokenizer(
                saved['name'], self.folder
            )  # imported weights may have brought it
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
                f"The run in '{self.run_dir}' is of another architecture: {'; '.join(changed)}. Use another "
                '--run-dir '
                f'for this model.'
            )


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
        return SavedRun(run_dir, last, read_state(last))
    if last.is_symlink() or any(checkpoints.glob('step-*')):
        raise CheckpointError(
            f"The run in '{run_dir}' has no usable checkpoint '{last}': it is missing or points to a damaged "
            'one. Point it '
            f"to another (ln -sfn step-... '{last}'), or use another --run-dir."
        )
    return None


def changed_settings(run_dir: Path, stages: Sequence[dict], *, first: int) -> list[str]:
    """A sentence for each stage, from number `first` on, that a resumed run trains with other settings than
    before."""
    try:
        before = json.loads((run_dir / 'settings.json').read_text())['stages']
    except (OSError, ValueError, KeyError, TypeError):
        return []
    sentences = []
    for old, new in list(zip(before, json.loads(json.dumps(stages, default=str))))[first:]:
        changed = [f'{k} from {old.get(k)} to {v}' for k, v in new.items() if old.get(k) != v]
        if changed:
            sentences.append(f'Stage "{new["name"]}" continues with changed settings: {", ".join(changed)}.')
    return sentences
