"""A model as a Hugging Face folder, which AutoModelForCausalLM and AutoTokenizer load, offline.

A model that one of transformers' own classes can represent is written as that class; any other as one of
lmplay.huggingface. What is written is loaded again and has to give the same logits.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.base_model import LMBase, LMOutput
from ..base.runner_list import find_entry
from ..errors import UserError
from ..tokenizers import as_tokenizer
from ..tokenizers.fast import save_fast
from .card import GENERIC, OWN, PLAIN, write_card

TOLERANCE = 1e-5  # of logits, relative to the largest where that is above 1
TEXTS, POSITIONS = 2, 256  # compared


def write_huggingface(model: LMBase, folder: Path, state: dict[str, Any], run: Path | None) -> list[Path]:
    """Writes weights, configuration, tokenizer and a model card; returns the files.

    state, run: as for `write_card`; the experiment that state['exp'] names must be known to this process.
    Raises UserError where the model that is loaded from the folder computes other logits.
    """
    model.eval()
    with _quiet():
        exported, loading = _plain(model), PLAIN
        if exported is None:
            exported, loading = _generic(model, state), _loading(state['exp'])
        _set_special_tokens(exported, model)
        exported.save_pretrained(folder)
        has_tokenizer = save_fast(as_tokenizer(model.tokenizer), folder, max_len=model.max_len)
        _require_same(model, folder)
    if not has_tokenizer:
        loading = ''.join(line for line in loading.splitlines(True) if 'okenizer.from' not in line)
        loading += 'tokenizer = model.model.tokenizer  # the experiment has one of its own\n'
    write_card(folder, model, state, run, loading=loading, architecture=type(exported).__name__)
    return sorted(file for file in folder.rglob('*') if file.is_file() and not file.name.startswith('.'))


def _plain(model: LMBase) -> Any | None:
    """The model as one of transformers' own classes, where one computes the same; else None.

    A copied and edited experiment may still name a class that no longer computes the same.
    """
    try:
        plain = model.as_transformers()
        return plain if plain is not None and _difference(model, plain.eval()) <= TOLERANCE else None
    except Exception:  # noqa: BLE001  the conversion of an edited model may raise anything
        return None


def _generic(model: LMBase, state: dict[str, Any]) -> Any:
    from ..huggingface import LMPlayForCausalLM

    if 'parameters' not in state:
        raise UserError(
            f'{model.name} comes from a file that names no experiment: train it for a step, or export it '
            'with --format safetensors.'
        )
    parameters = {k: v for k, v in state['parameters'].items() if k != 'tokenizer'}
    return LMPlayForCausalLM.wrap(model, state['exp'], parameters)


def _loading(exp: str) -> str:
    entry = find_entry(exp)
    if entry.module.startswith('lmplay.'):
        return GENERIC
    return OWN.replace('{file}', Path(entry.file).name).replace('{exp}', exp)


def _set_special_tokens(exported: Any, model: LMBase) -> None:
    tokenizer = as_tokenizer(model.tokenizer)
    ids = dict(bos_token_id=tokenizer.eot_token, eos_token_id=tokenizer.eot_token)
    for config in (exported.config, exported.generation_config):
        config.update(ids | dict(pad_token_id=tokenizer.pad_token))


def _require_same(model: LMBase, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    difference = _difference(model, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    if not difference <= TOLERANCE:
        raise UserError(
            f'{model.name} cannot be exported: loaded again, its logits differ by {difference:.1e} (allowed: '
            f'{TOLERANCE:g}). Does it compute with anything besides its parameters and buffers?'
        )


@torch.no_grad()
def _difference(model: LMBase, exported: Any) -> float:
    """The largest difference of a logit, relative to the largest logit where that is above 1."""
    n_vocab = as_tokenizer(model.tokenizer).n_vocab
    shape = (TEXTS, min(POSITIONS, model.max_len))
    x = torch.randint(n_vocab, shape, generator=torch.Generator().manual_seed(0))
    x = x.to(next(model.parameters()).device)
    ours = _logits(model(x))
    theirs = exported.to(x.device).eval()(input_ids=x).logits[..., :n_vocab]
    return ((ours - theirs).abs().max() / ours.abs().max().clamp(min=1)).item()


def _logits(answer: Tensor | LMOutput) -> Tensor:
    logits = answer.logits if isinstance(answer, LMOutput) else answer
    assert logits is not None
    return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
