"""Checkpoints: folders that appear whole or not at all.

    RUN/checkpoints/step-00000120/   model.safetensors, optimizer.pt, state.json,
                                     tokenizer.json where the run trained its own
    RUN/checkpoints/last, best       links to two of them; stage-NAME to the one at the end of each stage

They are written under another name, synced and renamed. Nothing in them is ever executed: weights are
safetensors, the optimizer's state is read with weights_only.
"""

import errno
import glob
import inspect
import json
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_map_only

from .. import __version__
from ..base.base_model import LMBase
from ..base.runner_list import find_entry, find_runner, list_experiments
from ..errors import CheckpointError
from ..tokenizers import Tokenizer, as_tokenizer, load_tokenizer

FORMAT = 1
WEIGHTS, OPTIMIZER, STATE = 'model.safetensors', 'optimizer.pt', 'state.json'


def save_checkpoint(folder: Path, model: LMBase, optimizer_state: dict | None, state: dict) -> None:
    """Writes a checkpoint folder, whole or not at all.

    Raises CheckpointError where the disk is full or can't be written.
    """
    _write(folder, *_untied(model.state_dict()), as_tokenizer(model.tokenizer), optimizer_state, state)


def _write(
    folder: Path,
    weights: dict,
    aliases: dict,
    tokenizer: Tokenizer,
    optimizer_state: dict | None,
    state: dict,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix='.writing-', dir=folder.parent))
    try:
        save_file(
            weights,
            temporary / WEIGHTS,
            metadata={'format': 'pt', 'lmplay': __version__, 'aliases': json.dumps(aliases)},
        )
        if optimizer_state is not None:
            torch.save(optimizer_state, temporary / OPTIMIZER)
        tokenizer.save(temporary)
        sizes = {f.name: f.stat().st_size for f in temporary.iterdir()}
        (temporary / STATE).write_text(
            json.dumps({'format': FORMAT, 'lmplay': __version__, 'sizes': sizes} | state, indent=1)
        )
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        os.rename(temporary, folder)
        _sync(folder.parent)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors wrap the system's errors
        full = getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error)
        reason = 'the disk is full' if full else error
        raise CheckpointError(
            f"Can't write the checkpoint '{folder}': {reason}. The checkpoint before it is untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _untied(state: dict) -> tuple[dict, dict]:
    """(weights, aliases): safetensors refuses shared memory; one name owns it, others are its aliases."""
    owners, weights, aliases = {}, {}, {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        if key in owners:
            aliases[name] = owners[key]
        else:
            owners[key] = name
            weights[name] = tensor.contiguous()
    return weights, aliases


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point(link: Path, folder: Path) -> None:
    """Makes `link` point to `folder`, in one step."""
    temporary = link.with_name(f'.{link.name}.new')
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, link)


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints and linked ones, and what killed runs left unfinished."""
    linked = {link.resolve() for link in folder.iterdir() if link.is_symlink()}
    whole = sorted((f for f in folder.glob('step-*') if f.is_dir()), key=lambda f: f.stat().st_mtime_ns)
    for old in whole[:-keep]:
        if old.resolve() not in linked:
            shutil.rmtree(old, ignore_errors=True)
    for half in folder.glob('.writing-*'):
        shutil.rmtree(half, ignore_errors=True)


class Checkpoints:
    """The checkpoints of a run and the links to some of them.

    background: write in a thread, from a copy in the host's memory, while training goes on. Not for models
    that train on the CPU, where the copy would take memory that training needs.
    """

    def __init__(self, folder: Path, *, keep: int, background: bool):
        self.folder, self.keep = folder, keep
        self.pool = ThreadPoolExecutor(1, 'checkpoint') if background else None
        self.writing: Future | None = None

    def save(self, step: int, model: LMBase, optimizer_state: dict, state: dict, links: list[str]) -> None:
        """Writes a checkpoint and points the links to it, in their order.

        Raises CheckpointError where this checkpoint, or in the background the one before it, can't be
        written.
        """
        self.wait()
        folder = self.folder / f'step-{step:08d}'
        again = 1
        while folder.exists():  # never overwritten: a link may point to it
            again += 1
            folder = self.folder / f'step-{step:08d}-{again}'
        weights, aliases = _untied(model.state_dict())
        if self.pool is not None:
            weights, optimizer_state = tree_map_only(
                torch.Tensor, lambda t: t.detach().to('cpu', copy=True), (weights, optimizer_state)
            )

        def write():
            _write(folder, weights, aliases, as_tokenizer(model.tokenizer), optimizer_state, state)
            for name in links:
                point(self.folder / name, folder)
            prune(self.folder, self.keep)

        if self.pool is None:
            write()
        else:
            self.writing = self.pool.submit(write)

    def forget_links(self) -> None:
        """Removes the links of a discarded history, except `last`."""
        for link in self.folder.iterdir():
            if link.is_symlink() and link.name != 'last':
                link.unlink()

    def wait(self) -> None:
        """Returns when the last save is on disk. Raises CheckpointError where it could not be written."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits for a save that is under way."""
        if self.pool is not None:
            self.pool.shutdown()


def find_checkpoint(path: str | Path, *, prefer: str = 'best') -> Path:
    """The checkpoint a path means: itself, or a run's `prefer`, else its `last`. Raises CheckpointError."""
    path = Path(path)
    if (path / STATE).is_file():
        return path
    for candidate in (
        path / 'checkpoints' / prefer,
        path / 'checkpoints' / 'last',
        path / prefer,
        path / 'last',
    ):
        if (candidate / STATE).is_file():
            return candidate.resolve()
    if not path.exists():
        raise CheckpointError(f"No checkpoint at '{path}': there is no such path.")
    raise CheckpointError(
        f"No checkpoint at '{path}': neither a checkpoint folder (with {STATE}) nor a run directory with one."
    )


def read_state(folder: Path) -> dict:
    """A checkpoint's state.json. Raises CheckpointError where a file of it is missing or of another size."""
    try:
        state = json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint '{folder}' is damaged: {STATE} can't be read ({error})."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"The checkpoint '{folder}' is damaged: {STATE} is not a JSON object.")
    if state.get('format') != FORMAT:
        raise CheckpointError(
            f"The checkpoint '{folder}' has format {state.get('format')!r}; this version reads {FORMAT}."
        )
    for name, size in state.get('sizes', {}).items():
        actual = (folder / name).stat().st_size if (folder / name).is_file() else None
        if actual != size:
            found = 'is missing' if actual is None else f'has {actual:,} bytes instead of {size:,}'
            raise CheckpointError(f"The checkpoint '{folder}' is damaged: {name} {found}.")
    return state


def load_weights(model: LMBase, folder: Path) -> None:
    """Loads a checkpoint's weights, all or none. Raises CheckpointError that names what does not fit."""
    file = folder / WEIGHTS
    try:
        weights = load_file(file)
        from safetensors import safe_open

        with safe_open(file, 'pt') as f:
            aliases = json.loads((f.metadata() or {}).get('aliases', '{}'))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"The weights '{file}' can't be read: {error}.") from error
    weights |= {name: weights[owner] for name, owner in aliases.items() if owner in weights}
    own = model.state_dict()
    problems = (
        [f"'{k}' is missing" for k in own if k not in weights]
        + [f"'{k}' is not of this model" for k in weights if k not in own]
        + [
            f"'{k}' has shape {list(weights[k].shape)}, the model's has {list(own[k].shape)}"
            for k in own
            if k in weights and weights[k].shape != own[k].shape
        ]
    )
    if problems:
        more = f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''
        raise CheckpointError(
            f"The checkpoint '{folder}' is of another architecture than {model.name}: {problems[0]}{more}."
        )
    model.load_state_dict(weights, strict=True)


