"""The model files of the moe-emergence study: STEM.safetensors, the state dict of transformers' GPT-2 with
the study's layers of experts in it, and STEM.json, which says what it is.

D width of the model, E experts.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmplay.base.base_model import BasicModelRunner, LMBase
from lmplay.base.pretrained import misfits, refuse
from lmplay.errors import CheckpointError, UserError
from lmplay.files import from_json
from lmplay.tokenizers import BPETokenizer, Tokenizer, as_tokenizer, get_tokenizer

FORMAT, FORMAT_VERSION = 'moe-emergence', 1
STEM = 'final-model'  # of what is written; of several in a folder the first of PREFERRED is read
PREFERRED = ('best-model', 'final-model')
ROUTER = re.compile(r'transformer\.h\.(\d+)\.mlp\.router\.gate\.weight')
IGNORED = re.compile(r'.*\.(router\.(training_step|anneal_steps)|attn\.(masked_)?bias)')  # buffers
EXPERT = ('c_fc.weight', 'c_fc.bias', 'c_proj.weight', 'c_proj.bias')  # in the order of `MoELayer.experts`
STACKED = ('w1', 'b1', 'w2', 'b2')
HEAD, EMBEDDING = 'model.lm_head.weight', 'model.transformer.wte.weight'
HEAD_WIDTH = 64  # of GPT-2


def find_stem(path: Path) -> Path | None:
    """The stem that a path means: itself, either of its files, or the one to read in a folder; else None.

    Raises CheckpointError for a folder with several, none of which is PREFERRED, and for one that holds
    nothing but the study's pickles.
    """
    if path.is_dir():
        stems = [
            file.with_suffix('') for file in sorted(path.glob('*.json')) if _is_stem(file.with_suffix(''))
        ]
        for name in PREFERRED:
            if path / name in stems:
                return path / name
        if len(stems) > 1:
            names = ', '.join(stem.name for stem in stems)
            raise CheckpointError(f"'{path}' holds several models of the study: name one of {names}.")
        pickles = sorted(path.glob('ckpt-step-*.pt'))
        if not stems and pickles:
            raise CheckpointError(
                f"'{path}' has {pickles[0].name} and no model in safetensors: a pickle can run code when "
                'read. The study writes model-step-N.safetensors and .json beside it.'
            )
        return stems[0] if stems else None
    stem = path.with_suffix('') if path.suffix in ('.safetensors', '.json') else path
    return stem if _is_stem(stem) else None


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _is_stem(stem: Path) -> bool:
    """Whether both files are there, and the second is of the study's form."""
    try:
        meta = from_json(_file(stem, '.json').read_bytes())
    except (OSError, ValueError):
        return False
    return _file(stem, '.safetensors').is_file() and isinstance(meta, dict) and 'format_version' in meta


def read_study(stem: Path, model_class: type[LMBase], *, target: Any = None) -> tuple[LMBase, dict]:
    """(model, its STEM.json) of a stem.

    target: the model that will take the weights, which tells heads and tokenizer where the file does not;
    without one they are GPT-2's. Raises CheckpointError for files that are damaged or of another form.
    """
    meta = from_json(_file(stem, '.json').read_bytes())
    config = meta.get('config') or {}
    if meta['format_version'] != FORMAT_VERSION or not isinstance(config, dict):
        raise CheckpointError(
            f"'{stem}.json' has format_version {meta['format_version']!r}; this reads {FORMAT_VERSION}."
        )
    try:
        weights = load_file(_file(stem, '.safetensors'))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{stem}.safetensors' can't be read: {error}.") from error
    weights = {name: value for name, value in weights.items() if not IGNORED.fullmatch(name)}
    shape = _shape(stem, weights, config, target)
    tokenizer = _tokenizer(stem, config, shape['vocab_size'], target)
    runner = BasicModelRunner(model_class, overrides=shape | dict(tokenizer=tokenizer, version=stem.name))
    model = runner.build()
    own, problems = model.state_dict(), []
    ours = _from_study(weights, runner.parameters['moe_layers'], shape['num_experts'], problems)
    ours.setdefault(HEAD, ours[EMBEDDING])
    refuse(problems + misfits(ours, own), f"'{stem}'", 'is not a model of the study')
    if not torch.equal(ours[HEAD], ours[EMBEDDING]):
        raise CheckpointError(
            f"'{stem}' has an output head that differs from the token embedding, its weight."
        )
    model.load_state_dict(ours)
    return model, meta


