"""A run's directory while it is written: created, locked, and removed where the run could not start."""

import contextlib
import io
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import CHECKSUMS, checksum, locked, sealed, to_json, user_path, write_bytes
from . import formats
from .fingerprints import STAGES
from .recorder import LOGS, METRICS, read_metrics
from .source import SOURCE

LOCK, SETTINGS, PLAN, ENVIRONMENT = '.lock', 'settings.json', 'plan.json', 'environment.json'
CHECKPOINTS = 'checkpoints'
SEALED = (SETTINGS, PLAN, ENVIRONMENT, STAGES, METRICS, 'held_out-*.npz')
RESET = 'checkpoints.reset'  # of a history that is about to begin
# What a run writes; a directory may hold other things too.
WRITTEN = (
    *(
        SETTINGS,
        PLAN,
        ENVIRONMENT,
        STAGES,
        *LOGS,
        'summary.json',
        'summary.txt',
        'curves.png',
        'held_out-*.npz',
    ),
    *(SOURCE, f'{SOURCE}-before-*', 'profile', 'tensorboard', 'wandb', 'wandb_id', CHECKPOINTS),
)


class RunDirectory:
    """One run's directory; `checkpoints` is the folder of its checkpoints."""

    def __init__(self, path: str | Path):
        self.path = user_path(path)
        self.checkpoints = self.path / CHECKPOINTS
        self.reset_checkpoints = self.path / RESET
        self._written: dict[str, bytes] = {}  # by this process: name -> content

    @contextlib.contextmanager
    def opened(self) -> Iterator[bool]:
        """Creates and locks the directory; yields whether it is new. Raises UserError where it can't."""
        with contextlib.ExitStack() as stack:
            try:
                new = _make(self.path)
                self._refuse_another_persons()
                stack.enter_context(locked(self.path / LOCK))
            except BlockingIOError:
                raise UserError(
                    f"Another process is training in '{self.path}'. Wait for it, or choose another --run-dir."
                ) from None
            except OSError as error:
                raise UserError(f"Can't write the run directory '{self.path}': {error.strerror}.") from error
            yield new

    def _refuse_another_persons(self) -> None:
        """Raises UserError for a directory that holds anything and is no run's."""
        held = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCK)
        ours = (self.path / LOCK).exists() or any(self.checkpoints.glob('step-*'))
        ours = ours or all((self.path / name).is_file() for name in (SETTINGS, PLAN, ENVIRONMENT))
        if held and not ours:
            raise UserError(
                f"'{self.path}' is no run's directory and holds other files ({', '.join(held[:3])}): nothing "
                'was written there. Give --run-dir a new or an empty folder.'
            )

    def set_aside(self) -> Path | None:
        """Moves a run that has been evaluated, and has no checkpoint to resume from, to DIR/history-N.

        Returns that folder, None where there is nothing worth keeping.
        """
        if not (self.path / 'summary.json').exists() and not any(
            record.get('kind') == 'validation' for record in read_metrics(self.path)
        ):
            return None
        history = next(h for i in itertools.count(1) if not (h := self.path / f'history-{i}').exists())
        history.mkdir()
        self._move(self.path, history)
        return history

    def put_back(self, history: Path) -> None:
        """Undoes `set_aside` after a start that failed."""
        self.take_back()
        self._move(history, self.path)
        history.rmdir()

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        for pattern in WRITTEN:
            for entry in source.glob(pattern):
                os.rename(entry, target / entry.name)

    def complete_reset(self) -> Path | None:
        """Moves what the run wrote to DIR/history-N, and the checkpoints of its next history into place.

        Does nothing unless those are whole, with a `last`. Begun and killed, it is completed by the next
        call. Returns DIR/history-N.
        """
        if not (self.reset_checkpoints / 'last').exists():
            shutil.rmtree(self.reset_checkpoints, ignore_errors=True)
            return None
        numbered = (self.path / f'history-{i}' for i in itertools.count(1))
        history = next(h for h in numbered if not (h / CHECKPOINTS).exists())  # they are moved last
        history.mkdir(exist_ok=True)
        self._move(self.path, history)
        os.rename(self.reset_checkpoints, self.checkpoints)
        return history

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
            self._put(f'{name}.json', to_json(content).encode())

    def record_stage(self, name: str, facts: dict, *, index: int) -> None:
        """Enters the facts of stage number `index` (from 0) into the run's stages.json."""
        file = self.path / STAGES
        earlier = formats.read(file, formats.STAGES_FILE) if index and file.is_file() else {}
        self.write(stages=earlier | {name: formats.checked(formats.StageFacts, facts)})

    def write_held_out(self, stage: str, documents: Mapping[str, np.ndarray]) -> None:
        """Writes the held-out losses by document at a stage's end, for paired comparisons between runs."""
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **formats.checked_documents(documents))
        self._put(f'held_out-{stage}.npz', content.getvalue())

    def finish(self, summary: dict) -> None:
        """Writes summary.json, with the checksums of the run's other records. They must be on the disk."""
        files = sorted(f for pattern in SEALED for f in self.path.glob(pattern))
        sums = {file.name: checksum(file) for file in files}
        self.write(summary=sealed(formats.checked(formats.Summary, summary | {CHECKSUMS: sums})))

    def _put(self, name: str, content: bytes) -> None:
        self._written[name] = content
        write_bytes(self.path / name, content)

    def rescued(self) -> 'RunDirectory':
        """A directory beside this one, whose files are being removed, with all that this process wrote here.

        DIR-rescued, or DIR-rescued-2, ...
        """
        names = (f'{self.path.absolute().name}-rescued{n}' for n in ('', *(f'-{i}' for i in range(2, 1000))))
        free = next(f for n in names if not (f := self.path.absolute().with_name(n)).exists())
        elsewhere = RunDirectory(free)
        elsewhere.path.mkdir(parents=True)
        for name, content in self._written.items():
            elsewhere._put(name, content)
        return elsewhere


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
