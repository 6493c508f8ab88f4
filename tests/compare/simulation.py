"""Comparisons of two equal experiments over new seeds and new held-out text, simulated.

    python -m tests.compare.simulation 20000      prints the table of docs/compare.md

A document's difference per token is the sum of what its seed, its domain, the document and both have in
common, with mean zero over the text that documents are drawn from. Domains differ in size and in effect: the
rare one has long documents, and the change affects it most.
"""

import math
import sys
from collections.abc import Callable, Iterator

import numpy as np

from lmplay.compare.statistics import Noise, document_noise, half_width

SEEDS, DOCUMENTS = (2, 3, 5), (10, 30, 100)
SHARES, LENGTHS, EFFECTS = (0.4, 0.3, 0.2, 0.1), (0.3, 1.0, 1.0, 3.0), (-0.5, -0.5, 0.1, 1.0)
SIZES: dict[str, Callable] = {
    'equal': lambda rng, n: np.full(n, 500.0),
    'capped': lambda rng, n: np.minimum(500 * rng.lognormal(0, 1.5, n), 1000),
    'heavy': lambda rng, n: 500 * rng.lognormal(0, 1, n),
    'by domain': lambda rng, n: 500 * rng.lognormal(0, 0.6, n),
}


def differences(rng, seeds: int, n: int, *, size: str, domains: bool, seed_share: float, shift: float = 0.0):
    """((seeds, n) differences per token, (n,) tokens). seed_share: variance over seeds / over documents."""
    domain = rng.choice(4, n, p=SHARES)
    lengths = np.array(LENGTHS) if size == 'by domain' else np.ones(4)
    tokens = SIZES[size](rng, n) * lengths[domain]
    effect = np.array(EFFECTS) - np.average(EFFECTS, weights=np.array(SHARES) * lengths)
    document = rng.normal(0, 1, n) + (effect[domain] if domains else 0.0)
    of_seed = rng.normal(0, math.sqrt(seed_share * seeds / n), (seeds, 1))
    return shift + document + of_seed + rng.normal(0, 0.3, (seeds, n)), tokens


def told_apart(rng, seeds: int, n: int, trials: int, *, alpha: float = 0.05, **world) -> Iterator[int]:
    """-1, 0 or 1 of each simulated comparison: better, within noise or no verdict, worse."""
    for _ in range(trials):
        d, tokens = differences(rng, seeds, n, **world)
        by_seed = d @ tokens / tokens.sum()
        documents = document_noise(
            np.zeros(n), d.mean(0) * tokens, (tokens, tokens), np.arange(n, dtype=np.uint64)
        )
        if documents is None:
            yield 0
            continue
        half = half_width(alpha, [Noise(by_seed.var(ddof=1) / seeds, seeds - 1), documents])
        yield int(np.sign(by_seed.mean())) if abs(by_seed.mean()) > half else 0


def main(trials: int) -> None:
    for size in SIZES:
        for seeds in SEEDS:
            cells = []
            for n in DOCUMENTS:
                rates = [
                    np.mean(
                        [
                            bool(v)
                            for v in told_apart(
                                np.random.default_rng(1),
                                seeds,
                                n,
                                trials,
                                size=size,
                                domains=domains,
                                seed_share=share,
                            )
                        ]
                    )
                    for domains in (False, True)
                    for share in (0.0, 1.0, 10.0)
                ]
                cells.append(f'{100 * max(rates):.1f}')
            print(f'| {size} | {seeds} | {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]))
