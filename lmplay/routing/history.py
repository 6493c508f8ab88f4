"""How the routing of a run came to be: what its metrics.jsonl says about the routed layers."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..runs.recorder import AXES, METRICS, read_metrics
from ..train.stages import Run

ALARMS = ('warning', 'collapse')
MAX_POINTS = 240  # of a longer run each is the mean of several


@dataclass
class History:
    """What a run recorded of its routed layers while it trained.

    step     (P,) of the training points, at most MAX_POINTS; each a mean since the one before
    load     (P, L, E) fractions of assignments
    curves   name -> (P, L): every metric that has a number for each routed layer
    alarms   (step, 'warning' or 'collapse', message)
    """

    step: np.ndarray
    load: np.ndarray
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    alarms: list[tuple[int, str, str]] = field(default_factory=list)


def lineage(run: Run, stage: str) -> list[str]:
    """The stages that trained the weights which `stage` ends with, itself first."""
    names, found = list(run.plan.stages), [stage]
    while found[-1] in names:
        index = names.index(found[-1])
        source = run.stage(index).init_from
        if source.startswith('stage:'):
            found.append(source.removeprefix('stage:'))
        elif source == 'previous' and index:
            found.append(names[index - 1])
        else:
            break
    return found


def read_history(run_dir: Path, layers: int, experts: int, stages: list[str]) -> History | None:
    """What those stages recorded of a model with that many routed layers and experts in each; None where nothing was.

    Points of stages that trained another model are left out.
    """
    if not (run_dir / METRICS).is_file():
        return None
    records = [r for r in read_metrics(run_dir) if r.get('stage') in stages]
    points = [
        r for r in records if r.get('kind') == 'train' and _is_table(r.get('expert_load'), layers, experts)
    ]
    if not points:
        return None
    numbers = (int, float)
    names = [
        k
        for k, v in points[-1].items()
        if k not in AXES
        and isinstance(v, list)
        and len(v) == layers
        and all(isinstance(n, numbers) or n is None for n in v)
    ]
    empty = [None] * layers
    curves = {
        name: [[np.nan if n is None else n for n in r.get(name) or empty] for r in points] for name in names
    }
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
        {name: _means(values, width) for name, values in curves.items()},
        alarms,
    )


def _means(values: list, width: int) -> np.ndarray:
    """Means of `width` points each, of what is known."""
    values = np.asarray(values, float)
    starts, known = np.arange(0, len(values), width), ~np.isnan(values)
    with np.errstate(invalid='ignore'):
        return np.add.reduceat(np.where(known, values, 0), starts) / np.add.reduceat(known, starts, dtype=int)


def _is_table(value, rows: int, columns: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(isinstance(row, list) and len(row) == columns and None not in row for row in value)
    )
