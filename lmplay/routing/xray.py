"""Opens a checkpoint and the text for it, and puts together all that an X-ray shows."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from ..base.base_model import LMBase
from ..data.held_out import HeldOut
from ..data.rows import PackedRows
from ..data.sources import open_source
from ..data.store import open_store
from ..device import amp_dtype, find_device, keep_freed_memory
from ..errors import DataError, ExperimentError, PlanError, UserError
from ..runs.checkpoint import find_checkpoint, load_model
from ..tokenizers import as_tokenizer
from ..train.console import View
from ..train.plan import load_plan
from ..train.stage_data import open_data
from ..train.stages import Run, Settings
from .collect import observe
from .drift import drift, start_of
from .history import lineage, read_history
from .page import Report, XRay, write

MAX_BYTES = 131_072
HUB_BYTES = 4_000_000  # of a dataset on the hub, from which the text is then taken


def xray(
    path: Path,
    *,
    data: list[str] = (),
    max_bytes: int | None = None,
    out: Path | None = None,
    exp: str | None = None,
    device: str = 'auto',
    amp: bool = False,
) -> XRay:
    """X-rays the checkpoint at `path`. data: names of datasets and files; empty for the
    held-out text of the run's own plan. Raises UserError for a model without experts, and what can't be read or written."""
    keep_freed_memory()
    where = find_device(device)
    for prefer in ('best', 'last'):  # the best of a run may be of a stage before it got its experts
        folder = find_checkpoint(path, prefer=prefer)
        model, state = load_model(folder, device=str(where), exp=exp)
        if experts := model.experts() if hasattr(model, 'routing') else []:
            break
    else:
        raise ExperimentError(
            f"'{path}' holds {model.name}, a model without experts: there is no routing to show."
        )
    run_dir = folder.resolve().parent.parent
    run = open_run(run_dir, where.type)
    held_out = (
        given_text(data, model, run, max_bytes)
        if data
        else own_text(model, run, state['stage'], max_bytes, folder)
    )
    observed = observe(model, held_out, device=where, dtype=amp_dtype(where, amp))
    first = observed.layers[0]
    history = (
        read_history(run_dir, len(observed.layers), first.num_experts, lineage(run, state['stage']))
        if run
        else None
    )
    drifts, reference = [], ''
    if any(layer.weights for layer in experts):
        start, reference = start_of(model, run, state['stage'])
        drifts = [
            drift(now, start[i] if start else None) if now.weights else None for i, now in enumerate(experts)
        ]
    text = ', '.join(data) if data else f'the held-out text of stage {state["stage"]}'
    report = Report(
        model.name,
        str(path),
        state['progress']['total_step'],
        text,
        observed,
        history,
        experts,
        drifts,
        reference,
    )
    return write(report, out or (run_dir if run else Path()) / 'routing')


def open_run(folder: Path, device: str) -> Run | None:
    """The run that a checkpoint lies in, as its trainer sees it; None where the checkpoint stands alone."""
    if not (folder / 'plan.json').is_file() or not (folder / 'settings.json').is_file():
        return None
    try:
        saved = json.loads((folder / 'settings.json').read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"The run's settings '{folder / 'settings.json'}' can't be read: {error}.") from error
    known = {f.name for f in dataclasses.fields(Settings)}
    given = {k: v for k, v in saved.items() if k in known} | {
        'device': device,
        'amp': False,
        'run_dir': str(folder),
    }
    settings = Settings(**given)
    return Run(load_plan(str(folder / 'plan.json')), settings, view=View(quiet=True))


def own_text(model: LMBase, run: Run | None, stage_name: str, max_bytes: int | None, folder: Path) -> HeldOut:
    """The held-out text of the stage that the checkpoint was written in."""
    if run is None:
        raise UserError(
            f"The checkpoint '{folder}' lies in no run whose plan says what text it was held against: name some with "
            f'--data.'
        )
    stages = list(run.plan.stages)
    if stage_name not in stages:
        raise PlanError(
            f"The plan of the run in '{run.dir}' has no stage '{stage_name}', in which '{folder}' was written: name "
            f'some text with --data.'
        )
    stage = run.stage(stages.index(stage_name))
    if max_bytes:
        stage = stage.model_copy(update={'validation_bytes': max_bytes})
    try:
        return open_data(
            stage, run.plan, as_tokenizer(model.tokenizer), max_len=model.max_len, seed=run.seed
        ).held_out
    except DataError as error:
        raise DataError(
            f"The text of the run's own plan can't be read: {error} Other text can be named with --data."
        ) from error


def given_text(names: list[str], model: LMBase, run: Run | None, max_bytes: int | None) -> HeldOut:
    """Text of these datasets and files, whatever the model was trained on."""
    tokenizer = as_tokenizer(model.tokenizer)
    stores = []
    for name in names:
        source = open_source(name, run.plan.source_spec(name) if run else None)
        spec = source.spec
        if 'domain_column' not in spec and spec['loader'] != 'embedded':
            spec = {'domain': Path(name).stem if 'path' in spec else name} | spec
        if spec['loader'] == 'hub':
            spec = {'max_bytes': HUB_BYTES} | spec
        store = open_store(dataclasses.replace(source, spec=spec), tokenizer)
        stores.append((store, np.arange(len(store.lengths))))

    def rows(store, documents):
        return PackedRows(store, documents, length=model.max_len, tokenizer=tokenizer)

    return HeldOut(stores, make_rows=rows, length=model.max_len, max_bytes=max_bytes or MAX_BYTES)
