"""Pictures that illustrate results which are written already."""

import contextlib
import logging
from collections.abc import Iterator

log = logging.getLogger(__name__)


@contextlib.contextmanager
def decoration(what: str) -> Iterator[None]:
    """Turns any error inside into a warning that names `what`: a failed picture fails nothing else."""
    try:
        yield
    except Exception as error:
        log.warning('%s could not be drawn and is left out (%s: %s).', what, type(error).__name__, error)
