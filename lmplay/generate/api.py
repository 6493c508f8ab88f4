"""Text from Python. The command lmp_generator is a thin layer over the generator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.base_model import LMBase
from ..device import find_device
from ..runs.finished import FinishedRun
from ..runs.load import load_model
from ..tokenizers import as_tokenizer
from .generator import generate as generate_tokens


def generate(
    model: LMBase | FinishedRun | str | Path,
    prompt: str | Sequence[str] = '',
    *,
    max_new_tokens: int = 200,
    stop_at_eot: bool = True,
    device: str = 'auto',
    exp: str | None = None,
    **sampling: Any,
) -> str | list[str]:
    """The continuation of a prompt, without the prompt; of several prompts a list, computed as one batch.

    model     a model, a finished run, or the path of a run or checkpoint
    exp       the experiment of a run or checkpoint, needed where that is a file: the path of its versions.py
    sampling  temperature, top_k, top_p, repetition_penalty, seed; see generator.generate

    Raises UserError for a checkpoint that can't be loaded, or a setting out of range.
    """
    if not isinstance(model, LMBase):
        path = model.folder if isinstance(model, FinishedRun) else model
        model = load_model(path, device=str(find_device(device)), exp=exp)[0]
    tokenizer = as_tokenizer(model.tokenizer)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    stop = tokenizer.eot_token if stop_at_eot else None
    tokens = [tokenizer.encode(text) for text in prompts]
    new = generate_tokens(model, tokens, max_new_tokens=max_new_tokens, stop_token=stop, **sampling)
    texts = [tokenizer.decode(ids) for ids in new]
    return texts[0] if isinstance(prompt, str) else texts
