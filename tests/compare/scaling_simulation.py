"""Ladders with a known ratio, simulated: how often its intervals cover it.

python -m tests.compare.scaling_simulation 1000      prints the table of docs/ladder.md
"""

import collections
import math
import sys

import numpy as np

from lmplay.compare.scaling import Ladder, ratios

X = np.linspace(0, math.log(64), 4)
SD = 0.015


def curve(x):
    """E + A C^-a with a slope of 0.28 to 0.20 for each factor of e in compute over the span of X."""
    return 1.5 + 2.5 * np.exp(-0.12 * np.asarray(x))


def ladders(rng, *, seeds: int, ratio: float, sd: float = SD) -> tuple[Ladder, Ladder]:
    """(baseline, an experiment that needs `ratio` times its compute everywhere)."""
    made = [curve(x)[:, None] + sd * rng.standard_normal((len(X), seeds)) for x in (X, X - math.log(ratio))]
    return Ladder(X, made[0]), Ladder(X, made[1])


def covered(rng, *, seeds: int, ratio: float, trials: int) -> tuple[np.ndarray, collections.Counter[str]]:
    """(share of the intervals at each rung that cover the ratio, how often each trend is claimed)."""
    inside, given = np.zeros(len(X)), np.zeros(len(X))
    trends: collections.Counter[str] = collections.Counter()
    for _ in range(trials):
        found = ratios(*ladders(rng, seeds=seeds, ratio=ratio))
        known = np.isfinite(found.value)
        given += known
        inside += known & (found.low <= ratio) & (ratio <= found.high)
        trends[found.trend] += 1
    return np.where(given >= trials / 4, inside / np.maximum(1, given), np.nan), trends


def main(trials: int) -> None:
    for seeds in (2, 3, 5):
        for ratio in (0.8, 1.0, 1.25):
            share, trends = covered(np.random.default_rng(1), seeds=seeds, ratio=ratio, trials=trials)
            cells = ' | '.join('–' if math.isnan(v) else f'{100 * v:.0f}' for v in share)
            wrong = 100 * (trends['grows'] + trends['shrinks']) / trials
            print(f'| {seeds} | {ratio} | {cells} | {wrong:.1f} |', flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]))
