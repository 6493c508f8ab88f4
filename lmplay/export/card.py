"""The model card of an export: what the model is, what it was trained on and how, and how to load it."""

import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..base.base_model import LMBase
from ..errors import DataError
from ..runs.finished import DAMAGE, ENVIRONMENT, StartedRun, read_run, read_started
from ..tokenizers import as_tokenizer

PLAIN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained('DIR')
tokenizer = AutoTokenizer.from_pretrained('DIR')
"""
GENERIC = 'import lmplay.huggingface  # pip install lmplay; registers the class\n' + PLAIN
OWN = GENERIC.replace("('DIR')\ntok", "('DIR', exp='DIR/source/{file}:{exp}')\ntok")


def write_card(
    folder: Path, model: LMBase, state: dict[str, Any], run: Path | None, *, loading: str, architecture: str
) -> Path:
    """README.md in `folder`.

    state: of the checkpoint. run: the directory of the run that it is of, None for one that has been moved.
    loading: the lines of Python that load the model. architecture: the class that they give.
    """
    started = read_started(run) if run else None
    sections = [
        _head(state['exp']),
        f'# {model.name}\n\nThe experiment `{state["exp"]}`, trained with lmplay {__version__}.',
        f'```python\n{loading}```',
        _table('', 'value', _facts(model, state, run) | {'class in transformers': architecture}),
        *([] if started is None else _training(started)),
        f'## Model parameters\n```json\n{json.dumps(model.hyperparameters, indent=1, default=str)}\n```',
    ]
    file = folder / 'README.md'
    file.write_text('\n\n'.join(sections) + '\n', encoding='utf-8')
    return file


def _head(exp: str) -> str:
    tags = json.dumps(['lmplay', exp])
    return f'---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: {tags}\n---'


def _facts(model: LMBase, state: dict[str, Any], run: Path | None) -> dict[str, Any]:
    """What is known of the checkpoint, and of the run's end where it is finished."""
    progress, tokenizer = state.get('progress') or {}, as_tokenizer(model.tokenizer)
    facts = {
        'parameters': f'{model.total_parameters():,}',
        'longest sequence': f'{model.max_len:,} tokens',
        'tokenizer': f'{tokenizer.name}, {tokenizer.n_vocab:,} entries',
        'trained': f'{progress.get("total_step", 0):,} steps' + _tokens(progress),
        'training loss': progress.get('loss'),
        'validation loss (nats per token)': progress.get('validation_loss'),
        'seed': state.get('seed'),
        'commit of lmplay': _commit(run),
    }
    try:
        finished = read_run(run) if run else None
    except DataError:  # under way, or damaged
        finished = None
    if finished is not None:
        ends = {'validation loss': finished.loss(), 'bits per byte': finished.loss('bits_per_byte')}
        facts |= {f'{name} at the end of the run': value for name, value in ends.items()}
    return {name: value for name, value in facts.items() if value is not None}


def _tokens(progress: dict[str, Any]) -> str:
    return f', {progress["tokens"]:,} tokens' if 'tokens' in progress else ''


def _commit(run: Path | None) -> str | None:
    """None where lmplay was not run from a repository."""
    if run is None:
        return None
    try:
        git = json.loads((run / ENVIRONMENT).read_text(encoding='utf-8'))['git']['lmplay']
        return git['commit'][:12] + (' with changes' if git['dirty'] else '')
    except DAMAGE:
        return None


def _training(run: StartedRun) -> list[str]:
    """A section for each stage: its data and its settings."""
    sections = []
    for name, settings in run.stage_settings.items():
        datasets = settings.get('mix') or [settings['dataset']]
        rows = {f'data: {d}': json.dumps(run.datasets.get(d, 'a named dataset, or a path')) for d in datasets}
        rows |= {k: v for k, v in settings.items() if k not in ('name', 'dataset', 'model') and v is not None}
        sections.append(f'## Stage {name}\n{_table("setting", "value", rows)}')
    return sections


def _table(first: str, second: str, rows: dict[str, Any]) -> str:
    lines = [f'| {_cell(name)} | {_cell(value)} |' for name, value in rows.items()]
    return '\n'.join([f'| {first} | {second} |', '|---|---|', *lines])


def _cell(value: Any) -> str:
    text = f'{value:.4f}' if isinstance(value, float) and abs(value) >= 0.01 else str(value)
    return ' '.join(text.replace('|', '\\|').split())
