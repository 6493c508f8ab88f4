"""A run's directory while it is written: created, locked, and removed where the run could not start."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import locked, write_json
from .fingerprints import STAGES
from .recorder import LOGS
from .source import SOURCE

LOCK, SETTINGS, PLAN, ENVIRONMENT = '.lock', 'settings.json', 'plan.json', 'environment.json'
CHECKPOINTS = 'checkpoints'


class RunDirectory:
    """One run's directory; `checkpoints` is the folder of its checkpoints."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / CHECKPOINTS

    @contextlib.contextmanager
    def opened(self) -> Iterator[bool]:
        """Creates and locks the directory; yields whether it is new. Raises UserError where it can't."""
        with contextlib.ExitStack() as stack:
            try:
                new = _make(self.path)
                stack.enter_context(locked(self.path / LOCK))
            except BlockingIOError:
                raise UserError(
                    f"Another process is training in '{self.path}'. Wait for it, or choose another --run-dir."
                ) from None
            except OSError as error:
                raise UserError(f"Can't write the run directory '{self.path}': {error.strerror}.") from error
            yield new

    def take_back(self) -> None:
        """After a failed start: removes what it wrote, and the directory unless it holds anything else."""
        for name in (LOCK, SETTINGS, PLAN, ENVIRONMENT, STAGES, *LOGS):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / SOURCE, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def write(self, **contents: object) -> None:
        """Writes NAME.json for each NAME=content."""
        for name, content in contents.items():
            write_json(self.path / f'{name}.json', content)

    def write_held_out(self, stage: str, documents: Mapping[str, np.ndarray]) -> None:
        """Writes the held-out losses by document at a stage's end, for paired comparisons between runs."""
        temporary = self.path / f'.held_out-{stage}.npz'
        np.savez_compressed(temporary, allow_pickle=False, **documents)
        os.replace(temporary, self.path / f'held_out-{stage}.npz')


def _make(folder: Path) -> bool:
    """Creates the directory; returns whether it was missing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    return True
