"""Where a run's curves go besides its own files: TensorBoard, W&B, trackio, or what a package brings.

A package joins with an entry point of group `lmplay.trackers` whose name is that of the tracker:
`mine = my_package:MyTracker`. Nothing is imported unless it is asked for.
"""

import importlib.metadata
import importlib.util
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError, unknown

log = logging.getLogger(__name__)
ENTRY_POINT_GROUP = 'lmplay.trackers'


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is made for.

    folder      the run's directory; a tracker keeps files of its own in a folder of its name there
    name        the name of that directory
    config      the run's settings and plan, in JSON's types
    resumed_at  sequences trained on at the checkpoint that is resumed; None where the run begins
    """

    folder: Path
    name: str
    config: dict[str, Any]
    resumed_at: int | None


class Tracker(Protocol):
    """Made as `MyTracker(run)` of a TrackedRun."""

    def log(self, scalars: Mapping[str, float], samples: int) -> None:
        """Takes numbers by their names, 'train/loss', at so many sequences trained on."""
        ...

    def flush(self) -> None:
        """A checkpoint is about to be written; what was logged so far will not be logged again."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run.folder / 'tensorboard'
        if run.resumed_at is None:
            shutil.rmtree(folder, ignore_errors=True)
        # purges what an interrupted run wrote after its last checkpoint
        purge = None if run.resumed_at is None else run.resumed_at + 1
        self.writer = SummaryWriter(str(folder), purge_step=purge)
        if run.resumed_at is None and run.config:
            self.writer.add_text('config', f'```json\n{json.dumps(run.config, indent=1)}\n```')

    def log(self, scalars: Mapping[str, float], samples: int) -> None:
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, samples)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run's folder `wandb`."""

    def __init__(self, run: TrackedRun):
        import wandb  # pyright: ignore[reportMissingImports]  an optional dependency

        id_file = run.folder / 'wandb_id'
        if run.resumed_at is None or not id_file.is_file():
            id_file.write_text(secrets.token_hex(4), encoding='utf-8')
        # W&B drops records of steps it already has, which are those that a resumed run repeats.
        self.run = wandb.init(
            project='lmplay',
            id=id_file.read_text(encoding='utf-8').strip(),
            resume='allow',
            name=run.name or None,
            dir=str(run.folder),
            config=run.config,
        )

    def log(self, scalars: Mapping[str, float], samples: int) -> None:
        self.run.log(dict(scalars), step=samples)

    def flush(self) -> None:
        pass  # a process of its own does that

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of the local dashboard that `trackio show` opens."""

    def __init__(self, run: TrackedRun):
        import trackio  # pyright: ignore[reportMissingImports]  an optional dependency

        resume = 'never' if run.resumed_at is None else 'allow'
        self.run = trackio.init(
            project='lmplay', name=run.name or None, config=run.config, resume=resume, embed=False
        )

    def log(self, scalars: Mapping[str, float], samples: int) -> None:
        self.run.log(dict(scalars), step=samples)

    def flush(self) -> None:
        pass  # it sends by itself

    def close(self) -> None:
        self.run.finish()


OWN = {'tensorboard': TensorBoard, 'wandb': Wandb, 'trackio': Trackio}


def find_trackers(names: Sequence[str]) -> list[Callable[[TrackedRun], Tracker]]:
    """What makes the trackers of these names.

    Raises UserError for one that is unknown, that two packages offer, or that can't be imported.
    """
    return [_find(name) for name in dict.fromkeys(names)]


def _find(name: str) -> Callable[[TrackedRun], Tracker]:
    joined = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    offers = [e for e in joined if e.name == name]
    if name not in OWN and not offers:
        raise UserError(unknown('tracker', name, [*OWN, *joined.names], '--report-to'))
    if len(offers) + (name in OWN) > 1:
        origins = ' and '.join([*(['lmplay'] if name in OWN else []), *(e.value for e in offers)])
        raise UserError(f"--report-to: two packages offer a tracker '{name}': {origins}.")
    if name in OWN:
        if importlib.util.find_spec(name) is None:
            raise UserError(f'Reporting to {name} needs the package {name}: pip install lmplay[{name}].')
        return OWN[name]
    try:
        return offers[0].load()
    except Exception as error:  # noqa: BLE001  another package's code may raise anything
        raise UserError(f"--report-to: the tracker '{name}' ({offers[0].value}) {_reason(error)}.") from error


class Trackers:
    """All trackers of a run as one. One that fails is left out from then on, with a warning: the run has its
    own records."""

    def __init__(self, makers: Sequence[Callable[[TrackedRun], Tracker]], run: TrackedRun):
        """Raises UserError where one can't be started."""
        self._trackers: list[Tracker] = []
        for maker in makers:
            try:
                self._trackers.append(maker(run))
            except Exception as error:  # noqa: BLE001  another package's code may raise anything
                self.close()
                name = getattr(maker, '__name__', maker)
                raise UserError(f'--report-to: {name} {_reason(error)}.') from error

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log(self, scalars: Mapping[str, float], samples: int) -> None:
        self._each(lambda tracker: tracker.log(scalars, samples))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001  another package's code may raise anything
                self._trackers.remove(tracker)
                log.warning('%s is given no more: it %s.', type(tracker).__name__, _reason(error))


def _reason(error: Exception) -> str:
    return ' '.join(f'raised {type(error).__name__}: {error}'.split()).rstrip('.')[:300]
