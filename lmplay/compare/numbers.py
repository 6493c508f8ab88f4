"""Numbers and texts as people read them."""

import math


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: grouped, or with an SI letter where it is large."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return '–'
    if isinstance(value, int) and abs(value) < 100_000:
        return f'{value:,}'
    for size, letter in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= size:
            short = f'{value / size:.{digits - 1}g}' if value < 999.5 * size else f'{value / size:,.0f}'
            return f'{short} {letter}'
    return f'{value:.{digits}g}'


def figure_text(key: str, value: float | None) -> str:
    """A figure of `words.FIGURES` in its unit."""
    if key == 'memory' and value is not None:
        return f'{value / 2**30:.2f} GiB'
    if key == 'seconds' and value is not None:
        return f'{value:,.1f}'
    return number(value)


def visible(text: str) -> str:
    """A model's text with the control characters that a page may not hold replaced by their pictures."""
    return ''.join(_picture(c) if c < ' ' and c not in '\n\t' or c == '\x7f' else c for c in text)


def _picture(control: str) -> str:
    return '␡' if control == '\x7f' else chr(0x2400 + ord(control))
