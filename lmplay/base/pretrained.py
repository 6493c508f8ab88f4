"""Weights from elsewhere: a folder in Hugging Face's format, or a model of the hub, with its tokenizer."""

import contextlib
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, DataError
from ..files import from_json, user_path
from ..tokenizers import BPETokenizer, Tokenizer, as_tokenizer
from .base_model import LMBase

# English and some code, in every installation of Python: what two tokenizers and two models are compared on
TEXT = str(statistics.__doc__)
PATTERNS = ['*.json', '*.safetensors']
CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
UNSAFE = ('*.bin', '*.pt', '*.pth')  # pickles: reading one can run code
OTHER_TOKENIZERS = ('tokenizer.model', 'vocab.json')


def find_folder(source: str) -> Path:
    """The folder of 'pretrained:NAME', fetched if need be, or of a path. Raises CheckpointError."""
    return (
        fetch(source.removeprefix('pretrained:')) if source.startswith('pretrained:') else user_path(source)
    )


def fetch(name: str) -> Path:
    """The folder of model `name` in the hub's local cache, downloaded if missing. Raises CheckpointError."""
    import huggingface_hub as hub

    with contextlib.suppress(FileNotFoundError, ValueError):
        folder = Path(hub.snapshot_download(name, allow_patterns=PATTERNS, local_files_only=True))
        if any(folder.glob('*.safetensors')):
            return folder
    try:
        # fails fast, where the download would keep trying
        hub.get_session().head(hub.constants.ENDPOINT, timeout=10)
        return Path(hub.snapshot_download(name, allow_patterns=PATTERNS))
    except Exception as error:  # network errors of several libraries
        reason = ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__
        raise CheckpointError(
            f"The weights of '{name}' are not in the local cache of the Hugging Face hub and can't be "
            f'downloaded ({reason}): run `hf download {name}` where there is a network and copy its cache '
            f'here, or give a folder with its config.json and model.safetensors, or a checkpoint '
            f'(lmp_trainer --initial-model PATH, lmp_verify_moe PATH).'
        ) from error


def read_config(folder: Path, family: str | None = None) -> dict[str, Any]:
    """config.json of a folder; family: the `model_type` that it must have.

    Raises CheckpointError where it is missing, damaged, of another family, or of quantized weights.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(f"No model in Hugging Face's format at '{folder}': it has no {CONFIG}.")
    config = _read_object(file)
    if family is not None and config.get('model_type') != family:
        raise CheckpointError(
            f"'{folder}' holds a model of type {config.get('model_type')}; this experiment takes {family}."
        )
    if config.get('quantization_config'):
        raise CheckpointError(
            f"The weights in '{folder}' are quantized ({CONFIG} has a quantization_config); "
            'dequantize them to float32, float16 or bfloat16.'
        )
    return config


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = from_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{file}' is not a JSON object: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{file}' is not a JSON object: it holds a {type(value).__name__}.")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, or of the files that model.safetensors.index.json names.

    Raises CheckpointError where one is missing, damaged or quantized.
    """
    weights: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            weights |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"The model in '{folder}' can't be read: {file.name}: {' '.join(str(error).split())}."
            ) from error
    quantized = [
        f"'{name}' is {value.dtype}"
        for name, value in weights.items()
        if name.endswith('.weight') and value.dtype not in DTYPES
    ]
    refuse(quantized, f"The model in '{folder}'", 'is quantized, or no model')
    return weights


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = _read_object(folder / INDEX).get('weight_map')
        if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
            raise CheckpointError(
                f"The model in '{folder}' can't be read: {INDEX} has no weight_map from tensors to files."
            )
        files = [folder / Path(name).name for name in sorted(set(names.values()))]
        absent = [file.name for file in files if not file.is_file()]
        refuse([f"'{name}' is missing" for name in absent], f"The model in '{folder}'", "can't be read")
        return files
    pickles = sorted(file.name for pattern in UNSAFE for file in folder.glob(pattern))
    found = f', only {pickles[0]}, which can run code when read: convert it to safetensors' if pickles else ''
    raise CheckpointError(f"The model in '{folder}' can't be read: it has no {WEIGHTS}{found}.")


