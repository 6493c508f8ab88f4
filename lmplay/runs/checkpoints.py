"""The checkpoints of a run: writing, pruning and finding them."""

import logging
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ..base.base_model import LMBase
from ..errors import CheckpointError
from ..files import user_path
from ..tokenizers import as_tokenizer
from .checkpoint import HALF, untied, write_checkpoint, write_sharded_checkpoint
from .links import LAST, STATE, named, point

log = logging.getLogger(__name__)


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints and linked ones, and what killed runs left unfinished."""
    linked = {link.resolve() for link in folder.iterdir() if link.is_symlink()}
    whole = sorted((f for f in folder.glob('step-*') if f.is_dir()), key=lambda f: f.stat().st_mtime_ns)
    for old in whole[:-keep]:
        if old.resolve() not in linked:
            shutil.rmtree(old, ignore_errors=True)
    for half in folder.glob(f'{HALF}*'):
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
        self.written: Path | None = None  # the last whole checkpoint of this process

    def save(self, step: int, model: LMBase, optimizer_state: dict, state: dict, links: list[str]) -> None:
        """Writes a checkpoint and points the links to it, in their order.

        Raises CheckpointError where this checkpoint, or in the background the one before it, can't be
        written.
        """
        self.wait()
        folder = self._new(step)
        weights, aliases = untied(model.state_dict())
        if self.pool is not None:
            weights, optimizer_state = tree_map_only(
                torch.Tensor, lambda t: t.detach().to('cpu', copy=True), (weights, optimizer_state)
            )

        def write():
            write_checkpoint(
                folder,
                weights,
                aliases,
                as_tokenizer(model.tokenizer),
                optimizer_state,
                state | {'links': links},
            )
            self._link(folder, links)

        if self.pool is None:
            write()
        else:
            self.writing = self.pool.submit(write)

    def save_sharded(
        self,
        step: int,
        model: LMBase,
        optimizer_state: dict,
        state: dict,
        links: list[str],
        *,
        first: bool,
        gathered: Callable[[Any], list[Any]],
    ) -> None:
        """The same of a run of which each rank has a part, in the foreground; all ranks call it."""
        folder, ranks = self._new(step), {'first': first, 'gathered': gathered}
        write_sharded_checkpoint(folder, model, optimizer_state, state | {'links': links}, **ranks)
        if first:
            self._link(folder, links)
        gathered(None)  # nobody reads it before it is there

    def _new(self, step: int) -> Path:
        """The folder of a new checkpoint. None is overwritten: a link may point to it."""
        folder, again = self.folder / f'step-{step:08d}', 1
        while folder.exists():
            again += 1
            folder = self.folder / f'step-{step:08d}-{again}'
        return folder

    def _link(self, folder: Path, links: list[str]) -> None:
        for name in links:
            point(self.folder / name, folder)
        self.written = folder
        prune(self.folder, self.keep)

    def forget_links(self) -> None:
        """Removes the links of a discarded history, except `last`."""
        for link in self.folder.iterdir():
            if link.is_symlink() and link.name != 'last':
                link.unlink()

    def removed(self) -> str | None:
        """The last checkpoint's path in the run, where somebody has removed it."""
        gone = self.written is not None and not (self.written / STATE).exists()
        return f'{self.folder.name}/{self.written.name}' if gone and self.written is not None else None

    def wait(self) -> None:
        """Returns when the last save is on disk. Raises CheckpointError where it could not be written."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits for a save that is under way.

        Raises CheckpointError or OSError where it failed; while another error is on its way, logs that.
        """
        on_its_way = sys.exc_info()[1]
        if self.pool is not None:
            self.pool.shutdown()
        try:
            self.wait()
        except (CheckpointError, OSError) as error:
            if on_its_way is None:
                raise
            log.error('%s', error)


def find_checkpoint(path: str | Path, *, prefer: str = 'best') -> Path:
    """The checkpoint a path means: itself, or a run's `prefer`, else its `last`. Raises CheckpointError."""
    path = user_path(path)
    if (path / STATE).is_file():
        return path
    for checkpoints in (path / 'checkpoints', path):
        for name in (prefer, LAST):
            if (found := named(checkpoints, name)) is not None:
                return found
    if (found := named(path.parent, path.name)) is not None:  # a link that was lost
        return found
    if not path.exists():
        raise CheckpointError(f"No checkpoint at '{path}': there is no such path.")
    raise CheckpointError(
        f"No checkpoint at '{path}': neither a checkpoint folder (with {STATE}) nor a run directory with one."
    )
