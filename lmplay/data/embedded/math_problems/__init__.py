"""Worded math problems with worked solutions, an endless stream of them from a seed.

Every kind of problem draws its own numbers, names and wording and computes each step, so what a solution states is true.
"""

from collections.abc import Iterator

from . import chance, geometry, money, numbers, quantities, stories  # noqa: F401  (they fill KINDS)
from .words import KINDS, Words

COUNT = 20_000  # problems in the embedded corpus


def problems(seed: int = 0) -> Iterator[tuple[str, str]]:
    """(problem, solution), without end; the same for the same seed."""
    r = Words(seed)
    while True:
        problem, steps, answer = r.choice(KINDS)(r)
        separator = r.choice(('\n', '\n', ' '))
        end = r.choice(('Answer: {}', 'Answer: {}', 'The answer is {}.', 'So the answer is {}.'))
        yield problem, separator.join([*steps, end.format(answer)])
