"""Runs that are stopped early (`--stop-early`): at equal tokens, their held-out loss is further above the
baseline's than any gap that a finished run of the folder has closed by its end.

A curve is (tokens (P,), losses (P,)) at a run's evaluations.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..runs.finished import FinishedRun, read_run
from ..runs.recorder import read_metrics

Curve = tuple[np.ndarray, np.ndarray]
FEWEST = 12  # finished curves below which nothing is stopped
EARLIEST = 0.2  # of a run, before which it is not judged
MARGIN = 2.0  # times the largest gap that was closed
STOPPED = 'hopeless.json'  # in a run's directory: why it was stopped


def curve_of(records: Sequence[dict]) -> Curve:
    """The evaluations among the records of a run."""
    points = [(r['tokens'], r['loss']) for r in records if r['kind'] == 'validation']
    tokens, losses = np.array(points, float).reshape(-1, 2).T
    return tokens, losses


def recorded_curves(folder: Path, fingerprint: str) -> list[Curve]:
    """The curves of finished runs, below `folder` and beside it, evaluated on the same held-out text."""
    found = []
    for file in sorted(folder.resolve().parent.glob('*/runs/*/seed-*/summary.json')):
        try:
            run = read_run(file.parent)
        except DataError:
            continue  # its own comparison reports that
        if run.fingerprints['evaluation'] == fingerprint and math.isfinite(run.loss()):
            found.append(curve_of(run.records))
    return found


def largest_closed_gap(curves: Sequence[Curve], share: float) -> float:
    """The largest gap of one curve above another, at this share of the tokens, that was gone at the end."""
    at = np.array([np.interp(share * tokens[-1], tokens, losses) for tokens, losses in curves])
    ends = np.array([losses[-1] for _, losses in curves])
    gaps = at[:, None] - at[None]
    return float(gaps[ends[:, None] <= ends[None]].max(initial=0.0))


def hopeless(curve: Curve, baseline: Sequence[Curve], recorded: Sequence[Curve]) -> str | None:
    """Why a run whose curve is so far should be stopped, or None."""
    tokens, losses = curve
    whole = float(baseline[0][0][-1]) if baseline else math.inf
    if len(recorded) < FEWEST or not len(tokens) or not EARLIEST <= tokens[-1] / whole < 1:
        return None
    worst = max(float(np.interp(tokens[-1], *own)) for own in baseline)
    gap, most = float(losses[-1]) - worst, largest_closed_gap(recorded, tokens[-1] / whole)
    if not gap > MARGIN * most:  # nor where it is NaN: divergence is reported elsewhere
        return None
    return (
        f'after {tokens[-1] / whole:.0%} of its tokens its loss is {gap:.4f} above the highest of the '
        f'baseline there; the largest gap that any of {len(recorded)} finished runs closed is {most:.4f}'
    )


def wrongly_stopped(recorded: Sequence[Curve]) -> tuple[int, int]:
    """The rule's errors on recorded curves: (how many would have been stopped, of so many that ended no worse
    than the worst of the three that ended nearest), each judged by all others at its own evaluations."""
    wrong = judged = 0
    for i, (tokens, losses) in enumerate(recorded):
        others = [own for k, own in enumerate(recorded) if k != i]
        peers = sorted(others, key=lambda own: abs(own[1][-1] - losses[-1]))[:3]
        if not peers or losses[-1] > max(own[1][-1] for own in peers):
            continue
        judged += 1
        at = range(1, len(tokens) + 1)
        wrong += any(hopeless((tokens[:n], losses[:n]), peers, others) for n in at)
    return wrong, judged


class Watch:
    """Judges running jobs by the finished runs that there were when it began."""

    def __init__(self, baseline: Sequence[FinishedRun], folder: Path):
        self.baseline = [curve_of(run.records) for run in baseline]
        self.recorded = recorded_curves(folder, baseline[0].fingerprints['evaluation'])

    def __call__(self, run: Path) -> str | None:
        """Why the run in this directory should be stopped, or None; noted there."""
        why = hopeless(curve_of(read_metrics(run)), self.baseline, self.recorded)
        if why:
            (run / STOPPED).write_text(json.dumps({'why': why}) + '\n')
        return why


def why_stopped(run: Path) -> str | None:
    """Why a run was stopped early as hopeless; None where it was not."""
    try:
        return str(json.loads((run / STOPPED).read_text())['why'])
    except (OSError, ValueError, LookupError):
        return None
