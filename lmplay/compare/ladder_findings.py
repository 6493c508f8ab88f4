"""From the finished runs of a ladder to findings: what its report and JSON say."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ..runs.finished import FinishedRun
from .grouping import METRICS
from .judge import compare_pair
from .rungs import Rung
from .scaling import JointFit, Ladder, Ratios, joint_fit, ratios
from .statistics import ALPHA, RECOMMENDED_SEEDS
from .words import signed

Runs = list[dict[str, list[FinishedRun]]]  # by rung: label -> its runs, by seed
AXES = {'flops': 'compute', 'seconds': 'training time'}


def climb(
    ladder: Sequence[Rung], runs: Runs, *, metric: str, prediction: dict | None, notes: Sequence[str]
) -> dict:
    """The findings as JSON values; the first label is the baseline.

    prediction: the losses of the last rung as predicted from those below. The error rate is shared among the
    experiments (Bonferroni).
    """
    baseline, *others = runs[0]
    alpha = ALPHA / len(others)
    seeds = max(len(members) for r in runs for members in r.values())
    whole = {label: _is_whole(runs, label, seeds) for label in runs[0]}
    ladders = {
        axis: {label: _ladder(runs, label, axis, metric) for label in runs[0] if whole[label]}
        for axis in AXES
    }
    fit = joint_fit(list(ladders['flops'].values())) if len(runs) > 2 and whole[baseline] else None
    experiments = []
    for label in others:
        entry: dict = {'label': label, 'axes': {}, 'prediction': None}
        entry['differences'] = [compare_pair(r[baseline], r[label], metric, alpha) for r in runs]
        if whole[baseline] and whole[label]:
            for axis, own in ladders.items():
                entry['axes'][axis] = _values(ratios(own[baseline], own[label], alpha=alpha))
            entry['prediction'] = _prediction(prediction, ladders['flops'], baseline, label)
        entry['sentence'] = sentence(entry, baseline, len(runs), alpha, METRICS[metric])
        experiments.append(entry)
    return {
        'title': f'{", ".join(others)} compared with {baseline} on a ladder of {len(runs)} sizes',
        'metric': metric,
        'unit': METRICS[metric],
        'baseline': baseline,
        'seeds': seeds,
        'alpha': alpha,
        'rungs': [_rung(rung, r, metric) for rung, r in zip(ladder, runs)],
        'experiments': experiments,
        'fit': fit and _fit_values(fit, list(ladders['flops'])),
        'warnings': [*_warnings(seeds, len(runs), fit, runs), *notes],
    }


def _is_whole(runs: Runs, label: str, seeds: int) -> bool:
    """Whether every run of an experiment is there, and none diverged."""
    return all(len(r[label]) == seeds and not any(own.diverged for own in r[label]) for r in runs)


def _ladder(runs: Runs, label: str, axis: str, metric: str) -> Ladder:
    spent = [np.mean(np.array([own.cost[axis] for own in r[label]], float)) for r in runs]
    return Ladder(np.log(spent), np.array([[own.loss(metric) for own in r[label]] for r in runs]))


def _values(found: Ratios) -> dict:
    def plain(values: np.ndarray) -> list[float | None]:
        return [float(v) if math.isfinite(v) else None for v in values]

    return {
        'ratio': plain(found.value),
        'low': plain(found.low),
        'high': plain(found.high),
        'trend': found.trend,
        'change': found.change,
    }


def _fit_values(fit: JointFit, labels: list[str]) -> dict:
    curves = {label: {'A': fit.A[i], 'a': fit.a[i]} for i, label in enumerate(labels)}
    return {'E': fit.E, 'curves': curves, 'identified': fit.identified, 'residual': fit.residual}


def _prediction(
    prediction: dict | None, ladders: dict[str, Ladder], baseline: str, label: str
) -> dict | None:
    """Predicted and measured at the last rung: the experiment's loss, and its difference."""
    if prediction is None or not {baseline, label} <= prediction['losses'].keys():
        return None
    predicted = prediction['losses']
    measured = {name: float(ladders[name].mean[-1]) for name in (baseline, label)}
    return {
        'rungs': prediction['rungs'],
        'loss': predicted[label],
        'measured': measured[label],
        'baseline': predicted[baseline],
        'baseline_measured': measured[baseline],
        'difference': predicted[label] - predicted[baseline],
        'difference_measured': measured[label] - measured[baseline],
    }


