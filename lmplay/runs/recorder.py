"""What a run records while it trains.

metrics.jsonl         everything, one object per line; `kind` is train, validation or event
train_stats.csv       the original lmplay's columns: iter (samples), accuracy, loss, tokens
validate_stats.csv    the same
samples.jsonl         now and then a prompt, its truth and the model's prediction
tensorboard/, wandb/  on request (trackers.py); their step axis is samples
"""

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import xxhash

from ..errors import DataError
from ..files import from_json
from .formats import Record, checked
from .trackers import TrackedRun, Trackers, find_trackers

log = logging.getLogger(__name__)

METRICS, SAMPLES = 'metrics.jsonl', 'samples.jsonl'
TRAIN_CSV, VALIDATE_CSV = 'train_stats.csv', 'validate_stats.csv'
LOGS = (METRICS, SAMPLES, TRAIN_CSV, VALIDATE_CSV)
CSV_HEADER = 'iter,accuracy,loss,tokens\n'
FLUSH_SECONDS = 2.0
AXES = ('stage', 'step', 'samples', 'tokens', 'seconds')  # say where a record stands, so no curves


def plain(value: Any) -> Any:
    """`value` in JSON's types: tensors and arrays become numbers and lists, non-finite numbers None."""
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _finite(value: Any) -> bool:
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return not isinstance(value, float) or math.isfinite(value)
    return all(map(_finite, value))


def _load_summary(load_LE: Any) -> dict[str, list]:
    """By layer, the busiest expert's share and the number of idle experts; load (layers, experts)."""
    if not isinstance(load_LE, list) or not all(
        isinstance(row, list) and row and None not in row for row in load_LE
    ):
        return {}
    return {
        'model/busiest_share': [max(row) for row in load_LE],
        'model/dead_experts': [row.count(0) for row in load_LE],
    }


def to_json(record: Mapping[str, Any]) -> str:
    """One line of strict JSON: NaN and infinity become null, and `non_finite` lists their fields."""
    line = plain(record)
    if bad := [str(k) for k, v in record.items() if not _finite(v)]:
        line['non_finite'] = bad
    return json.dumps(line, ensure_ascii=False, allow_nan=False)


def _scalars(record: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, float]]:
    """(tag, number) of all numbers of a record; of a list, its minimum and maximum."""
    for key, value in record.items():
        if hasattr(value, 'tolist'):
            value = value.tolist()
        if isinstance(value, Mapping):
            yield from _scalars(value, f'{prefix}{key}/')
        elif isinstance(value, (list, tuple)):
            if numbers := list(_numbers(value)):
                yield f'{prefix}{key}/min', min(numbers)
                yield f'{prefix}{key}/max', max(numbers)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in AXES:
            yield f'{prefix}{key}', value


def _numbers(value: Sequence) -> Iterator[float]:
    for v in value:
        if isinstance(v, (list, tuple)):
            yield from _numbers(v)
        elif isinstance(v, (int, float)):
            yield v


