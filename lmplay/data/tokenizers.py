"""The former home of `lmplay.tokenizers`, kept for experiments that import it from here."""

from ..tokenizers import *  # noqa: F403
