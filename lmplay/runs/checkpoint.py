"""Checkpoints: folders that appear whole or not at all.

    RUN/checkpoints/step-00000120/   model.safetensors, optimizer.pt, state.json,
                                     tokenizer.json where the run trained its own
                                     of a sharded run shard-*.safetensors in place of model.safetensors
    RUN/checkpoints/last, best       links to two of them; stage-NAME to the one at the end of each stage

They are written under another name, synced and renamed. Nothing in them is ever executed: weights are
safetensors, the optimizer's state is read with weights_only.
"""

import contextlib
import functools
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, NonNegativeInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .. import __version__
from ..base.base_model import LMBase
from ..errors import CheckpointError
from ..files import CHECKSUMS, checksum, damage, from_json, seal_is_broken, sealed, why_not_written
from ..tokenizers import Tokenizer, as_tokenizer
from .formats import Form, checked
from .links import STATE
from .sharded import MODEL, put_together, read_shards, shards, taken_apart, write_shards

log = logging.getLogger(__name__)
FORMAT = 1
HALF = '.writing-'  # what the name of an unfinished checkpoint begins with
WEIGHTS, OPTIMIZER = 'model.safetensors', 'optimizer.pt'


class Progress(Form):
    """The part of a TrainState that readers ask for; resuming checks all of it."""

    total_step: int = Field(ge=0)
    validation_loss: float | None = None


class CheckpointState(Form):
    """What state.json may hold. Where a key is there, it has this type; `load_model` asks for NEEDED."""

    exp: str = ''
    exp_file: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    tokenizer: dict[str, str] = Field(default_factory=dict)
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    stage: str = ''
    progress: Progress | None = None
    logs: dict[str, NonNegativeInt] = Field(default_factory=dict)
    sizes: dict[str, int] = Field(default_factory=dict)
    checksums: dict[str, str] = Field(default_factory=dict)
    links: list[str] = Field(default_factory=list)


NEEDED = ('exp', 'exp_file', 'parameters', 'tokenizer')  # to build the model of a checkpoint


def save_checkpoint(folder: Path, model: LMBase, optimizer_state: dict | None, state: dict) -> None:
    """Writes a checkpoint folder, whole or not at all.

    Raises CheckpointError where the disk is full or can't be written.
    """
    write_checkpoint(
        folder, *untied(model.state_dict()), as_tokenizer(model.tokenizer), optimizer_state, state
    )


def write_checkpoint(
    folder: Path,
    weights: dict,
    aliases: dict,
    tokenizer: Tokenizer,
    optimizer_state: dict | None,
    state: dict,
) -> None:
    """Writes a checkpoint folder from the weights and aliases of `untied`."""
    with _appearing(folder) as temporary:
        save_file(
            weights,
            temporary / WEIGHTS,
            metadata={'format': 'pt', 'lmplay': __version__, 'aliases': json.dumps(aliases)},
        )
        (temporary / WEIGHTS).chmod(temporary.stat().st_mode & 0o666)  # safetensors leaves others nothing
        _complete(temporary, tokenizer, optimizer_state, state)


def write_sharded_checkpoint(
    folder: Path,
    model: LMBase,
    optimizer_state: dict,
    state: dict,
    *,
    first: bool,
    gathered: Callable[[Any], list[Any]],
) -> None:
    """Writes a checkpoint of which each rank has a part; all ranks call it, the first one completes it.

    gathered: gives every rank the values of all of them.
    """
    weights, aliases = untied(model.state_dict(keep_vars=True), by=id)
    optimizer_state, moments = taken_apart(optimizer_state)
    tensors = {f'{MODEL}{name}': tensor.detach() for name, tensor in weights.items()} | moments
    if not first:
        write_shards(Path(gathered(None)[0]), tensors, gathered)
        return
    with _appearing(folder) as temporary:
        checksums = write_shards(Path(gathered(str(temporary))[0]), tensors, gathered)
        tokenizer = as_tokenizer(model.tokenizer)
        _complete(temporary, tokenizer, optimizer_state, state | {'aliases': aliases}, checksums)


