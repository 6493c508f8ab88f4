"""Rules that add seeds, simulated: how often they err, and how many seeds they take.

    python -m tests.compare.sequential_simulation 200000      prints the tables of docs/compare.md

All paths of a world are simulated at once; differences have mean `effect` and standard deviation 1.
"""

import math
import sys
from collections.abc import Callable

import numpy as np

from lmplay.compare.sequential import FIRST, Sequential
from lmplay.compare.statistics import t_quantile

MOST = 100  # seeds at which the simulation of an open rule ends
EFFECTS = (0.0, 1.0, 2.0, 4.0, 8.0)
# Differences of 24 pairs of runs whose random numbers alone differ (benchmarks.aa), in 1e-5 nats per token
RECORDED = np.array(
    [349, 732, 66, 421, 281, 201, -566, 73, 74, 32, 100, 104]
    + [-105, -125, -218, -14, -673, -934, 1244, 685, 72, -406, -791, 2108]
)
SHIFT = math.exp(0.5)
NOISES: dict[str, Callable] = {
    'normal': lambda rng, size: rng.standard_normal(size),
    'heavy tails (t, 3 df)': lambda rng, size: rng.standard_t(3, size) / math.sqrt(3),
    'skewed (exponential)': lambda rng, size: rng.standard_exponential(size) - 1,
    'very skewed (log-normal)': lambda rng, size: (
        (rng.lognormal(0, 1, size) - SHIFT) / math.sqrt((math.e - 1) * math.e)
    ),
    'as recorded': lambda rng, size: rng.choice(RECORDED - RECORDED.mean(), size) / RECORDED.std(),
    'as recorded, either sign': lambda rng, size: (
        rng.choice(RECORDED, size) * rng.choice([-1, 1], size) / np.sqrt((RECORDED**2).mean())
    ),
}


def stops(
    rng,
    trials: int,
    rule: Sequential,
    *,
    effect: float = 0.0,
    noise: Callable = NOISES['normal'],
    alpha: float = 0.05,
    documents: float = 0.0,
    df: int = 60,
) -> tuple[np.ndarray, np.ndarray]:
    """((trials,) -1, 0, 1: better, not known, worse; (trials,) seeds at which the rule stopped).

    documents: the standard deviation of what the choice of documents adds to a path's mean difference, which
    is estimated with df degrees of freedom.
    """
    most = rule.maximum or MOST
    error = documents * rng.standard_normal(trials)
    estimate = documents * np.sqrt(rng.chisquare(df, trials) / df)
    of_documents = float(t_quantile(1 - alpha / 4, df)) * estimate
    total, squares = np.zeros(trials), np.zeros(trials)
    found, seeds, going = np.zeros(trials, int), np.full(trials, most), np.ones(trials, bool)
    for n in range(1, most + 1):
        x = effect + noise(rng, trials)
        total += x
        squares += x * x
        if n < max(FIRST, rule.first(alpha)):
            continue
        mean = total / n + error
        deviation = np.sqrt(np.maximum(0, squares - total * total / n) / (n - 1))
        of_seeds = rule.critical(alpha, n) * deviation / math.sqrt(n)
        half = np.hypot(of_seeds, of_documents)
        known = going & (abs(mean) > half)
        found[known] = np.sign(mean[known])
        alike = abs(mean) + half < rule.smallest_effect if rule.smallest_effect else np.zeros(trials, bool)
        ended = known | (going & alike)
        seeds[ended] = n
        going &= ~ended
    return found, seeds


def fixed_power(rng, trials: int, seeds: int, effect: float) -> float:
    """How often a t-test over so many seeds finds the effect."""
    d = effect + rng.standard_normal((trials, seeds))
    t = d.mean(1) / (d.std(1, ddof=1) / math.sqrt(seeds))
    return float((t > t_quantile(0.975, seeds - 1)).mean())


def fixed_seeds(rng, trials: int, effect: float, power: float) -> int:
    """The fewest seeds (at least 2) of a t-test with that power."""
    return next((n for n in range(2, 100) if fixed_power(rng, trials, n, effect) >= power), 100)


def peeking(rng, trials: int, most: int = 20) -> float:
    """False alarms of plain t-tests after each seed."""
    x = rng.standard_normal((trials, most))
    n = np.arange(FIRST, most + 1)
    total, squares = x.cumsum(1)[:, FIRST - 1 :], (x * x).cumsum(1)[:, FIRST - 1 :]
    t = abs(total) / np.sqrt(n * (squares - total**2 / n) / (n - 1))
    return float((t > t_quantile(0.975, n - 1)).any(1).mean())


def main(trials: int) -> None:
    rng = np.random.default_rng(1)
    print(f'plain t-tests after each seed from 3 to 20: {100 * peeking(rng, trials):.1f} % false alarms')
    print('| rule | effect | told apart | seeds, mean | fixed design of equal power | of power 0.8 |')
    for rule in (Sequential(20), Sequential(None)):
        for effect in EFFECTS:
            found, seeds = stops(rng, trials, rule, effect=effect)
            power = np.count_nonzero(found > 0) / trials
            fixed = [fixed_seeds(rng, 20_000, effect, min(p, 0.999)) if effect else '–' for p in (power, 0.8)]
            told = np.count_nonzero(found) / trials
            print(
                f'| {rule} | {effect:g} | {100 * told:.1f} % | {seeds.mean():.1f} | {fixed[0]} '
                f'| {fixed[1]} |',
                flush=True,
            )
    for name, noise in NOISES.items():
        rates = [
            100 * np.count_nonzero(stops(rng, trials, rule, noise=noise)[0]) / trials
            for rule in (Sequential(20), Sequential(None))
        ]
        print(f'| {name} | {rates[0]:.1f} | {rates[1]:.1f} |', flush=True)
    for alpha in (0.05, 0.025, 0.0125):
        for documents in (0.1, 0.3, 1.0, 3.0):
            rates = [
                100 * np.count_nonzero(stops(rng, trials, r, documents=documents, alpha=alpha)[0]) / trials
                for r in (Sequential(20), Sequential(None))
            ]
            print(f'| {alpha} | {documents:g} | {rates[0]:.2f} | {rates[1]:.2f} |', flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]))
