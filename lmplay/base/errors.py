"""The former home of `lmplay.errors`, kept for experiments that import it from here."""

from ..errors import *  # noqa: F403