def load_optimizer(folder: Path) -> dict:
    """A checkpoint's optimizer state. Raises CheckpointError for a file that is damaged or holds code."""
    try:
        return torch.load(folder / OPTIMIZER, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged or hostile file
        raise CheckpointError(
            f"The optimizer's state '{folder / OPTIMIZER}' can't be read safely: "
            f'{str(error).splitlines()[0]}.'
        ) from error


def load_model(path: str | Path, *, device: str = 'cpu', exp: str | None = None) -> tuple[LMBase, dict]:
    """(model, state) of a checkpoint or run directory, which names experiment, parameters and tokenizer.

    Or of a file in a format of others that an experiment reads; its state is that of no stage.
    exp: the experiment to use instead (a name or the path of a versions.py). Raises CheckpointError.
    """
    try:
        folder = find_checkpoint(path)
    except CheckpointError:
        reader = _reader(Path(path), exp)
        if reader is None:
            raise
        model, facts = reader.read_foreign(Path(path))
        return model.to(device), {
            'exp': reader.__name__,
            'stage': '',
            'progress': {'total_step': facts['step']},
        }
    state = read_state(folder)
    runner = find_runner(exp or state['exp_file'] or state['exp'])
    parameters = dict(state['parameters'])
    tokenizer = load_tokenizer(state['tokenizer']['name'], folder)
    if tokenizer.fingerprint != state['tokenizer']['fingerprint']:
        raise CheckpointError(
            f"The tokenizer '{state['tokenizer']['name']}' is not the one that '{folder}' was trained with."
        )
    declared = runner.function()
    if 'tokenizer' in declared.declared:
        parameters['tokenizer'] = tokenizer
    model = runner.function(**parameters).build(device)
    load_weights(model, folder)
    return model, state


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
