"""What an evaluation leaves in a run: `evaluation/TASK.json`, with scores by item, and
`evaluation/TASK.jsonl`, each item with what the model answered.

Needs NumPy alone.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import seal_is_broken, sealed, write_bytes, write_json
from ..runs.finished import FinishedRun
from ..runs.formats import Form, checked, read

FOLDER = 'evaluation'


class Metric(Form):
    """value: over all items. sums and weights, an entry per item: of a metric that is sum(sums) /
    sum(weights); without weights, each counts as one. parts: part of the task -> value."""

    value: float
    higher_is_better: bool = True
    sums: list[float] | None = None
    weights: list[float] | None = None
    parts: dict[str, float] = {}


class TaskForm(Form):
    """TASK.json.

    fingerprint  of what was asked: equal where the items and their order are
    groups       an entry per item, equal for items that count as one
    run          the checksum of the summary of the run as it was evaluated; None of one that was not finished
    """

    task: str
    fingerprint: str
    items: int
    metrics: dict[str, Metric]
    groups: list[str] | None = None
    checkpoint: str = ''
    step: int | None = None
    run: str | None = None


@dataclass(frozen=True)
class Scores:
    """A metric of a task: see `Metric`. groups: (items,) strings, or None."""

    value: float
    higher_is_better: bool
    sums: np.ndarray | None = None
    weights: np.ndarray | None = None
    parts: Mapping[str, float] | None = None
    groups: np.ndarray | None = None

    @property
    def error(self) -> float | None:
        """Standard error over other items: linearised, of a ratio, by groups (Cochran 1977, 9A); None where
        that is unknown."""
        if self.sums is None or self.weights is None:
            return None
        residual = (self.sums - self.value * self.weights) / self.weights.sum()
        if self.groups is not None:
            residual = np.bincount(np.unique(self.groups, return_inverse=True)[1], residual)
        n = len(residual)
        return math.sqrt(n / (n - 1) * float((residual**2).sum())) if n > 1 else None


@dataclass(frozen=True)
class TaskResult:
    """metrics: name -> scores. The rest as of `TaskForm`."""

    task: str
    fingerprint: str
    items: int
    metrics: dict[str, Scores]
    checkpoint: str = ''
    step: int | None = None
    run: str | None = None


def write_result(folder: Path, content: dict[str, Any], items: Sequence[dict[str, Any]]) -> Path:
    """Writes the items, then TASK.json; returns its path. Raises OSError."""
    file = folder / f'{safe(content["task"])}.json'
    folder.mkdir(parents=True, exist_ok=True)
    lines = ''.join(json.dumps(item, ensure_ascii=False, default=str) + '\n' for item in items)
    write_bytes(file.with_suffix('.jsonl'), lines.encode('utf-8', 'replace'))
    write_json(file, sealed(checked(TaskForm, content)))
    return file


def safe(name: str) -> str:
    """A name as a file may have it."""
    return re.sub(r'[^\w.-]+', '_', name).lstrip('.') or '_'


def read_result(file: Path) -> TaskResult:
    """What `write_result` wrote. Raises DataError where the file is damaged."""
    try:
        content = read(file, TaskForm)
        if seal_is_broken(content):
            raise ValueError('it has changed since it was written')
        for name, metric in content['metrics'].items():
            kept = (metric[key] for key in ('sums', 'weights') if metric.get(key) is not None)
            if any(len(values) != content['items'] for values in kept):
                raise ValueError(f'{name} has not an entry for each item')
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' is damaged ({error}). Delete it, or rerun lmp_eval.") from error
    return as_result(content)


def as_result(content: Mapping[str, Any]) -> TaskResult:
    groups = None if content.get('groups') is None else np.array(content['groups'])
    metrics = {name: _scores(metric, groups) for name, metric in content['metrics'].items()}
    about = {key: content.get(key) for key in ('checkpoint', 'step', 'run')}
    return TaskResult(content['task'], content['fingerprint'], content['items'], metrics, **about)  # pyright: ignore


def _scores(metric: Mapping[str, Any], groups: np.ndarray | None) -> Scores:
    sums = None if metric.get('sums') is None else np.array(metric['sums'], float)
    given = metric.get('weights')
    weights = None if sums is None else np.ones(len(sums)) if given is None else np.array(given, float)
    return Scores(
        metric['value'], metric.get('higher_is_better', True), sums, weights, metric.get('parts', {}), groups
    )


def results_of(run: FinishedRun) -> tuple[dict[str, TaskResult], list[str]]:
    """(task -> what the finished run scored, sentences about what is left out: damaged files, and scores of
    the run before it was trained on)."""
    found, told = {}, []
    for file in sorted((run.folder / FOLDER).glob('*.json')):
        try:
            result = read_result(file)
        except DataError as error:
            told.append(str(error))
            continue
        if result.run != run.summary.get('checksum'):
            told.append(f"'{file}' is of the run before it was finished, and left out. Rerun lmp_eval.")
            continue
        found[result.task] = result
    return found, told