class Recorder:
    """Writes what a run records into its directory.

    report_to  names of trackers (trackers.py)
    offsets    what `offsets()` returned for the checkpoint that is resumed: logs are cut back to it, so that
               nothing is recorded twice. None for a fresh start, which removes the logs of an earlier
               history.

    Raises UserError for a tracker that is unknown, is not installed, or can't be started.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        report_to: Sequence[str] = (),
        offsets: dict[str, int] | None = None,
        run_name: str = '',
        config: dict | None = None,
    ):
        makers = find_trackers(report_to)
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._digests = {name: xxhash.xxh3_128() for name in LOGS}  # of all that the logs hold
        self._files = {name: self._open(name, (offsets or {}).get(name, 0)) for name in LOGS}
        self._flushed = time.monotonic()
        resumed_at = None
        if offsets is not None:
            resumed_at = max((r.get('samples') or 0 for r in read_metrics(self.run_dir)), default=0)
        tracked = TrackedRun(self.run_dir, run_name, plain(config or {}), resumed_at)
        self._trackers = Trackers(makers, tracked)

    def _open(self, name: str, offset: int):
        path = self.run_dir / name
        file = open(path, 'a+b')  # noqa: SIM115  closed in close(); read by `copy`
        size = file.seek(0, os.SEEK_END)
        if size < offset:  # somebody cut it: keep its whole lines
            log.warning(
                '%s is shorter than when the checkpoint was written (%d bytes, then %d).', path, size, offset
            )
            offset = path.read_bytes().rfind(b'\n') + 1
        file.truncate(offset)
        file.seek(0)
        self._digests[name].update(file.read())
        if name.endswith('.csv') and not offset:
            self._append(file, name, CSV_HEADER)
        return file

    def _append(self, file: IO[bytes], name: str, line: str):
        written = line.encode('utf-8', 'backslashreplace')  # what JSON calls lone surrogates
        file.write(written)
        self._digests[name].update(written)

    def _write(self, name: str, line: str, *, flush: bool):
        self._append(self._files[name], name, line)
        if flush or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hands all that is recorded so far to the system."""
        for file in self._files.values():
            file.flush()
        self._flushed = time.monotonic()

    def _curve(self, kind: str, csv: str, record: Mapping[str, Any]):
        rare = kind != 'train'
        record = {**record, **_load_summary(plain(record.get('model/expert_load')))}
        values = (
            '' if (v := plain(record.get(k))) is None else str(v)
            for k in ('samples', 'accuracy', 'loss', 'tokens')
        )
        self._write(csv, ','.join(values) + '\n', flush=False)
        self._write(METRICS, to_json({'kind': kind, **record}) + '\n', flush=rare)
        if self._trackers:
            scalars = {f'{kind}/{tag}': value for tag, value in _scalars(record)}
            self._trackers.log(scalars, int(record['samples']))

    def train(self, record: Mapping[str, Any]) -> None:
        """A point of the training curve: samples, tokens, loss, and any other numbers, tensors and lists."""
        self._curve('train', TRAIN_CSV, record)

    def validation(self, record: Mapping[str, Any]) -> None:
        """A validation: as `train`, with `domains`, name -> numbers."""
        self._curve('validation', VALIDATE_CSV, record)

    def event(self, record: Mapping[str, Any]) -> None:
        """Anything else; its `message` is also logged, at its `level` ('info' by default)."""
        self._write(METRICS, to_json({'kind': 'event', **record}) + '\n', flush=True)
        level = logging.getLevelNamesMapping().get(str(record.get('level', 'info')).upper(), logging.INFO)
        log.log(level, '%s', record.get('message') or to_json(record))

    def sample(self, record: Mapping[str, Any]) -> None:
        """A prompt, its truth and the model's prediction."""
        self._write(SAMPLES, to_json(record) + '\n', flush=True)

    def offsets(self) -> dict[str, int]:
        """Syncs all logs and returns their lengths in bytes, for the checkpoint that is written next."""
        self.flush()
        for file in self._files.values():
            os.fsync(file.fileno())
        self._trackers.flush()
        return {name: file.tell() for name, file in self._files.items()}

    def checksums(self) -> dict[str, str]:
        """XXH3-128 of each log as it stands, for the checkpoint that is written next."""
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def removed(self) -> str | None:
        """The name of the first log that is no longer where it is written; None where all are."""
        for name, file in self._files.items():
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.run_dir / name)):
                    continue
            return name
        return None

    def copy(self, folder: Path) -> None:
        """Writes the logs into another folder, whether or not they have been removed from their own."""
        self.flush()
        for name, file in self._files.items():
            file.seek(0)
            with open(folder / name, 'wb') as copy:
                shutil.copyfileobj(file, copy)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._trackers.close()


class NoRecorder:
    """A Recorder that records nothing."""

    def train(self, record: Mapping[str, Any]) -> None: ...

    def validation(self, record: Mapping[str, Any]) -> None: ...

    def event(self, record: Mapping[str, Any]) -> None: ...

    def sample(self, record: Mapping[str, Any]) -> None: ...

    def offsets(self) -> dict[str, int]:
        return {}

    def checksums(self) -> dict[str, str]:
        return {}

    def flush(self) -> None: ...

    def removed(self) -> None: ...

    def copy(self, folder: Path) -> None: ...

    def close(self) -> None: ...


def changed_log(run_dir: Path, offsets: Mapping[str, int], checksums: Mapping[str, str]) -> str | None:
    """The name of the first log that does not begin with the `offsets[name]` bytes that were written; None
    where all do."""
    for name, expected in checksums.items():
        written = b''
        with contextlib.suppress(FileNotFoundError), open(run_dir / name, 'rb') as file:
            written = file.read(offsets[name])
        if xxhash.xxh3_128(written).hexdigest() != expected:
            return name
    return None


def read_metrics(run_dir: Path) -> list[dict]:
    """The records of a run's metrics.jsonl in order, none where it is missing; a torn last line is left out.

    Raises DataError for any other line that is not a JSON object.
    """
    file = Path(run_dir) / METRICS
    if not file.is_file():
        return []
    records = []
    whole_lines = file.read_bytes().split(b'\n')[:-1]
    for number, line in enumerate(whole_lines, 1):
        try:
            records.append(checked(Record, from_json(line)))
        except ValueError as error:
            raise DataError(f"'{file}', line {number} is not a record: {error}.") from error
    return records
