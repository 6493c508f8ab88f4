"""What a stage trains, on what, and what it is measured by: stages.json of a run. Equal fingerprints make runs comparable."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..base.base_model import LMBase
from ..data.rows import PaddedRows, Rows
from ..tokenizers import Tokenizer, as_tokenizer
from ..train.plan import Stage

if TYPE_CHECKING:
    from ..train.stage_data import StageData

STAGES = 'stages.json'


def _digest(*parts) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else json.dumps(part).encode())
        whole.update(b'\0')
    return whole.hexdigest()[:24]


def _rows(rows: Rows) -> list:
    return [type(rows).__name__, rows.length, rows.include_prompts, getattr(rows, 'score_padding', False)]


def _documents(rows: Rows) -> bytes:
    return np.ascontiguousarray(rows.table if isinstance(rows, PaddedRows) else rows.documents).tobytes()


def fingerprints(stage: Stage, data: 'StageData', tokenizer: Tokenizer) -> dict[str, str]:
    """Digests of what makes losses comparable.

    data        the training rows and the order that a seed gives them
    tokenizer   the vocabulary
    evaluation  the held-out tokens that are scored, and the rows they stand in
    text        the held-out documents, whatever the tokenizer
    """
    mixture, held = data.mixture, data.held_out
    training = [
        part for rows in mixture.sources for part in (rows.store.folder.name, _rows(rows), _documents(rows))
    ]
    scored = [(_rows(rows), rows.store.meta['source'], count) for rows, _, _, count in held.rows]
    return {
        'data': _digest(stage.name, mixture.quota.tolist(), *training),
        'tokenizer': tokenizer.fingerprint,
        'evaluation': _digest(
            tokenizer.fingerprint, scored, [(d['domain'], d['hash'], d['tokens']) for d in held.documents]
        ),
        'text': _digest([(d['domain'], d['hash']) for d in held.documents]),
    }


def stage_facts(stage: Stage, data: 'StageData', model: LMBase, *, exp: str) -> dict:
    """What stages.json holds of a stage: model and its size, rows, fingerprints."""
    tokenizer = as_tokenizer(model.tokenizer)
    return {
        'exp': exp,
        'model': model.name,
        'hyperparameters': model.hyperparameters,
        'tokenizer': tokenizer.name,
        'row_length': data.row_length,
        'samples': data.samples,
        'steps': data.steps,
        'total_parameters': model.total_parameters(),
        'trainable_parameters': sum(p.numel() for p in model.parameters() if p.requires_grad),
        'active_parameters': model.active_parameters(),
        'fingerprints': fingerprints(stage, data, tokenizer),
    }


def record_stage(run_dir: Path, name: str, facts: dict, *, index: int) -> None:
    """Enters the facts of stage number `index` into the run's stages.json."""
    file = run_dir / STAGES
    earlier = json.loads(file.read_text()) if index and file.is_file() else {}
    temporary = run_dir / f'.{STAGES}'
    temporary.write_text(json.dumps(earlier | {name: facts}, indent=1, default=str))
    os.replace(temporary, file)
