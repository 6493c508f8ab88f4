"""How a difference changes with scale: the compute that two experiments need for the same loss.

K rungs, S seeds, R draws of a bootstrap; x is ln C of a rung's training compute C (K,), smallest first, and
losses are means over seeds (..., K). SciPy, slow to import, is imported where it is used.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .statistics import ALPHA, t_quantile

DRAWS = 4000
TREND_RUNGS = 3  # with fewer ratios, no trend is claimed
STARTS = 25  # values of E from which a joint fit begins
EXPONENT = 0.12  # of the curve assumed for the width to expect: slopes fall with compute
AT_BOUND = 1e-3  # relative distance of E to its bound below which it is not identified


class Ladder(NamedTuple):
    """One experiment: x (K,) and its losses by seed (K, S)."""

    x: np.ndarray
    losses: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.losses.mean(1)

    @property
    def sd(self) -> float:
        """Of the losses of a rung over seeds, pooled over the rungs; NaN with one seed."""
        return float(np.sqrt(self.losses.var(1, ddof=1).mean())) if self.losses.shape[1] > 1 else math.nan


@dataclass(frozen=True)
class Ratios:
    """Compute that the experiment needs over the baseline's for the same loss.

    value, low, high: (K,) with its interval; NaN where the baseline's losses do not include the experiment's;
    trend: what may be said of its course; change: of ln ratio for each factor of e in compute, with its
    interval, or None."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    trend: str
    change: tuple[float, float, float] | None


def needed(x: np.ndarray, losses: np.ndarray, target: np.ndarray, *, beyond: bool = False) -> np.ndarray:
    """ln C (R,) at which a curve, losses (R, K) at x (K,), reaches each target (R,).

    Between two rungs it is a parabola through them and the nearest third. NaN outside the range of the
    losses; with `beyond`, the straight line of the last two rungs goes on.
    """
    inside = (losses[:, :-1] >= target[:, None]) & (losses[:, 1:] <= target[:, None])
    found = inside.any(1)
    last = len(x) - 2 - inside[:, ::-1].argmax(1)
    j = np.where(found, last, np.where(target > losses[:, 0], 0, len(x) - 2))
    rows = np.arange(len(losses))
    h, left = x[j + 1] - x[j], losses[rows, j]
    slope = (losses[rows, j + 1] - left) / h
    bend = _bend(x, losses, j, slope) if len(x) > 2 else np.zeros_like(slope)
    b, c = slope - bend * h, left - target
    with np.errstate(divide='ignore', invalid='ignore'):
        # bend u^2 + b u + c = 0, its roots without cancellation (Numerical Recipes 5.6)
        q = -(b + np.where(b < 0, -1, 1) * np.sqrt(np.maximum(0, b * b - 4 * bend * c))) / 2
        roots = np.stack([c / q, q / bend])
        off = np.abs(roots - h / 2)
        u = np.where((off[1] < off[0]) & np.isfinite(off[1]), roots[1], roots[0])
        straight = (target - left) / slope
    u = np.where(c == 0, 0.0, u)
    return x[j] + np.where(found, u, straight if beyond else np.nan)


