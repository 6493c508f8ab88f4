"""How the routing of a run developed: what its metrics.jsonl says about the routed layers."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..runs.finished import MODEL_METRIC, StartedRun
from ..runs.recorder import AXES, read_metrics

ALARMS = ('warning', 'collapse')
MAX_POINTS = 240  # in longer runs each is the mean of several


@dataclass
class History:
    """What a run recorded of its routed layers while it trained.

    step     (P,) of the training points, at most MAX_POINTS; each a mean since the previous one
    load     (P, L, E) fractions of assignments
    curves   name -> (P, L): every metric that has a number for each routed layer
    alarms   (step, 'warning' or 'collapse', message)
    """

    step: np.ndarray
    load: np.ndarray
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    alarms: list[tuple[int, str, str]] = field(default_factory=list)


def lineage(run: StartedRun, stage: str) -> list[str]:
    """The stages that trained the weights which `stage` ended with, itself first."""
    found = [stage]
    while found[-1] in run.stage_settings and run.origin(found[-1]).startswith('stage:'):
        found.append(run.origin(found[-1]).removeprefix('stage:'))
    return found


def read_history(run_dir: Path, layers: int, experts: int, stages: list[str]) -> History | None:
    """What those stages recorded of a model with so many routed layers and experts; None for nothing.

    Points of stages that trained another model are left out.
    """
    records = [r for r in read_metrics(run_dir) if r.get('stage') in stages]
    points = [_bare(r) for r in records if r.get('kind') == 'train']
    points = [r for r in points if _is_table(r.get('expert_load'), layers, experts)]
    if not points:
        return None
    alarms = [
        (r['step'], r['event'], r.get('message', ''))
        for r in records
        if r.get('kind') == 'event' and r.get('event') in ALARMS
    ]
    width = -(-len(points) // MAX_POINTS)
    last = np.minimum(np.arange(width, len(points) + width, width), len(points)) - 1
    return History(
        np.array([r['step'] for r in points])[last],
        _means([r['expert_load'] for r in points], width),
        {name: _means(values, width) for name, values in _curves(points, layers).items()},
        alarms,
    )


def _bare(record: dict) -> dict:
    """A record with the model's metrics under bare names, as in older runs; the trainer's names win."""
    own = {k.removeprefix(MODEL_METRIC): v for k, v in record.items() if k.startswith(MODEL_METRIC)}
    return own | {k: v for k, v in record.items() if not k.startswith(MODEL_METRIC)}


def _curves(points: list[dict], layers: int) -> dict[str, list[list[float]]]:
    """name -> (P, L) of every metric that has a number for each layer in the last point."""
    names = [k for k, v in points[-1].items() if k not in AXES and _is_column(v, layers)]
    empty = [np.nan] * layers
    return {
        name: [[np.nan if n is None else n for n in r.get(name) or empty] for r in points] for name in names
    }


def _is_column(value, rows: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(n is None or isinstance(n, (int, float)) for n in value)
    )


def _means(values: list, width: int) -> np.ndarray:
    """Means of `width` points each, NaN ignored."""
    points = np.asarray(values, float)
    starts, known = np.arange(0, len(points), width), ~np.isnan(points)
    with np.errstate(invalid='ignore'):
        return np.add.reduceat(np.where(known, points, 0), starts) / np.add.reduceat(known, starts, dtype=int)


def _is_table(value, rows: int, columns: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(isinstance(row, list) and len(row) == columns and None not in row for row in value)
    )
