"""Opens a checkpoint and the text for it, and puts together all that an X-ray shows."""

from collections.abc import Sequence
from pathlib import Path

from ..base.base_model import LMBase
from ..base.routed import Experts, RoutedLM
from ..device import amp_dtype, find_device, keep_freed_memory
from ..errors import CheckpointError, ExperimentError
from ..runs.checkpoint import find_checkpoint, load_model
from ..runs.finished import StartedRun, read_started
from .collect import Observed, observe
from .drift import Drift, drift, experts_of, start_of
from .findings import Report
from .history import lineage, read_history
from .page import XRay, write
from .text import given_text, own_text


def xray(
    path: Path,
    *,
    data: Sequence[str] = (),
    max_bytes: int | None = None,
    out: Path | None = None,
    exp: str | None = None,
    device: str = 'auto',
    amp: bool = False,
) -> XRay:
    """X-rays the checkpoint at `path`.

    data: names of datasets and files; by default the held-out text of the run's own plan. Raises UserError
    for a model without experts, and for what cannot be read or written.
    """
    keep_freed_memory()
    where = find_device(device)
    folder, model, state = _routed_checkpoint(path, str(where), exp)
    run_dir, stage = folder.resolve().parent.parent, state['stage']
    run = read_started(run_dir) if stage else None
    data = data if stage else data or ['embedded']  # a file of others, that no run tells a text of
    if data:
        text, held_out = ', '.join(data), given_text(data, model, run, max_bytes)
    else:
        text = f'the held-out text of stage {stage}'
        held_out = own_text(model, run, stage, max_bytes, folder)
    observed = observe(model, held_out, device=where, dtype=amp_dtype(where, amp))
    experts = experts_of(model)
    drifts, reference = _drifts(model, experts, run, stage)
    step = state['progress']['total_step']
    history = _history(run, observed, stage)
    report = Report(model.name, str(path), step, text, observed, history, experts, drifts, reference)
    return write(report, out or (run_dir if run else Path()) / 'routing')


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
