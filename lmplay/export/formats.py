"""The formats in which a model can be exported, a function for each: (model, folder, facts) -> files.

Formats of one kind of model are its class's own: `LMBase.exports`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..base.base_model import LMBase
from ..base.runner_list import find_entry
from ..errors import CheckpointError, UserError, unknown
from ..files import new_folder, user_path
from ..runs.checkpoints import find_checkpoint
from ..runs.finished import SETTINGS
from ..runs.load import load_model
from ..tokenizers import as_tokenizer
from .huggingface import write_huggingface

Writer = Callable[[Any, Path, dict[str, Any]], list[Path]]


def write_safetensors(model: LMBase, folder: Path, facts: dict[str, Any]) -> list[Path]:
    """model.safetensors with every tensor under the model's own names, tied ones twice, and model.json with
    what builds the model."""
    weights, about = folder / 'model.safetensors', folder / 'model.json'
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, weights, metadata={'format': 'pt'})
    tokenizer = as_tokenizer(model.tokenizer).name
    described = facts | {'tokenizer': tokenizer, 'parameters': model.hyperparameters}
    about.write_text(json.dumps(described, indent=2, default=str) + '\n', encoding='utf-8')
    return [weights, about]


FORMATS: dict[str, Writer] = {'safetensors': write_safetensors}
HUGGINGFACE = 'huggingface'


def export(
    path: str | Path, to: str | Path, *, format: str = HUGGINGFACE, exp: str | None = None
) -> list[Path]:
    """Writes a checkpoint, or the best of a run, as the new folder `to`, whole or not at all; returns the
    files.

    exp: the experiment to use, if it has been renamed or moved. Raises UserError for a format that the model
    can't have, and for a folder that is in use or can't be written.
    """
    model, state = load_model(path, exp=exp)
    if exp is not None:
        state = state | {'exp': find_entry(exp).name}
    writers, folder = FORMATS | type(model).exports, user_path(to)
    if format not in (HUGGINGFACE, *writers):
        raise UserError(unknown('format', format, [HUGGINGFACE, *writers], model.name))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"'{folder}' is not empty; give --to a new folder.")
        with new_folder(folder) as temporary:
            if format == HUGGINGFACE:
                files = write_huggingface(model, temporary, state, _run_of(path))
            else:
                files = writers[format](model, temporary, _facts(state))
                as_tokenizer(model.tokenizer).save(temporary)
    except OSError as error:
        raise UserError(f"Can't write to '{folder}': {error.strerror or error}.") from error
    return [folder / file.relative_to(temporary) for file in files]


def _facts(state: dict[str, Any]) -> dict[str, Any]:
    progress = state.get('progress') or {}
    return {
        'exp': state['exp'],
        'step': progress.get('total_step'),
        'evaluation_loss': progress.get('validation_loss'),
    }


def _run_of(path: str | Path) -> Path | None:
    """The directory of the run that a path or its checkpoint belongs to; None for one that was moved out."""
    try:
        run = find_checkpoint(path).parent.parent
    except CheckpointError:  # a model file in another format
        return None
    return run if (run / SETTINGS).is_file() else None
