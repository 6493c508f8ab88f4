"""The text that an X-ray routes: what a run was evaluated on, or any other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..base.base_model import LMBase
from ..data.held_out import HeldOut
from ..data.rows import PackedRows, Rows, make_rows
from ..data.store import TokenStore
from ..runs.finished import StartedRun
from ..runs.text import held_out_documents, named_documents
from ..tokenizers import Tokenizer, as_tokenizer

MAX_BYTES = 131_072


def own_text(
    model: LMBase, run: StartedRun | None, stage: str, max_bytes: int | None, checkpoint: Path
) -> HeldOut:
    """The held-out text of the stage that wrote the checkpoint. Raises UserError where that is unknown."""
    tokenizer = as_tokenizer(model.tokenizer)
    stores = held_out_documents(run, stage, tokenizer, checkpoint)
    assert run is not None
    settings = run.stage_settings[stage]
    length = settings['row_length'] or model.max_len
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

    def rows(store: TokenStore, documents: np.ndarray) -> Rows:
        return PackedRows(store, documents, length=model.max_len, tokenizer=tokenizer)

    return HeldOut(
        named_documents(names, run, tokenizer),
        make_rows=rows,
        tokenizer=tokenizer,
        length=model.max_len,
        max_bytes=max_bytes or MAX_BYTES,
        document_bytes=None,
    )