def _complete(
    temporary: Path,
    tokenizer: Tokenizer,
    optimizer_state: dict | None,
    state: dict,
    checksums: dict[str, str] | None = None,
) -> None:
    """Writes the rest of a checkpoint, whose weights are there. checksums: of files that need none made."""
    if optimizer_state is not None:
        torch.save(optimizer_state, temporary / OPTIMIZER)
    tokenizer.save(temporary)
    files = {'sizes': _sizes(temporary), CHECKSUMS: _synced(temporary, checksums or {})}
    content = sealed({'format': FORMAT, 'lmplay': __version__} | state | files)
    (temporary / STATE).write_text(json.dumps(content, indent=1))
    _sync(temporary / STATE)
    _sync(temporary)


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder, renamed when the block ends well. Raises CheckpointError where that fails."""
    temporary = folder.parent / f'{HALF}{secrets.token_hex(6)}'
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        os.rename(temporary, folder)
        _sync(folder.parent)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors wrap the system's errors
        raise CheckpointError(
            f"Can't write the checkpoint '{folder}': {why_not_written(folder.parent, error)}. The checkpoint "
            'before it is untouched.'
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_size for f in sorted(folder.iterdir())}


def _synced(folder: Path, known: dict[str, str]) -> dict[str, str]:
    """The checksum of each file of a folder, computed while the disk takes them in, unless it is known."""
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor(1, 'sync') as pool:
        syncing = [pool.submit(_sync, file) for file in files]
        checksums = {file.name: known.get(file.name) or checksum(file) for file in files}
        for done in syncing:
            done.result()
    return checksums


def untied(state: dict, by: Callable[[Any], Any] | None = None) -> tuple[dict, dict]:
    """(weights, aliases) of a state dict: one of the names that share memory keeps the weight.

    by: what tells tensors apart, by default their memory.
    """
    owners, weights, aliases = {}, {}, {}
    for name, tensor in state.items():
        key = (by or _memory)(tensor) if tensor.numel() else name
        if key in owners:
            aliases[name] = owners[key]
        else:
            owners[key] = name
            weights[name] = tensor.contiguous()
    return weights, aliases


def _memory(tensor: torch.Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_state(folder: Path) -> dict:
    """A checkpoint's state.json.

    Raises CheckpointError where it is damaged, or a file of the checkpoint is missing or of another size.
    The contents of the two large files are compared with their checksums when they are loaded.
    """
    try:
        state = from_json((folder / STATE).read_bytes())
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
    if seal_is_broken(state):
        raise CheckpointError(
            f"The checkpoint '{folder}' is damaged: {STATE} has changed since it was written (its checksum "
            'differs).'
        )
    try:
        checked(CheckpointState, state)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint '{folder}' is damaged: in {STATE}, {error}.") from error
    _check_files(folder, state, but=(WEIGHTS, OPTIMIZER, *(file.name for file in shards(folder))))
    return state


def _check_files(
    folder: Path, state: dict, *, but: Container[str] = (), only: Container[str] | None = None
) -> None:
    """Raises CheckpointError unless files are as they were written: all sizes, the checksums asked for."""
    checksums = state.get(CHECKSUMS)
    if checksums is None:
        _tell_it_has_no_checksums(str(folder.parent.parent))
    asked = {n: c for n, c in (checksums or {}).items() if (n in only if only else n not in but)}
    try:
        problem = damage(folder, state.get('sizes', {}), asked)
    except OSError as error:
        problem = f"a file of it can't be read: {error.strerror}"
    if problem:
        raise CheckpointError(f"The checkpoint '{folder}' is damaged: {problem}.")


@functools.cache
def _tell_it_has_no_checksums(run: str) -> None:
    log.warning("The checkpoints of '%s' were written without checksums: only their sizes are checked.", run)


def load_weights(model: LMBase, folder: Path) -> None:
    """Loads a checkpoint's weights, all or none. Raises CheckpointError that names what does not fit."""
    weights, aliases = _read_weights(folder)
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
        + [
            f"'{k}' is {weights[k].dtype}, the model's is {own[k].dtype}".replace('torch.', '')
            for k in own
            if k in weights and weights[k].dtype != own[k].dtype
        ]
    )
    if problems:
        more = f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''
        raise CheckpointError(
            f"The checkpoint '{folder}' has a different architecture from {model.name}: {problems[0]}{more}."
        )
    model.load_state_dict(weights, strict=True)


def _read_weights(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(weights, aliases) of a checkpoint, in one file or in parts."""
    state, file, parts = read_state(folder), folder / WEIGHTS, [part.name for part in shards(folder)]
    _check_files(folder, state, only=parts or (WEIGHTS,))
    if parts:
        return read_shards(folder, MODEL), state.get('aliases', {})
    try:
        from safetensors import safe_open

        weights = load_file(file)
        with safe_open(file, 'pt') as f:
            aliases = from_json((f.metadata() or {}).get('aliases', '{}'))
        if not isinstance(aliases, dict) or not all(isinstance(owner, str) for owner in aliases.values()):
            raise ValueError('its names of shared weights are no object of strings')
        return weights, aliases
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The weights '{file}' can't be read: {error}.") from error


def load_optimizer(folder: Path) -> dict:
    """A checkpoint's optimizer state. Raises CheckpointError for a file that is damaged or holds code."""
    parts = [part.name for part in shards(folder)]
    _check_files(folder, read_state(folder), only=(OPTIMIZER, *parts))
    try:
        state = torch.load(folder / OPTIMIZER, map_location='cpu', weights_only=True)
        return put_together(state, folder) if parts else state
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged or hostile file
        raise CheckpointError(
            f"The optimizer's state '{folder / OPTIMIZER}' can't be read safely: "
            f'{str(error).splitlines()[0]}.'
        ) from error
