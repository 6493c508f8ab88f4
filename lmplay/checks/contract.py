"""The contract of lmplay.base.base_model, check by check. docs/honesty.md says when they are made."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.base_model import LMBase
from ..device import is_out_of_memory
from ..errors import ExperimentError, UserError
from .dependence import (
    check_alone,
    check_causal,
    check_finite,
    check_independent,
    check_later,
    check_repeatable,
)
from .generation import check_cache
from .probe import Probe, preserved_random_state
from .runnable import check_runnable
from .weights import check_gradients, check_head, check_kept, check_tensors

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parent.parent
LARGEST = 500_000_000  # values of a model that is copied to be checked: 4 GB in float64


@dataclass(frozen=True)
class Finding:
    """One check of a model; `problem` is None where it holds."""

    check: str
    problem: str | None = None


BEFORE_TRAINING: dict[str, Callable[[Probe], None]] = {
    'the same text gives the same result': check_repeatable,
    'no position sees the future': check_causal,
    'sequences of a batch are independent': check_independent,
    'the size of a batch changes nothing': check_alone,
    'forward is the head of the features': check_head,
    'generation with the cache equals the whole pass': check_cache,
}
AFTER_STEPS: dict[str, Callable[[Probe], None]] = {
    'the same holds later in training': check_later,
    'a checkpoint keeps all of it': check_kept,
}


def check_contract(model: LMBase, rebuild: Callable[[], LMBase] | None = None) -> Iterator[Finding]:
    """Each check of the contract on the very model, whose weights, gradients, mode and random state stay as
    they are.

    rebuild: builds the model once more, as loading a checkpoint does; without it, what a checkpoint would
    lose is not looked for. Checks that need a model that can be passed, or trained, end with the first that
    finds it cannot.
    """
    for title, check in (
        ('tensors that can be saved', check_tensors),
        ('shape of the logits', check_runnable),
    ):
        found = _finding(title, check, model)
        yield found
        if found.problem:
            return
    device = next(model.parameters()).device
    if device.type == 'meta':
        return
    if is_too_large(model):
        log.warning(
            '%s is too large to be copied and checked as it is; its narrow form is checked instead.',
            model.name,
        )
        return
    with preserved_random_state(device):
        try:
            probe = Probe(model, rebuild)
        except Exception as error:  # noqa: BLE001  no copy, no checks; that says nothing about what the model computes
            log.warning('%s could not be copied to be checked (%s).', type(model).__name__, error)
            return
        yield _finding('finite logits', check_finite, probe)
        with probe.stirred():
            for title, check in BEFORE_TRAINING.items():
                yield _finding(title, check, probe)
        found = _finding('every trainable parameter gets a gradient', check_gradients, probe)
        yield found
        if found.problem is None and probe.is_finite():
            for title, check in AFTER_STEPS.items():
                yield _finding(title, check, probe)


def is_too_large(model: LMBase) -> bool:
    """Whether copies of the model in float64 could exceed a machine's memory."""
    return sum(t.numel() for t in (*model.parameters(), *model.buffers())) > LARGEST


def require_contract(model: LMBase, rebuild: Callable[[], LMBase] | None = None) -> None:
    """Raises ExperimentError with what is wrong with the model, if anything is."""
    for found in check_contract(model, rebuild):
        if found.problem:
            raise ExperimentError(
                f'{type(model).__name__} breaks the contract of a language model ({found.check}): '
                f'{found.problem}'
            )


def _finding(title: str, check: Callable, subject) -> Finding:
    try:
        check(subject)
    except UserError as error:
        return Finding(title, str(error))
    except Exception as error:  # noqa: BLE001  a model may raise anything; it becomes the finding
        if is_out_of_memory(error):
            return Finding(title)  # says nothing about the model
        return Finding(title, f'{type(error).__name__}: {error}{_place(error)}')
    return Finding(title)


def _place(error: BaseException) -> str:
    """' (model.py, line 33, in forward)': the last line of the experiment on the way to the error, if any."""
    others = (str(PACKAGE), sys.base_prefix, '<')
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(str(PACKAGE / 'exp'))
        or not frame.filename.startswith(others)
        and 'site-packages' not in frame.filename
    ]
    if not theirs:
        return ''
    return f' ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno}, in {theirs[-1].name})'