def _rung(rung: Rung, runs: dict[str, list[FinishedRun]], metric: str) -> dict:
    experiments = {}
    for p in rung.prepared:
        label, members = p.spec.label, runs[p.spec.label]
        losses = {str(r.seed): r.loss(metric) for r in members}
        costs = {k: [r.cost[k] or math.nan for r in members] for k in ('flops', 'seconds')}
        experiments[label] = {
            'model': rung.model[label],
            'parameters': rung.parameters[label],
            'lr': [stage['lr'] for r in members[:1] for stage in r.stage_settings.values()],
            'losses': {seed: v if math.isfinite(v) else None for seed, v in losses.items()},
            'loss': _mean(losses.values()),
        } | {k: _mean(v) for k, v in costs.items()}
    return {'rung': rung.index + 1, 'tokens': rung.tokens, 'experiments': experiments}


def _mean(values: Iterable[float]) -> float | None:
    mean = float(np.mean([*values] or math.nan))
    return mean if math.isfinite(mean) else None


def sentence(entry: dict, baseline: str, rungs: int, alpha: float, unit: str) -> str:
    """The first sentence of the report about an experiment, and the error of the prediction beside it."""
    label = entry['label']
    if not entry['axes']:
        return f'No answer for {label}: a run of it or of {baseline} is missing or diverged.'
    found = entry['axes']['flops']
    known = [k for k, v in enumerate(found['ratio']) if v is not None]
    if not known:
        last = entry['differences'][-1]['mean']
        return (
            f'No compute ratio can be given: at every rung, the loss of {label} is outside those of '
            f'{baseline}. At the last rung the difference is {signed(last)} {unit}.'
        )
    k = known[-1]
    value = found['ratio'][k]
    text = f"{label} needs {value:.2f} times the baseline's compute for the same loss at rung {k + 1}"
    if k < rungs - 1:
        text += f' of {rungs}, the last whose loss {baseline} reaches'
    if found['low'][k] is None:
        return f'{text}. With one seed there is no interval and no claim.{_error(entry, unit)}'
    inside = found['low'][k] <= 1 <= found['high'][k]
    text += f' ({100 * (1 - alpha):.3g} % interval {found["low"][k]:.2f} to {found["high"][k]:.2f}'
    text += ', within noise)' if inside else ')'
    return f'{text}; {_trend(found)}.{_error(entry, unit)}'


def _trend(found: dict) -> str:
    effect = 'advantage' if sum(math.log(v) for v in found['ratio'] if v is not None) < 0 else 'disadvantage'
    known = sum(v is not None for v in found['ratio'])
    return {
        'within noise': 'at every rung, the ratio is within noise of 1',
        'cannot be told': f'whether the {effect} changes over the ladder cannot be told'
        + (f' from {known} ratio{"s" if known > 1 else ""}' if known < 3 else ''),
    }.get(found['trend'], f'over the ladder the {effect} {found["trend"]}')


def _error(entry: dict, unit: str) -> str:
    p = entry['prediction']
    if p is None:
        return ''
    error = signed(p['loss'] - p['measured'])
    return (
        f' From the rungs below, its loss at the last rung was predicted as {p["loss"]:.4f}; it is '
        f'{p["measured"]:.4f} (error {error} {unit}; of the difference, predicted {signed(p["difference"])}, '
        f'measured {signed(p["difference_measured"])}).'
    )


def _warnings(seeds: int, rungs: int, fit: JointFit | None, runs: Runs) -> list[str]:
    found = [
        'Intervals of ratios are over new seeds, on this held-out text and at these learning rates; those of '
        'differences are over new documents too.'
    ]
    if seeds < RECOMMENDED_SEEDS:
        found.append(f'At least {RECOMMENDED_SEEDS} seeds are recommended; trained here: {seeds}.')
    if rungs < 3:
        found.append('With fewer than 3 rungs no trend is claimed, and the last rung is not predicted.')
    if fit and not fit.identified:
        found.append(
            'The joint fit is not identified: its irreducible loss E sits at its bound. Do not extrapolate.'
        )
    loads = [load for r in runs for own in r.values() for run in own if (load := run.summary.get('load'))]
    if loads and max(loads) > 1.25:
        found.append(
            f'The machine was busy while some runs trained (up to {max(loads):.1f} tasks per core): ratios '
            'by measured seconds are distorted.'
        )
    return found