def _bend(x: np.ndarray, losses: np.ndarray, j: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The second divided difference of rungs j, j + 1 and the nearest other."""
    before, after = np.maximum(j - 1, 0), np.minimum(j + 2, len(x) - 1)
    use_before = (j > 0) & (
        (j + 2 >= len(x)) | (x[j] - x[before] <= x[after] - x[np.minimum(j + 1, len(x) - 1)])
    )
    third, rows = np.where(use_before, before, after), np.arange(len(losses))
    outer = (losses[rows, third] - losses[rows, j + 1]) / (x[third] - x[j + 1])
    return (outer - slope) / (x[third] - x[j])


def log_ratios(
    base_x: np.ndarray, base: np.ndarray, x: np.ndarray, losses: np.ndarray, *, beyond: bool = False
) -> np.ndarray:
    """ln of the compute ratio (R, K) at each rung of the experiment; see `needed`."""
    columns = [x[k] - needed(base_x, base, losses[:, k], beyond=beyond) for k in range(len(x))]
    return np.stack(columns, axis=1)


def ratios(baseline: Ladder, other: Ladder, *, alpha: float = ALPHA, sds: tuple | None = None) -> Ratios:
    """The compute ratio at each rung, with 1 - alpha intervals over new seeds.

    Parametric bootstrap of the mean losses, with each experiment's deviation pooled over the rungs, because
    resampling three seeds within a rung covers too little; deviations from the estimate are scaled by
    Student's t over the normal quantile, with K (S - 1) degrees of freedom. sds: the true
    deviations, where known.
    """
    from scipy import special

    rungs, seeds = other.losses.shape
    estimate = log_ratios(baseline.x, baseline.mean[None], other.x, other.mean[None])[0]
    base_sd, sd = sds or (baseline.sd, other.sd)
    nothing = np.full(rungs, np.nan)
    if not math.isfinite(base_sd + sd) or not np.isfinite(estimate).any():
        return Ratios(np.exp(estimate), nothing, nothing, 'cannot be told', None)
    rng = np.random.default_rng(0)
    draws = [
        own.mean + s / math.sqrt(seeds) * rng.standard_normal((DRAWS, rungs))
        for own, s in ((baseline, base_sd), (other, sd))
    ]
    drawn = log_ratios(baseline.x, draws[0], other.x, draws[1], beyond=True)
    z = float(special.ndtri(1 - alpha / 2))
    scale = 1.0 if sds else float(t_quantile(1 - alpha / 2, rungs * (seeds - 1))) / z
    levels = [alpha / 2, 1 - alpha / 2]
    low, high = estimate + scale * np.quantile(drawn - estimate, levels, axis=0)
    change = _change(other.x, estimate, drawn, scale, levels)
    trend = _trend(estimate, low, high, change, other.x)
    return Ratios(np.exp(estimate), np.exp(low), np.exp(high), trend, change)


def _change(
    x: np.ndarray, estimate: np.ndarray, drawn: np.ndarray, scale: float, levels: list[float]
) -> tuple[float, float, float] | None:
    """The slope of ln ratio over ln C by least squares, with its interval; None with too few ratios."""
    known = np.isfinite(estimate)
    if known.sum() < TREND_RUNGS:
        return None
    centred = x[known] - x[known].mean()
    weights = centred / (centred**2).sum()
    slope, slopes = float(estimate[known] @ weights), drawn[:, known] @ weights
    low, high = slope + scale * np.quantile(slopes - slope, levels)
    return slope, float(low), float(high)


def _trend(
    estimate: np.ndarray, low: np.ndarray, high: np.ndarray, change: tuple | None, x: np.ndarray
) -> str:
    """'grows', 'shrinks', 'holds', 'within noise' or 'cannot be told', of the advantage or disadvantage.

    It holds where the whole change over the ladder is known to be less than a quarter of the effect, or less
    than half and not significant.
    """
    known = np.isfinite(estimate)
    if (low[known] <= 0).all() and (high[known] >= 0).all():
        return 'within noise'
    if change is None:
        return 'cannot be told'
    effect = float(estimate[known].mean())
    most = max(abs(change[1]), abs(change[2])) * np.ptp(x[known]) / abs(effect)
    told = change[1] > 0 or change[2] < 0
    if told and most >= 0.25:
        return 'grows' if change[0] * effect > 0 else 'shrinks'
    return 'holds' if most < 0.5 else 'cannot be told'


def expected_widths(x: np.ndarray, *, slope: float, sd: float, seeds: int) -> np.ndarray:
    """(K,) half-widths of the interval of a ratio near 1 to expect at each rung, from the deviation of losses
    over seeds and the mean slope of the loss over ln C: they are proportional to sd / (slope sqrt(seeds)).

    The first rung's has no neighbour on one side; it is NaN.
    """
    rungs = len(x)
    t = float(t_quantile(1 - ALPHA / 2, max(1, rungs * (seeds - 1)))) / 1.959964
    fall = np.exp(-EXPONENT * x)
    height = slope * np.ptp(x) / (fall[0] - fall[-1])
    losses = (height * np.exp(-EXPONENT * (x - late)) for late in (0.0, 1e-3))
    base, other = (Ladder(x, np.repeat(own[:, None], seeds, 1)) for own in losses)
    found = ratios(base, other, sds=(t * sd, t * sd))
    return (found.high - found.low) / 2


@dataclass(frozen=True)
class JointFit:
    """L(C) = E + A C^-a, with one E for all experiments; A and a by experiment.

    identified: whether E is off its bounds; residual: root mean square of what the fit leaves."""

    E: float
    A: list[float]
    a: list[float]
    identified: bool
    residual: float

    def loss(self, index: int, x: np.ndarray | float) -> Any:
        return self.E + self.A[index] * np.exp(-self.a[index] * np.asarray(x))


def joint_fit(ladders: list[Ladder]) -> JointFit:
    """A robust least-squares fit (Huber's loss), started from the best of STARTS values of E."""
    from scipy import optimize

    x = [own.x - own.x.mean() for own in ladders]
    y = [own.mean for own in ladders]
    bound = float(min(own.min() for own in y))

    def residuals(p: np.ndarray) -> np.ndarray:
        parts = [p[0] + np.exp(p[1 + 2 * i] - p[2 + 2 * i] * xs) - ys for i, (xs, ys) in enumerate(zip(x, y))]
        return np.concatenate(parts)

    def start(E: float) -> np.ndarray:
        lines = [np.polyfit(xs, np.log(ys - E), 1) for xs, ys in zip(x, y)]
        return np.concatenate([[E], *([line[1], max(1e-6, -line[0])] for line in lines)])

    starts = [start(share * bound) for share in np.linspace(0, 0.98, STARTS)]
    best = min(starts, key=lambda p: float((residuals(p) ** 2).sum()))
    lower = np.array([0.0, *([-np.inf, 1e-9] * len(ladders))])
    upper = np.array([bound, *([np.inf, 5.0] * len(ladders))])
    scale = max(1e-4, float(np.median(np.abs(residuals(best)))))
    best = np.clip(best, lower + 1e-9, upper - 1e-9)
    found = optimize.least_squares(residuals, best, bounds=(lower, upper), loss='huber', f_scale=scale)
    p = found.x
    A = [float(math.exp(p[1 + 2 * i] + p[2 + 2 * i] * own.x.mean())) for i, own in enumerate(ladders)]
    return JointFit(
        float(p[0]),
        A,
        [float(v) for v in p[2::2]],
        bool(AT_BOUND * bound < p[0] < (1 - AT_BOUND) * bound),
        float(np.sqrt((residuals(p) ** 2).mean())),
    )


def predict_next(ladders: list[Ladder], x: list[float]) -> list[float]:
    """The losses at a rung above those given, at ln C of each experiment: by the joint fit of three rungs or
    more, else by power laws without E. Needs two rungs."""
    if len(ladders[0].x) > 2:
        fit = joint_fit(ladders)
        return [float(fit.loss(i, at)) for i, at in enumerate(x)]
    lines = [np.polyfit(own.x, np.log(own.mean), 1) for own in ladders]
    return [float(math.exp(np.polyval(line, at))) for line, at in zip(lines, x)]
