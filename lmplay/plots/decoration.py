"""Pictures that illustrate results which are written already, and the user's text in them."""

import contextlib
import logging
from collections.abc import Iterator

from ..cli import plain_line

log = logging.getLogger(__name__)


def label(text: object, most: int = 60) -> str:
    """Text as matplotlib shows it: no mathematics between dollar signs, no label left out of the legend."""
    shown = plain_line(text)
    if len(shown) > most:
        shown = f'{shown[: most - 1]}…'
    shown = shown.replace('$', r'\$')
    return f' {shown}' if shown.startswith('_') else shown


@contextlib.contextmanager
def decoration(what: str) -> Iterator[None]:
    """Turns any error inside into a warning that names `what`: a failed picture fails nothing else."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 whatever a drawing library raises
        log.warning('%s could not be drawn and is left out (%s: %s).', what, type(error).__name__, error)
