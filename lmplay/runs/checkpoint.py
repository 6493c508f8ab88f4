"""Checkpoints: folders that appear whole or not at all.

    RUN/checkpoints/step-00000120/   model.safetensors, optimizer.pt, state.json,
                                     tokenizer.json where the run trained its own
    RUN/checkpoints/last, best       links to two of them; stage-NAME to the one at the end of each stage

They are written under another name, synced and renamed. Nothing in them is ever executed: weights are
safetensors, the optimizer's state is read with weights_only.
"""

import functools
import json
import logging
import os
import secrets
import shutil
from collections.abc import Container
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
    temporary = folder.parent / f'{HALF}{secrets.token_hex(6)}'
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        save_file(
            weights,
            temporary / WEIGHTS,
            metadata={'format': 'pt', 'lmplay': __version__, 'aliases': json.dumps(aliases)},
        )
        (temporary / WEIGHTS).chmod(temporary.stat().st_mode & 0o666)  # safetensors leaves others nothing
        if optimizer_state is not None:
            torch.save(optimizer_state, temporary / OPTIMIZER)
        tokenizer.save(temporary)
        files = {'sizes': _sizes(temporary), CHECKSUMS: _synced(temporary)}
        content = sealed({'format': FORMAT, 'lmplay': __version__} | state | files)
        (temporary / STATE).write_text(json.dumps(content, indent=1))
        _sync(temporary / STATE)
        _sync(temporary)
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


def _synced(folder: Path) -> dict[str, str]:
    """The checksum of each file of a folder, computed while the disk takes them in."""
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor(1, 'sync') as pool:
        syncing = [pool.submit(_sync, file) for file in files]
        checksums = {file.name: checksum(file) for file in files}
        for done in syncing:
            done.result()
    return checksums


def untied(state: dict) -> tuple[dict, dict]:
    """(weights, aliases) of a state dict: one of the names that share memory keeps the weight."""
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
    _check_files(folder, state, but=(WEIGHTS, OPTIMIZER))
    return state


def _check_files(folder: Path, state: dict, *, but: Container[str] = (), only: str | None = None) -> None:
    """Raises CheckpointError unless files are as they were written: all sizes, the checksums asked for."""
    checksums = state.get(CHECKSUMS)
    if checksums is None:
        _tell_it_has_no_checksums(str(folder.parent.parent))
    asked = {n: c for n, c in (checksums or {}).items() if (n == only if only else n not in but)}
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
    file = folder / WEIGHTS
    _check_files(folder, read_state(folder), only=WEIGHTS)
    try:
        weights = load_file(file)
        from safetensors import safe_open

        with safe_open(file, 'pt') as f:
            aliases = from_json((f.metadata() or {}).get('aliases', '{}'))
        weights |= {name: weights[owner] for name, owner in aliases.items() if owner in weights}
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The weights '{file}' can't be read: {error}.") from error
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
            f"The checkpoint '{folder}' is of another architecture than {model.name}: {problems[0]}{more}."
        )
    model.load_state_dict(weights, strict=True)


def load_optimizer(folder: Path) -> dict:
    """A checkpoint's optimizer state. Raises CheckpointError for a file that is damaged or holds code."""
    _check_files(folder, read_state(folder), only=OPTIMIZER)
    try:
        return torch.load(folder / OPTIMIZER, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged or hostile file
        raise CheckpointError(
            f"The optimizer's state '{folder / OPTIMIZER}' can't be read safely: "
            f'{str(error).splitlines()[0]}.'
        ) from error