def check_tie(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raises CheckpointError for an output head that config.json ties to an embedding it differs from."""
    embedding = next(
        (w for name, w in weights.items() if name.endswith(('embed_tokens.weight', 'wte.weight'))), None
    )
    head = weights.get('lm_head.weight')
    if config.get('tie_word_embeddings') and head is not None and embedding is not None:
        if head.shape != embedding.shape or not torch.equal(head, embedding):
            raise CheckpointError(
                f"The model in '{folder}' contradicts itself: {CONFIG} ties the output head to the token "
                "embedding, and 'lm_head.weight' differs from it."
            )


def refuse(problems: list[str], subject: str, verdict: str) -> None:
    """Raises CheckpointError that names the first of `problems`, if there are any."""
    if problems:
        shown = ', '.join(problems[:4]) + (f' (and {len(problems) - 4} more)' if len(problems) > 4 else '')
        raise CheckpointError(f'{subject} {verdict}: {shown}.')


def differences(settable: Mapping[str, tuple[Any, Any]], fixed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """What would make weights compute something else in a model: name -> (theirs, the model's) of what an
    option of the model sets, then of what none does."""
    problems = [
        f'{name} is {theirs!r}, this model has {ours!r} (--{name.replace("_", "-")} {str(theirs).lower()})'
        for name, (theirs, ours) in settable.items()
        if not _same(theirs, ours)
    ]
    return problems + [
        f'{name} is {theirs!r}, this model can only have {ours!r}'
        for name, (theirs, ours) in fixed.items()
        if theirs != ours
    ]


def _same(theirs: Any, ours: Any) -> bool:
    """Equal, up to the rounding of a number that was written in float32."""
    if isinstance(theirs, float) and isinstance(ours, float):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return theirs == ours


def misfits(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What of `weights` is missing, unexpected, or of another shape than a model's own."""
    missing = [f"'{name}' is missing" for name in own if name not in weights]
    unexpected = [f"'{name}' is not of this architecture" for name in weights if name not in own]
    reshaped = [
        f"'{name}' has shape {list(value.shape)} instead of {list(own[name].shape)}"
        for name, value in weights.items()
        if name in own and own[name].shape != value.shape
    ]
    return missing + unexpected + reshaped


def adopt_tokenizer(model: LMBase, folder: Path) -> list[str]:
    """Gives the model the tokenizer beside the weights, unless both encode alike; returns lines for the log.

    Weights are meaningless with another tokenizer than they were trained with. Raises CheckpointError where
    it is damaged, of another format, or has more entries than the model's embedding.
    """
    file = folder / BPETokenizer.FILE
    own = as_tokenizer(model.tokenizer)
    if not file.is_file():
        other = [name for name in OTHER_TOKENIZERS if (folder / name).is_file()]
        if other and own.name != 'gpt2':
            raise CheckpointError(
                f"The tokenizer beside the weights can't be used: '{folder}' has {other[0]} and no "
                f'{file.name}; save it with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).'
            )
        return [f'no {file.name} beside the weights: tokens are those of {own.name}']
    try:
        theirs = BPETokenizer.load(file)
    except DataError as error:
        raise CheckpointError(f"The tokenizer beside the weights can't be used: {error}") from error
    alike = theirs.n_vocab == own.n_vocab and theirs.eot_token == own.eot_token
    if alike and list(theirs.encode(TEXT)) == list(own.encode(TEXT)):
        return []
    return take_tokenizer(model, theirs, f'{file.name} beside the weights')


def take_tokenizer(model: LMBase, tokenizer: Tokenizer, origin: str) -> list[str]:
    """Gives the model another tokenizer, unless it has that one; returns lines for the log.

    Raises CheckpointError where it has more entries than the model's output head.
    """
    if tokenizer.fingerprint == as_tokenizer(model.tokenizer).fingerprint:
        return []
    weight = getattr(getattr(model, 'fc', None), 'weight', None)
    if weight is not None and tokenizer.n_vocab > len(weight):
        raise CheckpointError(
            f"The tokenizer of {origin} has {tokenizer.n_vocab} entries, more than the model's {len(weight)}."
        )
    model.tokenizer = tokenizer
    return [f'tokens are those of {origin} ({tokenizer.n_vocab:,} entries)']
