"""Paired comparison of two experiments: over seeds (Student's t) and over held-out documents (bootstrap).

A difference is always experiment minus baseline; of a loss, below zero is better. SciPy, slow to import, is
imported where it is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05  # how often a comparison may tell two equal experiments apart
POWER = 0.8
MOST_SEEDS = 1000  # nobody trains more; a larger number is not worth computing
RESAMPLES = 2000
FEW_DOCUMENTS = 10  # fewer held-out documents than this say little about text in general


def t_quantile(p: float, df: float | np.ndarray):
    """The t with P(T <= t) = p for Student's t with df degrees of freedom; of the shape of `df`."""
    from scipy import stats

    return stats.t.ppf(p, df)


@dataclass(frozen=True)
class Paired:
    """Mean of n paired differences, standard deviation, confidence interval, p of the two-sided t-test.

    sd, low, high and p are None for a single pair.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired_t(differences: Sequence[float], *, alpha: float = ALPHA) -> Paired:
    """The paired t-test of differences against zero, with the 1 - alpha interval (Student 1908)."""
    from scipy import stats

    d = np.asarray(differences, float)
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Paired(n, mean)
    sd = float(d.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(t_quantile(1 - alpha / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Paired(n, mean, sd, mean - half, mean + half, p)


def bootstrap(
    baseline: np.ndarray,
    other: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
    *,
    alpha: float = ALPHA,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """The 1 - alpha percentile interval, over documents, of the difference of two mean losses (Efron 1979).

    baseline, other: (documents,) losses summed over each document; weights: for each of the two, the
    (documents,) tokens or bytes that sums are divided by. The same documents are resampled for both. None
    below two documents.
    """
    if len(baseline) < 2:
        return None
    from scipy import stats

    def difference(b, b_weight, o, o_weight, axis):
        return o.sum(axis) / np.maximum(1, o_weight.sum(axis)) - b.sum(axis) / np.maximum(
            1, b_weight.sum(axis)
        )

    low, high = stats.bootstrap(
        (baseline, weights[0], other, weights[1]),
        difference,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=256,  # bounds the memory: resamples x documents at a time
        confidence_level=1 - alpha,
        method='percentile',
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue]  a stub's omission
    ).confidence_interval
    return float(low), float(high)


def detectable(sd: float, n: int | np.ndarray, *, alpha: float = ALPHA, power: float = POWER):
    """The smallest true difference that a paired t-test over n seeds finds; sd: of the differences."""
    return (t_quantile(1 - alpha / 2, n - 1) + t_quantile(power, n - 1)) * sd / np.sqrt(n)


def seeds_needed(difference: float, sd: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """The fewest seeds with which `difference` is detectable; None where that is more than MOST_SEEDS.

    sd: of the paired differences. Rounded up to a multiple of ten above 40.
    """
    n = np.array([*range(2, 41), *range(50, MOST_SEEDS + 1, 10)])
    enough = n[abs(difference) >= detectable(sd, n, alpha=alpha, power=power)]
    return int(enough[0]) if difference and len(enough) else None


def verdict(seeds: Paired, documents: tuple[float, float] | None) -> str:
    """'better' or 'worse' where the difference holds over seeds and documents, 'within noise', 'no verdict'.

    documents: interval of the difference averaged over the seeds. Both conditions are asked for, so that two
    equal experiments are told apart in at most ALPHA of all comparisons.
    """
    if seeds.low is None or seeds.high is None:  # one seed
        return 'no verdict'
    intervals = [(seeds.low, seeds.high)] + ([documents] if documents is not None else [])
    if all(high < 0 for _, high in intervals):
        return 'better'
    if all(low > 0 for low, _ in intervals):
        return 'worse'
    return 'within noise'
