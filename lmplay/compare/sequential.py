"""Seeds until the verdict is known (`--seeds auto`): stopping rules that stay valid however often one looks.

`auto[:MAX]` looks after each seed from FIRST to a fixed maximum, with a paired t-test at a constant level
(Pocock 1977, Biometrika 64). `auto:open` has no maximum: it inverts the scale-invariant mixture e-process of
the t-test (Lai 1976, Ann. Statist. 4; Wang and Ramdas 2024, arXiv:2310.03722).
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .statistics import t_quantile

FIRST, MAXIMUM, MOST = 3, 20, 100  # the first look; the default maximum, and the largest that can be given
TAU = 2.0  # effects that `auto:open` is tuned to, in standard deviations
PATHS = 200_000  # simulated for the level of `auto`
# more seeds do not help where their part of the interval is below this share of the documents' part
TEXT_LIMITS = 0.25


@functools.cache
def constant_level(alpha: float, maximum: int) -> float:
    """The p at which to stop so that equal experiments are told apart at any look with probability alpha.

    By simulation of t-tests at each of FIRST to `maximum` seeds, two standard errors below alpha, rounded
    down to two digits: 0.0075 for 5 % and 20 seeds.
    """
    from scipy import special

    rng = np.random.default_rng(1)
    total, squares, least = np.zeros(PATHS), np.zeros(PATHS), np.ones(PATHS)
    for n in range(1, maximum + 1):
        x = rng.standard_normal(PATHS)
        total += x
        squares += x * x
        if n < FIRST:
            continue
        t = np.abs(total) / np.sqrt(n * (squares - total * total / n) / (n - 1))
        far = t > 1.5  # a level is never above that
        least[far] = np.minimum(least[far], 2 * special.stdtr(n - 1, -t[far]))
    level = float(np.quantile(least, alpha - 2 * math.sqrt(alpha * (1 - alpha) / PATHS)))
    digit = 10.0 ** (math.floor(math.log10(level)) - 1)
    return round(math.floor(level / digit) * digit, 12)


def open_critical(alpha: float, n: int) -> float:
    """The |t| of n seeds at which the e-process exceeds 1 / alpha; inf where no t of so few seeds does.

    BF = (1 + n tau^2)^(-1/2) ((1 + q) / (1 + q / (1 + n tau^2)))^(n/2) with q = t^2 / (n - 1), solved for t.
    """
    g = 1 + n * TAU**2
    ratio = (math.sqrt(g) / alpha) ** (2 / n)
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / g)) if n > 1 and ratio < g else math.inf


@dataclass(frozen=True)
class Sequential:
    """A rule that adds seeds. maximum: None where it is open; smallest_effect: a difference below which two
    experiments count as alike, in the unit of the metric."""

    maximum: int | None = MAXIMUM
    smallest_effect: float | None = None

    def __str__(self) -> str:
        return f'auto:{self.maximum or "open"}'

    def critical(self, alpha: float, n: int) -> float:
        """The |t| over n seeds beyond which a mean difference is significant, whenever one looks."""
        if self.maximum is None:
            return open_critical(alpha, n)
        return float(t_quantile(1 - constant_level(alpha, self.maximum) / 2, n - 1))

    def first(self, alpha: float) -> int:
        """The fewest seeds with which two experiments can be told apart."""
        return next(n for n in range(FIRST, MOST) if math.isfinite(self.critical(alpha, n)))

    def ended(self, found: dict) -> str | None:
        """Why no seed is added after these findings about a pair of experiments: 'difference', 'equivalence',
        'text', 'maximum' or 'no verdict'; None where one is."""
        if found['mean'] is None:
            return 'no verdict'
        if found['low'] is None:
            return 'text'
        if found['low'] > 0 or found['high'] < 0:
            return 'difference'
        if self.smallest_effect and max(-found['low'], found['high']) < self.smallest_effect:
            return 'equivalence'
        of_seeds = found['over_seeds'][1] - found['over_seeds'][0]
        of_documents = found['documents'][1] - found['documents'][0]
        if of_seeds <= TEXT_LIMITS * of_documents:
            return 'text'
        return 'maximum' if len(found['seeds']) == self.maximum else None


def parse_seeds(given: int | str, smallest_effect: float | None = None) -> int | Sequential:
    """`--seeds`: a number, or 'auto', 'auto:MAX', 'auto:open'. Raises UserError for anything else."""
    text = str(given)
    name, _, maximum = text.partition(':')
    if name == 'auto' and (text == 'auto' or maximum == 'open' or maximum.isdecimal()):
        if smallest_effect is not None and not 0 < smallest_effect < math.inf:
            raise UserError(f'--smallest-effect takes a number above 0; given: {smallest_effect:g}.')
        most = None if maximum == 'open' else int(maximum or MAXIMUM)
        if most is not None and not FIRST < most <= MOST:
            raise UserError(
                f'--seeds auto:MAX takes a maximum from {FIRST + 1} to {MOST}, or "open" for none; given: '
                f'{most}.'
            )
        return Sequential(most, smallest_effect)
    if smallest_effect is not None:
        raise UserError(f'--smallest-effect goes with --seeds auto; given: --seeds {text}.')
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise UserError(
            f'--seeds takes a whole number from 1 to 1000, or auto, auto:MAX, auto:open; given: {text}.'
        )
    return int(text)
