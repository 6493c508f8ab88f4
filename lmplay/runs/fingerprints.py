"""stages.json of a run: what each stage trained, on what, and what measured it.

Equal fingerprints make the losses of two runs comparable.
"""

import hashlib
import json

import numpy as np

from ..base.base_model import LMBase
from ..data.held_out import HeldOut
from ..data.mixture import Mixture
from ..data.rows import PackedRows, Rows
from ..tokenizers import Tokenizer, as_tokenizer

STAGES = 'stages.json'


def _digest(*parts) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else json.dumps(part).encode())
        whole.update(b'\0')
    return whole.hexdigest()[:24]


def _rows(rows: Rows) -> list:
    kind = 'PackedRows' if isinstance(rows, PackedRows) else 'padded, first tokens scored'
    return [kind, rows.length, rows.include_prompts, rows.score_padding]


def _documents(rows: Rows) -> bytes:
    return np.ascontiguousarray(rows.documents if isinstance(rows, PackedRows) else rows.table).tobytes()


def fingerprints(stage: str, mixture: Mixture, held_out: HeldOut, tokenizer: Tokenizer) -> dict[str, str]:
    """Digests of what makes losses comparable.

    data        the training sequences and the order that a seed gives them
    tokenizer   the vocabulary
    evaluation  the held-out tokens that are scored, and the sequences they are part of
    text        the held-out documents, whatever the tokenizer, unless it does not give them back: what it
                predicts instead is another text
    """
    training = [
        part for rows in mixture.sources for part in (rows.store.folder.name, _rows(rows), _documents(rows))
    ]
    scored = [(_rows(rows), rows.store.meta['source'], count) for rows, _, _, count in held_out.rows]
    documents = [(d['domain'], d['hash'], d['tokens']) for d in held_out.documents]
    lossy = any(rows.store.meta.get('lost') for rows, *_ in held_out.rows)
    lost = [tokenizer.fingerprint] if lossy else []
    order = [mixture.quota.tolist()] if len(mixture.sources) == 1 else ['evenly spread', mixture.weights]
    return {
        'data': _digest(stage, *order, *training),
        'tokenizer': tokenizer.fingerprint,
        'evaluation': _digest(tokenizer.fingerprint, scored, documents),
        'text': _digest([(domain, digest) for domain, digest, _ in documents], *lost),
    }


def model_facts(model: LMBase, *, exp: str) -> dict:
    """What stages.json records about a stage's model."""
    return {
        'exp': exp,
        'model': model.name,
        'hyperparameters': model.hyperparameters,
        'tokenizer': as_tokenizer(model.tokenizer).name,
        'causal': model.causal,
        'total_parameters': model.total_parameters(),
        'trainable_parameters': sum(p.numel() for p in model.parameters() if p.requires_grad),
        'active_parameters': model.active_parameters(),
    }
