"""The model of a checkpoint, of a run, or of a file that an experiment reads."""

import glob
import inspect
from pathlib import Path

from ..base.base_model import LMBase
from ..base.runner_list import find_entry, find_runner, list_experiments, saved_runner
from ..errors import CheckpointError
from ..files import user_path
from ..tokenizers import load_tokenizer
from .checkpoint import NEEDED, load_weights, read_state
from .checkpoints import find_checkpoint
from .links import STATE


def load_model(path: str | Path, *, device: str = 'cpu', exp: str | None = None) -> tuple[LMBase, dict]:
    """(model, state) of a checkpoint or run directory, which names experiment, parameters and tokenizer.

    Or of a file in a format of others that an experiment reads; its state is that of no stage.
    exp: the experiment to use (a name or the path of a versions.py), whose code runs; a checkpoint's word
    runs none but installed code and files that were named to this process. Raises UserError.
    """
    try:
        folder = find_checkpoint(path)
    except CheckpointError:
        reader = _reader(user_path(path), exp)
        if reader is None:
            raise
        model, facts = reader.read_foreign(user_path(path))
        progress = {'total_step': facts['step']}
        return model.to(device), {'exp': reader.__name__, 'stage': '', 'progress': progress}
    state = _whole_state(folder)
    runner = find_runner(exp) if exp else saved_runner(state, folder)
    parameters = dict(state['parameters'])
    tokenizer = load_tokenizer(state['tokenizer']['name'], folder)
    if tokenizer.fingerprint != state['tokenizer']['fingerprint']:
        raise CheckpointError(
            f"The tokenizer '{state['tokenizer']['name']}' is not the one that '{folder}' was trained with."
        )
    declared = runner.function()
    if strange := [name for name in parameters if name not in declared.declared and name != 'version']:
        raise CheckpointError(
            f"The checkpoint '{folder}' sets {strange[0]}, which is no parameter of {state['exp']}'s model."
        )
    if 'tokenizer' in declared.declared:
        parameters['tokenizer'] = tokenizer
    model = runner.function(**parameters).build(device)
    load_weights(model, folder)
    return model, state


def _whole_state(folder: Path) -> dict:
    """The state of a checkpoint. Raises CheckpointError where it lacks what a model is built from."""
    state = read_state(folder)
    missing = [key for key in NEEDED if key not in state]
    if missing := missing or {'name', 'fingerprint'} - {*state['tokenizer']}:
        raise CheckpointError(f"The checkpoint '{folder}' is damaged: {STATE} lacks {', '.join(missing)}.")
    return state


def _reader(path: Path, exp: str | None) -> type[LMBase] | None:
    """The model class of an experiment that reads this file of others."""
    if not any(path.parent.glob(f'{glob.escape(path.name)}*')):
        return None
    entries = [find_entry(exp)] if exp else [entry for entry in list_experiments() if not entry.error]
    for entry in entries:
        model_class = find_runner(entry.name).function().model_class
        if inspect.isclass(model_class) and issubclass(model_class, LMBase) and model_class.reads(path):
            return model_class
    return None
