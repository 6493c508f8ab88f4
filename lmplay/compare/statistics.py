"""Paired comparison of two experiments: over seeds (Student's t) and over held-out documents (bootstrap).

A difference is always experiment minus baseline; of a loss, below zero is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ALPHA = 0.05  # of a comparison: how often two equal experiments may be told apart
POWER = 0.8
MOST_SEEDS = 1000  # beyond that the number needed is of no use
RESAMPLES = 2000
FEW_DOCUMENTS = 10  # fewer held-out documents than that say little about text in general


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function by Lentz's method (Press et al. 2007, Numerical Recipes, 6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    h = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            h *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return h


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, 1 - x) / b


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with df degrees of freedom."""
    if t * t < df:  # near the middle this keeps its digits
        return 0.5 + math.copysign(0.5 * incomplete_beta(0.5, df / 2, t * t / (df + t * t)), t)
    tail = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return 1 - tail if t > 0 else tail


@cache
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, by bisection."""
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Paired:
    """Mean of the paired differences, their standard deviation, and the mean's confidence interval; p of the two-sided test.

    sd, low, high and p are None for a single pair.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired_t(differences: Sequence[float], *, alpha: float = ALPHA) -> Paired:
    """The paired t-test of differences against zero, with the 1 - alpha interval of their mean (Student 1908)."""
    d = np.asarray(differences, float)
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Paired(n, mean)
    sd = float(d.std(ddof=1))
    error = sd / math.sqrt(n)
    half = t_quantile(1 - alpha / 2, n - 1) * error
    p = 2 * t_cdf(-abs(mean) / error, n - 1) if error else float(mean == 0)
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
    """The 1 - alpha percentile interval, over held-out documents, of the difference of two mean losses (Efron 1979).

    baseline, other: (documents,) losses summed over each document; weights: for each of the two what its sum is divided by
    (tokens, or bytes), (documents,). Documents are drawn with replacement, the same for both. None below two documents.
    """
    n = len(baseline)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    columns = np.stack([baseline, weights[0], other, weights[1]], axis=1).astype(float)
    results = []
    for start in range(0, resamples, 256):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(256, resamples - start))
        sums = counts @ columns
        results.append(sums[:, 2] / np.maximum(1, sums[:, 3]) - sums[:, 0] / np.maximum(1, sums[:, 1]))
    low, high = np.quantile(np.concatenate(results), [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def seeds_needed(difference: float, sd: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Seeds with which a paired t-test finds a true difference of that size; None where that is more than MOST_SEEDS.

    sd: of the paired differences. The smallest n >= 2 with |difference| >= (t(1 - alpha/2) + t(power)) sd / sqrt(n).
    """
    if not difference:
        return None
    for n in range(2, MOST_SEEDS + 1):
        if n > 40 and n % 10:  # far out a rough number does
            continue
        if abs(difference) >= (t_quantile(1 - alpha / 2, n - 1) + t_quantile(power, n - 1)) * sd / math.sqrt(
            n
        ):
            return n
    return None


def detectable(sd: float, n: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true difference that a paired t-test over n seeds finds with that power; sd: of the paired differences."""
    return (t_quantile(1 - alpha / 2, n - 1) + t_quantile(power, n - 1)) * sd / math.sqrt(n)


def verdict(seeds: Paired, documents: tuple[float, float] | None) -> str:
    """'better' or 'worse' where the difference holds over seeds and over documents, else 'within noise'; 'no verdict' of one seed.

    documents: interval of the difference averaged over the seeds. Both conditions are asked for, so that two equal experiments
    are told apart in at most ALPHA of all comparisons.
    """
    if seeds.n < 2:
        return 'no verdict'
    intervals = [(seeds.low, seeds.high)] + ([documents] if documents is not None else [])
    if all(high < 0 for _, high in intervals):
        return 'better'
    if all(low > 0 for low, _ in intervals):
        return 'worse'
    return 'within noise'
