"""The errors that a user can cause. Every entry point prints them as one sentence and exits with 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something a user can put right: says what was given, what is allowed, and where."""


class ExperimentError(UserError):
    """An experiment that is unknown, broken, registered twice, or breaks the contract."""


class PlanError(UserError):
    """A training plan that can't be run as it stands."""


class DataError(UserError):
    """Text, a dataset or a tokenizer that can't be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """' Did you mean X?' for the allowed name nearest to `given`, else ''."""
    allowed = [str(a) for a in allowed]
    lowered = {a.lower(): a for a in allowed}
    match = difflib.get_close_matches(str(given).lower(), lowered, n=1, cutoff=0.5)
    return f" Did you mean '{lowered[match[0]]}'?" if match else ''


def unknown(kind: str, given: str, allowed: Iterable[str], where: str = '') -> str:
    """The sentence for a name that is not among the allowed ones."""
    allowed = sorted(str(a) for a in allowed)
    shown = ', '.join(allowed[:40]) + (f', ... ({len(allowed)} in all)' if len(allowed) > 40 else '')
    place = f' in {where}' if where else ''
    named = ' '.join(str(given).split()) if str(given).split() else given.__repr__()[1:-1]
    return f"Unknown {kind} '{named}'{place}.{nearest(given, allowed)} Allowed: {shown or '(none)'}."