def _shape(stem: Path, weights: Mapping[str, Tensor], config: dict, target: Any) -> dict[str, Any]:
    """Model parameters that follow from the weights and their config."""
    names = ('transformer.wte.weight', 'transformer.wpe.weight')
    refuse(
        [f"'{n}' is missing" for n in names if n not in weights], f"'{stem}'", 'is not a model of the study'
    )
    (vocab_size, width), (max_len, _) = (weights[name].shape for name in names)
    found = (ROUTER.fullmatch(name) for name in weights)
    routed = sorted(int(match[1]) for match in found if match)
    blocks = [int(m[1]) for m in (re.match(r'transformer\.h\.(\d+)\.', name) for name in weights) if m]
    heads = config.get('n_head') or (target.num_heads if target else width // HEAD_WIDTH)
    if not heads or width % heads:
        raise CheckpointError(f"'{stem}.json' does not say how many heads the model has: config.n_head.")
    routers = [len(weights[f'transformer.h.{i}.mlp.router.gate.weight']) for i in routed]
    stated = {'moe_layers': routed, 'n_experts': routers[0] if routers else None}
    problems = [
        f'config.{key} is {config[key]}, and its weights have {value}'
        for key, value in stated.items()
        if config.get(key) is not None and routed and config[key] != value
    ]
    if config.get('moe_layers') and not routed:
        problems.append(f'config.moe_layers is {config["moe_layers"]}, and its weights have no router')
    refuse(problems, f"'{stem}'", 'contradicts itself')
    return dict(
        family='gpt2',
        num_blocks=max(blocks, default=-1) + 1,
        embed_dim=width,
        num_heads=heads,
        max_len=max_len,
        vocab_size=vocab_size,
        moe_layers=routed or 'none',
        num_experts=routers[0] if routers else 8,
        top_k=config.get('topk', 1) if routed else 1,
        noise_std=float(config.get('noise_std', 0.1)),
        lb_coef=float(config.get('lb_coef', 0.01)) if routed else 0.0,
        z_coef=float(config.get('z_coef', 0.001)) if routed else 0.0,
    )


def _tokenizer(stem: Path, config: dict, vocab_size: int, target: Any) -> Tokenizer:
    """The tokenizer beside the files, the one that they name, the target's, or GPT-2's, which the study
    uses."""
    beside = stem.parent / BPETokenizer.FILE
    if beside.is_file():
        return BPETokenizer.load(beside)
    own = as_tokenizer(target.tokenizer) if target else get_tokenizer('gpt2')
    if 'tokenizer' in config:
        return get_tokenizer(config['tokenizer'])
    return own if own.n_vocab <= vocab_size else get_tokenizer('bytes')


def _from_study(
    weights: Mapping[str, Tensor], routed: Any, num_experts: int, problems: list[str]
) -> dict[str, Tensor]:
    """The weights under our names; what hinders that is added to `problems`."""
    weights = dict(weights)
    ours: dict[str, Tensor] = {}
    for i in () if routed == 'none' else routed:
        mlp = f'transformer.h.{i}.mlp.'
        ours[f'model.{mlp}router.weight'] = weights.pop(f'{mlp}router.gate.weight')
        for name, stacked in zip(EXPERT, STACKED):
            keys = [f'{mlp}experts.{e}.{name}' for e in range(num_experts)]
            absent = [f"'{key}' is missing" for key in keys if key not in weights]
            if absent or len({weights[key].shape for key in keys}) > 1:
                problems += absent or [f"'{mlp}experts.*.{name}' have different shapes"]
                continue
            ours[f'model.{mlp}{stacked}'] = torch.stack([weights.pop(key) for key in keys])
    return ours | {f'model.{name}': value for name, value in weights.items()}


def _to_study(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights under the study's names, each in memory of its own."""
    weights = {}
    for name, value in state.items():
        name, last = name.removeprefix('model.').rpartition('.')[::2]
        if name.endswith('.mlp') and last in STACKED:
            expert = EXPERT[STACKED.index(last)]
            weights |= {f'{name}.experts.{e}.{expert}': w.clone() for e, w in enumerate(value)}
        elif name.endswith('.mlp.router'):
            weights[f'{name}.gate.weight'] = value
            # its code keeps the noise schedule here; all of it is over
            weights |= {f'{name}.{key}': torch.tensor(0) for key in ('training_step', 'anneal_steps')}
        else:
            weights[f'{name}.{last}'] = value.clone()  # the head's memory is the embedding's
    return weights


def write_study(model: Any, folder: Path, facts: dict[str, Any]) -> list[Path]:
    """Writes a GPT-2, dense or upcycled, as the study's code loads it; returns the files.

    facts: 'step', 'exp' and, where there is one, 'evaluation_loss'. Raises UserError for another family.
    """
    if model.family.type != 'gpt2':
        raise UserError(
            f'{model.name} is of the family {model.family.type}; the format {FORMAT} holds GPT-2 alone.'
        )
    weights = _to_study(model.state_dict())
    stem, mode = folder / STEM, 'moe' if model.moe_layers else 'dense'
    config = dict(
        preset=facts['exp'],
        mode=mode,
        n_experts=model.num_experts,
        topk=model.top_k,
        moe_layers=list(model.moe_layers),
        lb_coef=model.lb_coef,
        z_coef=model.z_coef,
        n_head=model.num_heads,
        tokenizer=as_tokenizer(model.tokenizer).name,
    )
    loss = facts.get('evaluation_loss')
    meta = dict(
        format_version=FORMAT_VERSION,
        step=facts['step'],
        preset=facts['exp'],
        mode=mode,
        config=config,
        metrics_summary={} if loss is None else {'eval_loss': loss},
    )
    files = [_file(stem, suffix) for suffix in ('.safetensors', '.json')]
    save_file({name: value.contiguous().cpu() for name, value in weights.items()}, files[0])
    files[1].write_text(json.dumps(meta, indent=2) + '\n', encoding='utf-8')
    return files
