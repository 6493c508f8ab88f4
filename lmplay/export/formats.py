"""The formats that a model can be exported in, a function for each: (model, folder, facts) -> files.

Formats of one kind of model are its class's own: `LMBase.exports`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..base.base_model import LMBase
from ..errors import UserError, unknown
from ..files import new_folder
from ..runs.load import load_model
from ..tokenizers import as_tokenizer

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


def export(path: str | Path, to: str | Path, *, format: str, exp: str | None = None) -> list[Path]:
    """Writes a checkpoint, or the best of a run, into the folder `to`, whole or not; returns the files.

    exp: the experiment to use, if it has been renamed or moved. Raises UserError for a format that the model
    can't have, and for a folder that is in use or can't be written.
    """
    model, state = load_model(path, exp=exp)
    writers, folder = FORMATS | type(model).exports, Path(to)
    if format not in writers:
        raise UserError(unknown('format', format, writers, model.name))
    progress = state.get('progress') or {}
    facts = {
        'exp': state['exp'],
        'step': progress.get('total_step'),
        'evaluation_loss': progress.get('validation_loss'),
    }
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"'{folder}' is not empty: --to names a new folder.")
        with new_folder(folder) as temporary:
            files = writers[format](model, temporary, facts)
            as_tokenizer(model.tokenizer).save(temporary)
    except OSError as error:
        raise UserError(f"Can't write to '{folder}': {error.strerror or error}.") from error
    return [folder / file.relative_to(temporary) for file in files]
