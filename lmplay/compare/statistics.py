"""Paired comparison of two experiments, over new seeds and new documents alike.

A difference is always experiment minus baseline; of a loss, below zero is better. SciPy, slow to import, is
imported where it is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

ALPHA = 0.05  # how often a comparison may tell two equal experiments apart
POWER = 0.8
RANGE = 0.8  # how often the true number of seeds needed lies within the range that is shown
RECOMMENDED_SEEDS = 3
MOST_SEEDS = 1000  # nobody trains more; a larger number is not worth computing
FEW_DOCUMENTS = 10  # held-out text that counts as fewer documents says little about text in general
LEAST_P = 1e-12


def t_quantile(p: float, df: float | np.ndarray):
    """The t with P(T <= t) = p for Student's t with df degrees of freedom; of the shape of `df`."""
    from scipy import special

    return special.stdtrit(df, p)


def effective_documents(weights: np.ndarray) -> float:
    """How many documents of equal size these are worth: (sum w)^2 / sum w^2 (Kish 1965)."""
    return round(float(weights.sum() ** 2 / max(1e-300, (weights**2).sum())), 6)  # ten equal ones are ten


def grouped(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(groups,) sums of (documents,) values over documents of one group."""
    return np.bincount(np.unique(groups, return_inverse=True)[1], np.asarray(values, float))


@dataclass(frozen=True)
class Noise:
    """The sampling variance of a mean: an estimate with so many degrees of freedom.

    critical: how many standard errors its interval takes, where that is not Student's quantile.
    """

    variance: float
    df: float
    critical: float | None = None

    def half_width(self, alpha: float) -> float:
        """Of the 1 - alpha interval."""
        t = float(t_quantile(1 - alpha / 2, self.df)) if self.critical is None else self.critical
        return t * math.sqrt(self.variance) if self.variance else 0.0


@dataclass(frozen=True)
class Paired:
    """Mean of n paired differences, standard deviation over the pairs, confidence interval, p of the test.

    sd is None for a single pair; low, high and p are None where there is no noise to compare the mean with.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def document_noise(
    baseline: np.ndarray, other: np.ndarray, weights: tuple[np.ndarray, np.ndarray], groups: np.ndarray
) -> Noise | None:
    """V, the variance of the difference of two mean losses over the choice of the held-out documents.

    baseline, other: (documents,) losses summed over each document, averaged over seeds; weights: for each of
    the two, the (documents,) tokens or bytes that sums are divided by; groups: (documents,) equal for
    documents that are held out together, which count as one. None where the text counts as fewer than
    FEW_DOCUMENTS.

    With w each document's share of the text and d its difference per token, V is the linearised variance of a
    ratio, n / (n - 1) sum w^2 (d - mean)^2 (Cochran 1977, Sampling Techniques, 6.9; by groups, 9A). n is the
    effective number (sum w^2)^2 / sum w^4: squares weighted by w^2 have that many degrees of freedom
    (Satterthwaite 1946), fewer than Kish's number, and a few long documents do not pass for many.
    """

    def share_and_residual(sums, weight):
        sums, weight = grouped(sums, groups), grouped(weight, groups)
        total = max(1.0, weight.sum())
        return weight / total, (sums - weight * sums.sum() / total) / total

    b_share, b_residual = share_and_residual(baseline, weights[0])
    o_share, o_residual = share_and_residual(other, weights[1])
    w, residual = (b_share + o_share) / 2, o_residual - b_residual
    if effective_documents(w) < FEW_DOCUMENTS:
        return None
    n = max(2.0, float((w**2).sum() ** 2 / (w**4).sum()))
    return Noise(n / (n - 1) * float((residual**2).sum()), n - 1)


def half_width(alpha: float, parts: Sequence[Noise]) -> float:
    """Half the 1 - alpha interval of a mean whose variance is the sum of independent estimates.

    sqrt(sum t^2 V), with each part's own quantile of Student's t, covers at least 1 - alpha (Banerjee 1960,
    Sankhya 22). Satterthwaite's approximation for the sum covers less where one part has a degree of freedom
    or two: in simulation it let through 12 % of equal experiments with two seeds and 8 % with three.
    """
    return math.sqrt(sum(part.half_width(alpha) ** 2 for part in parts))


def paired(
    differences: Sequence[float],
    documents: Noise | None = None,
    *,
    alpha: float = ALPHA,
    critical: float | None = None,
) -> Paired:
    """The mean difference with its 1 - alpha interval over new seeds, and over new documents where their
    noise is given; without, the paired t-test (Student 1908).

    The squared standard error is s^2 / S + V: s^2 over the S seeds holds what differs from seed to seed, V
    what differs from document to document. The part that differs from both is in either, which errs on the
    side of caution.

    critical: how many standard errors of the mean over seeds the interval takes where a rule looked more than
    once; there is no p then. All looks share the error of the documents, which gets half of alpha: by
    simulation, that keeps the sum of both parts at alpha whichever is larger.
    """
    d = np.asarray(differences, float)
    n, mean = len(d), float(d.mean())
    sd = float(d.std(ddof=1)) if n > 1 else None
    parts = [] if sd is None else [Noise(sd**2 / n, n - 1, critical)]
    if documents is not None and critical is not None:
        documents = replace(documents, critical=float(t_quantile(1 - alpha / 4, documents.df)))
    parts += [documents] if documents is not None else []
    if not parts:
        return Paired(n, mean)
    half = half_width(alpha, parts)
    p = p_value(mean, parts) if critical is None else None
    return Paired(n, mean, sd, mean - half, mean + half, p)


def p_value(mean: float, parts: Sequence[Noise]) -> float:
    """The alpha whose interval just reaches zero."""
    from scipy import optimize

    if not any(part.variance for part in parts):
        return float(mean == 0)
    if not mean or half_width(LEAST_P, parts) <= abs(mean):
        return 1.0 if not mean else LEAST_P
    found = optimize.brentq(
        lambda log_p: half_width(math.exp(log_p), parts) - abs(mean), math.log(LEAST_P), 0.0, xtol=1e-10
    )
    return math.exp(float(found))  # type: ignore[arg-type]  # a pair only with full_output


def detectable(
    sd: float,
    n: int | np.ndarray,
    documents: Noise | None = None,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
):
    """The smallest true difference that a comparison over n seeds finds; sd: of the paired differences."""

    def error(p: float):
        over_documents = t_quantile(p, documents.df) ** 2 * documents.variance if documents else 0.0
        return np.sqrt(t_quantile(p, n - 1) ** 2 * sd**2 / n + over_documents)

    return error(1 - alpha / 2) + error(power)


def seeds_needed(
    difference: float,
    sd: float,
    documents: Noise | None = None,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
) -> int | None:
    """The fewest seeds with which `difference` is detectable; None where that is more than MOST_SEEDS, or no
    number is enough on so few documents.

    sd: of the paired differences. Rounded up to a multiple of ten above 40.
    """
    n = np.array([*range(2, 41), *range(50, MOST_SEEDS + 1, 10)])
    enough = n[abs(difference) >= detectable(sd, n, documents, alpha=alpha, power=power)]
    return int(enough[0]) if difference and len(enough) else None


def sd_range(sd: float, n: int) -> tuple[float, float]:
    """What the true standard deviation may be, given `sd` over n seeds: the chi-square interval of RANGE."""
    from scipy import stats

    low, high = stats.chi2.ppf([(1 + RANGE) / 2, (1 - RANGE) / 2], n - 1)
    return sd * math.sqrt((n - 1) / low), sd * math.sqrt((n - 1) / high)


def skewness(differences: Sequence[float]) -> tuple[float, float] | None:
    """(skewness, p of its test against a normal distribution); None below 8 differences, where there is none
    (D'Agostino 1970, Biometrika 57)."""
    from scipy import stats

    if len(differences) < 8 or np.ptp(differences) == 0:
        return None
    return float(stats.skew(differences)), float(stats.skewtest(differences).pvalue)


def verdict(low: float | None, high: float | None) -> str:
    """'better' or 'worse' where the interval lies on one side of zero, 'within noise', 'no verdict'."""
    if low is None or high is None:
        return 'no verdict'
    return 'better' if high < 0 else 'worse' if low > 0 else 'within noise'
