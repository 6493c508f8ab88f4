"""The text that an X-ray routes: what a run was evaluated on, or any other."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..base.base_model import LMBase
from ..data.held_out import HeldOut
from ..data.rows import PackedRows, Rows, make_rows
from ..data.sources import open_source
from ..data.store import TokenStore, open_store
from ..errors import DataError, PlanError, UserError
from ..runs.finished import StartedRun
from ..tokenizers import Tokenizer, as_tokenizer

MAX_BYTES = 131_072
HUB_BYTES = 4_000_000  # of a dataset on the hub, from which the text is then taken


def own_text(
    model: LMBase, run: StartedRun | None, stage: str, max_bytes: int | None, checkpoint: Path
) -> HeldOut:
    """The held-out text of the stage that wrote the checkpoint. Raises UserError where that is unknown."""
    if run is None:
        raise UserError(
            f"The checkpoint '{checkpoint}' belongs to no run whose plan says what text it was evaluated on: "
            'name some with --data.'
        )
    if stage not in run.stage_settings:
        raise PlanError(
            f"The plan of the run in '{run.folder}' has no stage '{stage}', in which '{checkpoint}' was "
            'written: name some text with --data.'
        )
    settings, tokenizer = run.stage_settings[stage], as_tokenizer(model.tokenizer)
    length = settings['row_length'] or model.max_len
    stores = []
    try:
        for name in settings['mix'] or [settings['dataset']]:
            store = open_store(open_source(name, run.datasets.get(name)), tokenizer)
            stores.append((store, store.split(run.validation_fraction)[1]))
    except DataError as error:
        raise DataError(
            f"The text of the run's own plan can't be read: {error} Other text can be named with --data."
        ) from error
    return HeldOut(
        stores,
        make_rows=lambda store, documents: _rows(settings, store, documents, length, tokenizer),
        tokenizer=tokenizer,
        length=length,
        max_bytes=max_bytes or settings['validation_bytes'],
        document_bytes=settings.get('validation_document_bytes'),
        include_prompts=settings['include_prompts'],
    )


def _rows(
    settings: dict, store: TokenStore, documents: np.ndarray, length: int, tokenizer: Tokenizer
) -> Rows:
    """Documents as sequences, as the stage's settings say."""
    shape = {k: settings[k] for k in ('packing', 'include_prompts', 'long_documents', 'score_padding')}
    return make_rows(store, documents, length=length, tokenizer=tokenizer, **shape)


def given_text(names: Sequence[str], model: LMBase, run: StartedRun | None, max_bytes: int | None) -> HeldOut:
    """Text of these datasets and files, whatever the model was trained on."""
    tokenizer = as_tokenizer(model.tokenizer)
    stores = []
    for name in names:
        source = open_source(name, run.datasets.get(name) if run else None)
        spec = source.spec
        if 'domain_column' not in spec and spec['loader'] != 'embedded':
            spec = {'domain': Path(name).stem if 'path' in spec else name} | spec
        if spec['loader'] == 'hub':
            spec = {'max_bytes': HUB_BYTES} | spec
        store = open_store(dataclasses.replace(source, spec=spec), tokenizer)
        stores.append((store, np.arange(len(store.lengths))))

    def rows(store: TokenStore, documents: np.ndarray) -> Rows:
        return PackedRows(store, documents, length=model.max_len, tokenizer=tokenizer)

    return HeldOut(
        stores,
        make_rows=rows,
        tokenizer=tokenizer,
        length=model.max_len,
        max_bytes=max_bytes or MAX_BYTES,
        document_bytes=None,
    )
