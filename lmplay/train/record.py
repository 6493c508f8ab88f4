"""What a checkpoint records of how its run trains, and what of it a resumed run may not change."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..base.runner_list import find_entry
from ..device import Compute
from ..errors import CheckpointError
from ..runs.source import origin, read_files
from .resolve import ResolvedStage, Settings
from .stage_data import StageData

# What losses before and after have to share, and what a person calls it.
FIXED = {
    'tokenizer': 'the tokenizer',
    'data': 'the training data',
    'text': 'the held-out text',
    'evaluation': 'the held-out tokens',
    'precision': 'the precision',
    'document_mask': 'the document mask',
}
# Settings of a stage that decide what its sequences and its held-out text are.
OF_DATA = (
    'dataset',
    'mix',
    'packing',
    'long_documents',
    'document_mask',
    'include_prompts',
    'score_padding',
    'validation_bytes',
    'validation_document_bytes',
)
OPTIONS = ('compile_model', 'default_freeze')  # of the run; a change is recorded
EVENTS = ('settings', 'device', 'options', 'source', 'unrecorded', 'reset')  # what changed within a run


def run_record(
    stages: Sequence[ResolvedStage],
    told: list[dict],
    settings: Settings,
    compute: Compute,
    ranks: int = 1,
) -> dict[str, Any]:
    """What all checkpoints of a run record: precision, device, options, settings, source of the models.

    told: the settings of the stages. ranks: how many processes train.
    """
    precision = 'float32' if compute.dtype is None else str(compute.dtype).removeprefix('torch.')
    if (products := torch.get_float32_matmul_precision()) != 'highest':  # set by an experiment, or around it
        precision += f", float32 products '{products}' (TF32 or less)"
    return {
        'precision': precision,
        'device': compute.device.type,
        'options': {name: getattr(settings, name) for name in OPTIONS} | {'ranks': ranks},
        'stages': told,
        'source': source_digests(stages),
    }


def source_digests(stages: Sequence[ResolvedStage]) -> dict[str, str]:
    """Folder and path -> digest of each source file of the stages' experiments."""
    found = {}
    for place in dict.fromkeys(origin(find_entry(stage.exp)) for stage in stages):
        for path, content in read_files(place).items():
            found[f'{place.name}/{path}'] = hashlib.sha256(content).hexdigest()[:16]
    return found


def data_record(stage: ResolvedStage, data: StageData, prints: dict[str, str]) -> dict[str, Any]:
    """The fingerprints of a stage's data, and in `facts` what a person would compare where they differ."""
    chosen = stage.settings.model_dump(mode='json', include=set(OF_DATA))
    facts = chosen | {'row_length': stage.row_length, 'validation_fraction': stage.validation_fraction}
    for name, rows in zip(stage.settings.datasets, data.mixture.sources):
        meta = rows.store.meta
        facts |= {f"'{name}': {key}": value for key, value in (stage.datasets[name] or {}).items()}
        facts |= {f"'{name}': documents": meta['documents'], f"'{name}': content": meta['source'][:8]}
    facts['documents evaluated'] = len(data.held_out.documents)
    return {'fingerprints': prints | {'document_mask': stage.settings.document_mask}, 'facts': facts}


def differs(before: dict[str, Any], now: dict[str, Any], name: str) -> bool:
    """Whether one of FIXED is another now; what `before` does not record is not compared."""
    return _fixed(before).get(name) not in (None, _fixed(now)[name])


def require_same(run_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises CheckpointError where losses before and after a resume would not be of one run."""
    differing = [name for name in FIXED if differs(before, now, name)]
    if not differing:
        return
    shown = ['precision'] if 'precision' in differing else []
    facts = [f'{name} was {before[name]} and is {now[name]}' for name in shown]
    if differing != shown:
        facts += _differences(_dict(before.get('facts')), now['facts'])
    old, new = _fixed(before), _fixed(now)
    facts = facts or [f'the fingerprint of {FIXED[n]} was {old[n]} and is {new[n]}' for n in differing]
    raise CheckpointError(
        f"The run in '{run_dir}' can't be resumed, because {_and([FIXED[n] for n in differing])} changed: "
        f'{"; ".join(facts)}. Undo that, train in another --run-dir, or give --reset-history to start the '
        "run's history again from its weights."
    )


def changes(before: dict[str, Any], now: dict[str, Any], *, stage: int) -> list[tuple[str, str]]:
    """(event, sentence) for each change that a resumed run may make; stage: the number of its stage."""
    found = [('settings', text) for text in changed_settings(before.get('stages'), now['stages'], stage)]
    if 'fingerprints' not in before:
        told = (
            'This run recorded no fingerprints of data, precision and source so far; they are not compared.'
        )
        found.append(('unrecorded', told))
    if before.get('device') not in (None, now['device']):
        found.append(('device', f'The run continues on {now["device"]}; before, on {before["device"]}.'))
    options = _dict(before.get('options'))
    for difference in _differences(options, {k: v for k, v in now['options'].items() if k in options}):
        found.append(('options', f'The run continues with another option: {difference}.'))
    old, new = _dict(before.get('source')), now['source']
    if old and (files := sorted(f for f in old.keys() | new.keys() if old.get(f) != new.get(f))):
        told = f"The model's source has changed since the last checkpoint: {', '.join(files)}."
        found.append(('source', told))
    return found


def as_trained(before: Any, now: list[dict], *, first: int) -> list[dict]:
    """The settings of the stages now; of those before number `first`, which are over, as recorded."""
    old = {s.get('name'): s for s in map(_dict, before if isinstance(before, list) else [])}
    return [old.get(stage['name'], stage) if i < first else stage for i, stage in enumerate(now)]


def changed_settings(before: Any, now: Sequence[dict], first: int) -> list[str]:
    """A sentence for each stage whose settings differ; stages before number `first` are over."""
    sentences = []
    for index, (old, new) in enumerate(zip(before if isinstance(before, list) else [], now)):
        old = _dict(old)
        # of a stage of another name, or of a key that is newer than the run, nothing is known
        changed = [f'{k} from {old[k]} to {v}' for k, v in new.items() if k in old and old[k] != v]
        if not changed or old.get('name') != new['name']:
            continue
        verb = 'continues' if index >= first else 'is over and was not trained'
        sentences.append(f'Stage "{new["name"]}" {verb} with changed settings: {", ".join(changed)}.')
    return sentences


def _differences(before: dict, now: dict) -> list[str]:
    """'KEY was OLD and is NEW' for each key that differs."""
    keys = [*before, *(k for k in now if k not in before)]
    return [f'{k} was {before.get(k)} and is {now.get(k)}' for k in keys if before.get(k) != now.get(k)]


def _fixed(record: dict[str, Any]) -> dict[str, Any]:
    return _dict(record.get('fingerprints')) | {'precision': record.get('precision')}


def _dict(value: Any) -> dict:
    """A part of a record; an empty one where it is missing or mangled."""
    return value if isinstance(value, dict) else {}


def _and(parts: list[str]) -> str:
    return ' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))
