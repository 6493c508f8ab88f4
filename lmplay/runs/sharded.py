"""Parts of a checkpoint that several ranks write, each its own, by torch.distributed.checkpoint.

    shard-00001-....safetensors   of rank 0, and so on: model.NAME, optimizer.INDEX.KEY

Any number of processes reads them, one too. They are safetensors, which hold no code.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import checksum

PATTERN = 'shard-*.safetensors'
MODEL, OPTIMIZER = 'model.', 'optimizer.'


def shards(folder: Path) -> list[Path]:
    """The files of a checkpoint's parts, none where it is of one process."""
    return sorted(folder.glob(PATTERN))


def write_shards(
    folder: Path, tensors: dict[str, Tensor], gathered: Callable[[Any], list[Any]]
) -> dict[str, str]:
    """Writes this rank's part of sharded tensors; all ranks call it. Returns file -> checksum, of all ranks.

    gathered: gives every rank the values of all of them. Raises CheckpointError on all where one can't write.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    problem, own = None, {}
    try:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(tensors, storage_writer=writer)  # pyright: ignore[reportPrivateImportUsage]
        mine = folder.glob(PATTERN.replace('*', f'{dist.get_rank() + 1:05d}-*'))
        own = {file.name: checksum(file) for file in mine}
    except Exception as error:  # noqa: BLE001  whatever it is, all ranks have to know
        problem = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    everyones = gathered((problem, own))
    if problems := [p for p, _ in everyones if p]:
        raise CheckpointError(f"Can't write the checkpoint '{folder.parent}': {problems[0]}.")
    return {name: digest for _, digests in everyones for name, digest in digests.items()}


def read_shards(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, whole, by what follows it. On the CPU.

    Raises CheckpointError where they can't be read.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        tensors: dict[str, Any] = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
            for name, entry in found.items()
            if name.startswith(prefix)
        }
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of reading alone, which is meant
            reader = HuggingFaceStorageReader(str(folder))
            dcp.load(tensors, storage_reader=reader, no_dist=True)  # pyright: ignore[reportPrivateImportUsage]
    except Exception as error:  # safetensors and torch raise many kinds for damaged files
        raise CheckpointError(f"The parts of the checkpoint '{folder}' can't be read: {error}.") from error
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def taken_apart(optimizer_state: dict) -> tuple[dict, dict[str, Tensor]]:
    """(the state without its tensors, those by the names they have in the parts)."""
    state = optimizer_state['optimizer']
    tensors = {
        f'{OPTIMIZER}{i}.{key}': value for i, own in state['state'].items() for key, value in own.items()
    }
    return optimizer_state | {'optimizer': state | {'state': {}}}, tensors


def put_together(optimizer_state: dict, folder: Path) -> dict:
    """The state with the tensors of the parts."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_shards(folder, OPTIMIZER).items():
        index, _, key = name.partition('.')
        state.setdefault(int(index), {})[key] = tensor
    return optimizer_state | {'optimizer': optimizer_state['optimizer'] | {'state': state}}
