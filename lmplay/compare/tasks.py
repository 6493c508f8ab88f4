"""Task scores of lmp_eval, paired by seed and item as losses are by seed and document."""

import math

import numpy as np

from ..evaluation.results import Scores, TaskResult, results_of
from ..runs.finished import FinishedRun
from .statistics import ALPHA, document_noise, grouped, paired

Scored = dict[str, dict[int, dict[str, TaskResult]]]  # label -> seed -> task -> result
FLIPS = 9999  # random ones, where there are too many to try all


def compare_tasks(runs: dict[str, list[FinishedRun]]) -> dict:
    """{'rows': one per task and metric that the baseline and another experiment have scores for, 'alpha',
    'left_out': why others are not there}.

    The error rate is shared among rows and experiments (Bonferroni).
    """
    found, told = _read(runs)
    baseline, *others = runs
    asked = [
        (task, metric)
        for task, result in {t: r for of_seed in found[baseline].values() for t, r in of_seed.items()}.items()
        for metric, scores in result.metrics.items()
        if scores.sums is not None and any(task in r for o in others for r in found[o].values())
    ]
    alpha = ALPHA / max(1, len(asked) * len(others))
    rows = []
    for task, metric in asked:
        row = _row(found, task, metric, alpha)
        told += [why for why in row.pop('left_out') if why not in told]
        if len(row['experiments']) > 1:
            rows.append(row)
    return {'rows': rows, 'alpha': alpha, 'left_out': told}


def _read(runs: dict[str, list[FinishedRun]]) -> tuple[Scored, list[str]]:
    found, told = {}, []
    for label, members in runs.items():
        found[label] = {}
        for run in members:
            found[label][run.seed], left_out = results_of(run)
            told += left_out
    return found, told


def _row(found: Scored, task: str, metric: str, alpha: float) -> dict:
    """A task's metric: what each experiment scores, and its difference from the baseline."""
    baseline, *others = found
    base = _scores(found[baseline], task, metric)
    seed = min(base)
    first = found[baseline][seed][task]
    row = {
        'task': task,
        'metric': metric,
        'items': first.items,
        'higher_is_better': base[seed].higher_is_better,
        'experiments': {baseline: {'score': _mean(base)}},
        'left_out': [],
    }
    for label in others:
        own = _scores(found[label], task, metric)
        if any(found[label][s][task].fingerprint != first.fingerprint for s in own):
            row['left_out'].append(
                f'{task}: {label} and {baseline} were asked about other items. Give lmp_eval the same '
                '--data, --max-bytes, --limit and --num-fewshot for both.'
            )
        elif base.keys() & own.keys():
            row['experiments'][label] = {'score': _mean(own)} | _difference(base, own, alpha)
    return row


def _scores(of_seeds: dict[int, dict[str, TaskResult]], task: str, metric: str) -> dict[int, Scores]:
    """seed -> the scores of a metric, where there are some by item."""
    return {
        seed: scores
        for seed, results in of_seeds.items()
        if task in results and (scores := results[task].metrics.get(metric)) and scores.sums is not None
    }


def _mean(scores: dict[int, Scores]) -> float:
    return float(np.mean([s.value for s in scores.values()]))


def _difference(base: dict[int, Scores], own: dict[int, Scores], alpha: float) -> dict:
    """Experiment minus baseline with its interval over new seeds and items; by seed, on how many items the
    experiment scores better and worse."""
    seeds = sorted(base.keys() & own.keys())
    pairs = [(base[s], own[s]) for s in seeds]
    one = pairs[0][0]
    assert one.weights is not None
    groups = np.arange(len(one.weights)) if one.groups is None else one.groups
    b, o = (np.mean([scores.sums for scores in side], axis=0) for side in zip(*pairs))
    noise = document_noise(b, o, (one.weights, one.weights), groups)
    estimate = paired([o.value - b.value for b, o in pairs], noise, alpha=alpha)
    judged = None not in (noise, estimate.sd, estimate.high) and math.isfinite(estimate.high or 0.0)
    sign = 1 if one.higher_is_better else -1
    return {
        'difference': estimate.mean,
        'low': estimate.low if judged else None,
        'high': estimate.high if judged else None,
        'by_seed': {str(s): _of_one_seed(sign, *pair, groups) for s, pair in zip(seeds, pairs)},
    }


def _of_one_seed(sign: int, base: Scores, own: Scores, groups: np.ndarray) -> dict:
    assert base.sums is not None and own.sums is not None
    gains = sign * (own.sums - base.sums)
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    return {'better': better, 'worse': worse, 'p': sign_flip_p(gains, groups)}


def sign_flip_p(gains: np.ndarray, groups: np.ndarray) -> float:
    """Two-sided p of Fisher's permutation test for pairs: each group's sum of gains might have had the other
    sign. Of single items that are right or wrong it is McNemar's exact test."""
    from scipy import stats

    sums = grouped(gains, groups)
    sums = sums[sums != 0]
    if len(sums) < 2:  # either sign of one is as extreme as the other
        return 1.0
    found = stats.permutation_test(
        (sums,), np.sum, permutation_type='samples', n_resamples=FLIPS, vectorized=True, rng=0
    )
    return float(found.pvalue)
