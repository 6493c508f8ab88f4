"""Opens a checkpoint and the text for it, and puts together all that an X-ray shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.base_model import LMBase
from ..base.routed import Experts, RoutedLM
from ..data.held_out import HeldOut
from ..device import amp_dtype, find_device, keep_freed_memory
from ..errors import CheckpointError, ExperimentError, UserError
from ..runs.checkpoint import read_state
from ..runs.checkpoints import find_checkpoint
from ..runs.finished import StartedRun, read_started
from ..runs.load import load_model
from ..tokenizers import as_tokenizer
from .collect import Observed, observe
from .drift import Drift, drift, experts_of, start_of
from .findings import Report
from .history import History, lineage, read_history
from .page import XRay, write
from .text import given_text, own_text
from .trace import trace


def xray(
    path: Path,
    *,
    data: Sequence[str] = (),
    max_bytes: int | None = None,
    out: Path | None = None,
    exp: str | None = None,
    device: str = 'auto',
    amp: bool = False,
    against: Path | None = None,
    snapshots: bool = False,
    prompt: str | None = None,
) -> XRay:
    """X-rays the checkpoint at `path`.

    data: names of datasets and files; by default the held-out text of the run's own plan. against: another
    model, shown beside it on the same text. snapshots: measure the checkpoints of the run too. prompt: a text
    for the model to continue, whose tokens are traced through the experts. Raises UserError for a model
    without experts, and for what cannot be read or written.
    """
    keep_freed_memory()
    where = find_device(device)
    subject = _open(path, str(where), exp)
    text, held_out = _text(subject, data, max_bytes)
    dtype = amp_dtype(where, amp)

    def seen(model: RoutedLM) -> Observed:
        return observe(model, held_out, device=where, dtype=dtype)

    report = _report(subject, text, seen)
    if prompt is not None:
        report.trace = trace(subject.model, prompt, device=where, dtype=dtype)
    if against is not None:
        other = _open(against, str(where), exp)
        _require_same_tokens(subject, other)
        report.other = _report(other, text, seen)
    if snapshots:
        report.snapshots = _snapshots(subject, report.observed, seen, str(where), exp)
    return write(report, out or (subject.run.folder if subject.run else Path()) / 'routing')


@dataclass(frozen=True)
class _Subject:
    """A checkpoint with its model, and the run that it belongs to."""

    path: Path
    folder: Path
    model: RoutedLM
    stage: str
    step: int
    run: StartedRun | None


def _open(path: Path, device: str, exp: str | None) -> _Subject:
    folder, model, state = _routed_checkpoint(path, device, exp)
    stage = state.get('stage', '')
    run = read_started(folder.resolve().parent.parent) if stage else None
    return _Subject(path, folder, model, stage, _step(state), run)


def _text(subject: _Subject, data: Sequence[str], max_bytes: int | None) -> tuple[str, HeldOut]:
    """(what it is called, the text): the given one, else what the run's stage was evaluated on."""
    data = data if subject.stage else data or ['embedded']  # a file of others, that no run tells a text of
    if data:
        return ', '.join(data), given_text(data, subject.model, subject.run, max_bytes)
    held_out = own_text(subject.model, subject.run, subject.stage, max_bytes, subject.folder)
    return f'the held-out text of stage {subject.stage}', held_out


def _step(state: dict) -> int:
    return (state.get('progress') or {}).get('total_step', 0)


def _report(subject: _Subject, text: str, seen: Callable[[RoutedLM], Observed]) -> Report:
    model, observed, experts = subject.model, seen(subject.model), experts_of(subject.model)
    drifts, reference = _drifts(model, experts, subject.run, subject.stage)
    history = _history(subject.run, observed, subject.stage)
    where = str(subject.path)
    return Report(model.name, where, subject.step, text, observed, history, experts, drifts, reference)


def _require_same_tokens(one: _Subject, other: _Subject) -> None:
    names = [as_tokenizer(each.model.tokenizer) for each in (one, other)]
    if names[0].fingerprint != names[1].fingerprint or one.model.max_len > other.model.max_len:
        lengths = f'{one.model.max_len} and {other.model.max_len}'
        raise UserError(
            f"'{other.path}' can't be shown beside '{one.path}' on the same text: their tokenizers are "
            f'{names[0].name} and {names[1].name}, their lengths {lengths} tokens.'
        )


def _snapshots(
    subject: _Subject, observed: Observed, seen: Callable[[RoutedLM], Observed], device: str, exp: str | None
) -> History | None:
    """The load of the experts at each checkpoint of the run whose layers of experts are of this shape."""
    if subject.run is None:
        raise UserError(f"'{subject.path}' belongs to no run, so it has no snapshots.")
    shape, found = [layer.num_experts for layer in observed.layers], {}
    for folder in sorted(subject.run.checkpoints.glob('step-*')):
        state = read_state(folder)
        if state.get('stage') not in lineage(subject.run, subject.stage):
            continue
        model = load_model(folder, device=device, exp=exp)[0]
        if isinstance(model, RoutedLM) and model.experts():
            layers = seen(model).layers
            if [layer.num_experts for layer in layers] == shape:
                found[_step(state)] = [layer.load for layer in layers]
    return (
        History(np.array(sorted(found)), np.array([found[step] for step in sorted(found)])) if found else None
    )


def _routed_checkpoint(path: Path, device: str, exp: str | None) -> tuple[Path, RoutedLM, dict]:
    """(folder, model, state) of the best checkpoint, or of the last where the best is dense."""
    try:
        folders = [find_checkpoint(path, prefer=prefer) for prefer in ('best', 'last')]
    except CheckpointError:
        folders = [path]  # `load_model` knows formats of others
    for folder in folders:
        model, state = load_model(folder, device=device, exp=exp)
        if isinstance(model, RoutedLM) and model.experts():
            return folder, model, state
    raise ExperimentError(
        f"'{path}' holds {model.name}, a model without experts: there is no routing to show."
    )


def _history(run: StartedRun | None, observed: Observed, stage: str):
    if run is None:
        return None
    return read_history(run.folder, len(observed.layers), observed.layers[0].num_experts, lineage(run, stage))


def _drifts(
    model: LMBase, experts: list[Experts], run: StartedRun | None, stage: str
) -> tuple[list[Drift | None], str]:
    """(by layer, None where its experts are frozen; what it is measured from); ([], '') where all are."""
    if not any(layer.weights for layer in experts):
        return [], ''
    start, reference = start_of(model, run, stage)
    starts = start or [None] * len(experts)
    found = [drift(now, begun) if now.weights else None for now, begun in zip(experts, starts)]
    return found, reference
