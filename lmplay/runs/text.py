"""The documents that a trained model is looked at with: what its run was evaluated on, or any others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.sources import open_source
from ..data.store import TokenStore, open_store
from ..errors import DataError, PlanError, UserError
from ..tokenizers import Tokenizer
from .finished import StartedRun

HUB_BYTES = 4_000_000  # of a dataset on the hub, from which the text is then taken
Documents = list[tuple[TokenStore, np.ndarray]]  # stores, and indices of documents in each


def held_out_documents(
    run: StartedRun | None, stage: str, tokenizer: Tokenizer, checkpoint: Path
) -> Documents:
    """The held-out documents of the stage that wrote the checkpoint. Raises UserError where those are
    unknown."""
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
    settings, stores = run.stage_settings[stage], []
    try:
        for name in settings['mix'] or [settings['dataset']]:
            store = open_store(open_source(name, run.datasets.get(name)), tokenizer)
            stores.append((store, store.split(run.validation_fraction)[1]))
    except DataError as error:
        raise DataError(
            f"The text of the run's own plan can't be read: {error} Other text can be named with --data."
        ) from error
    return stores


def named_documents(names: Sequence[str], run: StartedRun | None, tokenizer: Tokenizer) -> Documents:
    """All documents of these datasets (of the run's plan, or named ones) and files, each a domain of its own
    unless it names domains."""
    stores = []
    for name in names:
        source = open_source(name, run.datasets.get(name) if run else None)
        spec = source.spec
        if 'domain_column' not in spec and spec['loader'] != 'embedded':
            spec = {'domain': Path(name).stem if 'path' in spec else name} | spec
        if 'validation' not in spec:
            spec = {'hold_out': 'documents'} | spec  # nothing is held out here: a document stays whole
        if spec['loader'] == 'hub':
            spec = {'max_bytes': HUB_BYTES} | spec
        store = open_store(dataclasses.replace(source, spec=spec), tokenizer)
        stores.append((store, np.arange(len(store.lengths))))
    return stores
