"""Imports weights: from the hub or its cache, a folder in Hugging Face's format, or a model trained here.

Every source first becomes transformers' dense model. Its MLPs are then copied into the experts, and the
warm-start parity check measures what that changed.

D width of the model, F inner width of an expert, T positions.
"""

import contextlib
import math
from pathlib import Path

import torch
from torch import Tensor

from lmplay.base.base_model import LMBase
from lmplay.base.pretrained import (
    TEXT,
    adopt_tokenizer,
    check_tie,
    find_folder,
    misfits,
    read_config,
    read_weights,
    refuse,
    take_tokenizer,
)
from lmplay.errors import CheckpointError
from lmplay.tokenizers import as_tokenizer

from .families import Family, causal_attention
from .study import find_stem, read_study

TEXT_TOKENS = 256  # of the parity check
SEED = 0  # of the perturbation


def import_pretrained(model, source) -> list[str]:
    """See `UpcycledLM.import_pretrained`."""
    stem = None if isinstance(source, LMBase) else find_stem(Path(source))
    if stem is not None:
        source, _ = read_study(stem, type(model), target=model)
    if isinstance(source, LMBase):
        dense, lines = dense_of(model, source)
        lines += take_tokenizer(model, as_tokenizer(source.tokenizer), source.name)
        if dense is None:
            return lines
    else:
        name = str(source).removeprefix('pretrained:')
        folder = find_folder(str(source))
        dense = load_folder(folder, model.family)
        check_settings(model, dense.config, name)
        lines = [f'weights of {name}', *adopt_tokenizer(model, folder)]
    upcycle(model, dense)
    return lines + parity_lines(model, dense)


def load_folder(folder: Path, family: Family):
    """transformers' dense model of a folder. Raises CheckpointError for any missing or additional weight."""
    config = read_config(folder, family.type)
    check_tie(config, read_weights(folder), folder)
    try:
        with _quiet():
            dense, info = family.model_class.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation=causal_attention(),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise CheckpointError(
            f"The model in '{folder}' can't be read: {' '.join(str(error).split())[:300].rstrip('.')}."
        ) from error
    problems = (
        [f"'{key}' is missing" for key in sorted(info['missing_keys'])]
        + [f"'{key}' is not of this architecture" for key in sorted(info['unexpected_keys'])]
        + [f"'{key[0]}' has another shape than in config.json" for key in sorted(info['mismatched_keys'])]
    )
    refuse(problems, f"The model in '{folder}'", 'is not a complete dense model')
    return dense


@contextlib.contextmanager
def _quiet():
    """Silences the library's own report; what matters in it is raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_settings(model, config, name: str) -> None:
    """Raises CheckpointError where weights made for `config` would compute something else in this model."""
    own, problems = model.model.config, []
    for key, parameter in model.family.settings.items():
        given, wanted = (model.family.setting(c, key) for c in (config, own))
        near = (
            isinstance(given, float)
            and isinstance(wanted, float)
            and math.isclose(given, wanted, rel_tol=1e-6)
        )
        if given != wanted and not near:  # a number may have been written in float32
            problems.append(
                f'{key} is {given!r}, this model has {wanted!r}'
                + (f' (--{parameter.replace("_", "-")} {given})' if parameter else '')
            )
    refuse(problems, f"'{name}'", f'does not fit {model.name}')


def dense_of(model, source: LMBase):
    """(transformers' dense model, lines for the log); None where an upcycled source is copied.

    Raises CheckpointError for any other source that is not dense.
    """
    weights, own = source.state_dict(), model.state_dict()
    h = source.hyperparameters
    if h.get('num_heads') != model.num_heads:
        raise CheckpointError(
            f'{source.name} has {h.get("num_heads")} heads; {model.name} has {model.num_heads} (--num-heads).'
        )
    lines = [f'weights of {source.name}']
    if model.moe_layers and {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in own.items()}:
        model.load_state_dict(weights)
        if source.top_k != model.top_k:
            lines.append(f'trained with {source.top_k} experts per token; this model takes {model.top_k}')
        return None, lines
    if any('.mlp.router.' in name for name in weights):
        raise CheckpointError(
            f'{source.name} is upcycled already, with other experts than {model.name}: '
            f'only a dense model can be upcycled.'
        )
    if 'tok_embed.weight' in weights and model.family.type == 'gpt2':
        weights, more = _from_gpt2ish(weights, h)
        lines += more
    else:
        weights = {name.removeprefix('model.'): value for name, value in weights.items()}
    config = model.family.config(
        **{k: getattr(model, k) for k in ('num_blocks', 'embed_dim', 'num_heads')},
        **model.options,
        attn_dropout=0.0,
        ff_dropout=0.0,
        max_len=source.max_len,
        vocab_size=model.fc.weight.shape[0],
    )
    with torch.device('cpu'):
        dense = model.family.model_class(config)
    _load(dense, weights, source.name, model.name)
    return dense, lines


def _load(module, weights: dict[str, Tensor], source: str, target: str) -> None:
    """Loads weights, all or none. Raises CheckpointError that names what does not fit."""
    refuse(misfits(weights, module.state_dict()), source, f'does not fit {target}')
    module.load_state_dict(weights)


def _from_gpt2ish(weights: dict[str, Tensor], hyperparameters: dict) -> tuple[dict[str, Tensor], list[str]]:
    """(a gpt2ish's weights under the names of transformers' GPT-2, lines on what is not carried over)."""
    names = {
        'ln1': 'ln_1',
        'attn.qkv': 'attn.c_attn',
        'attn.proj': 'attn.c_proj',
        'ln2': 'ln_2',
        'ff.0': 'mlp.c_fc',
        'ff.2': 'mlp.c_proj',
    }
    if lacking := {'tok_embed.weight', 'pos_embed', 'ln.weight', 'ln.bias'} - weights.keys():
        raise CheckpointError(f"This is neither a gpt2_dense nor a gpt2ish: it has no '{min(lacking)}'.")
    converted = {
        'transformer.wte.weight': weights['tok_embed.weight'],
        'lm_head.weight': weights['tok_embed.weight'],
        'transformer.wpe.weight': weights['pos_embed'][0],
        'transformer.ln_f.weight': weights['ln.weight'],
        'transformer.ln_f.bias': weights['ln.bias'],
    }
    for name, value in weights.items():
        if name.startswith('blocks.'):
            _, block, rest = name.split('.', 2)
            part, kind = rest.rsplit('.', 1)
            if part not in names:
                raise CheckpointError(f"'{name}' has no counterpart in GPT-2.")
            value = value.t() if value.ndim == 2 else value  # Conv1D is (in, out)
            converted[f'transformer.h.{block}.{names[part]}.{kind}'] = value
    lines = []
    if not hyperparameters.get('tie_head', False):
        lines.append(
            "not carried over: the output head and its bias; here the head is the token embedding's weight"
        )
    if hyperparameters.get('gelu', 'none') != 'tanh':
        lines.append('not carried over: the exact GELU; GPT-2 computes its tanh approximation')
    if hyperparameters.get('norm_eps', 1e-5) != 1e-5:
        lines.append(f"not carried over: norm_eps {hyperparameters['norm_eps']}; GPT-2's is 1e-05")
    return converted, lines


def upcycle(model, dense) -> None:
    """Copies a dense model's weights; in routed layers each expert gets the MLP, perturbed.

    Positions beyond the model's max_len are dropped. Raises CheckpointError where shapes differ, before
    changing anything.
    """
    family, trunk = model.family, dense.base_model
    blocks = getattr(trunk, family.blocks)
    mlps = tuple(f'{dense.base_model_prefix}.{family.blocks}.{i}.mlp.' for i in model.moe_layers)
    weights = {name: value for name, value in dense.state_dict().items() if not name.startswith(mlps)}
    if family.positions:
        weights[family.positions] = weights[family.positions][: model.max_len]
    experts = {i: family.mlp_weights(blocks[i].mlp) for i in model.moe_layers if i < len(blocks)}
    own = {name: value for name, value in model.model.state_dict().items() if not name.startswith(mlps)}
    problems = misfits(weights, own)
    for i, given in experts.items():
        for theirs, stacked in zip(given, model.moe_layers[i].experts):
            if theirs.shape != stacked.shape[1:]:
                shapes = f'{list(theirs.shape)} instead of {list(stacked.shape[1:])}'
                problems.append(f'the MLP of layer {i} has shape {shapes}')
    refuse(problems, 'The dense model', f'does not fit {model.name}')
    model.model.load_state_dict(weights, strict=False)
    generator = torch.Generator().manual_seed(SEED)
    for i, layer in model.moe_layers.items():
        layer.copy_mlp(experts[i], perturbation=model.perturbation, generator=generator)
    if family.centers:
        _center_routers(model, dense)


@torch.no_grad()
def _center_routers(model, dense) -> None:
    """Takes the mean of a block's inputs, over a text, out of its router's weights.

    The inputs of SmolLM2's MLPs share a direction, 0.65 to 0.90 of their length, by which a fresh router
    would choose before any other: in the last block half of the experts would get no token.
    """
    tokens = as_tokenizer(model.tokenizer).encode(TEXT)[TEXT_TOKENS : 2 * TEXT_TOKENS]  # not those of parity
    for i, (x, _) in _dense_mlps(model, dense, tokens).items():
        router = model.moe_layers[i].router.weight
        mean_D = x.flatten(0, 1).mean(0).to(router)
        router -= torch.outer(router @ mean_D, mean_D) / mean_D.square().sum()


@torch.no_grad()
def parity(model, dense, *, text: str = TEXT) -> tuple[dict[int, float], float]:
    """({block: error of its layer}, error of the logits) of the upcycled model against the dense one.

    An error is mean|moe - dense| / mean|dense|, both in evaluation mode. A layer gets the inputs of the dense
    model's MLP.
    """
    device = next(model.parameters()).device
    tokens = as_tokenizer(model.tokenizer).encode(text)[: min(TEXT_TOKENS, model.max_len)]
    x = torch.tensor([tokens], device=device)
    training = model.training
    model.eval()
    dense.to(device)
    try:
        seen = _dense_mlps(model, dense, tokens)
        expected = dense(input_ids=x, use_cache=False).logits
        logits = model(x).logits
        layers = {i: _error(layer(seen[i][0]), seen[i][1]) for i, layer in model.moe_layers.items()}
        for layer in model.moe_layers.values():
            layer.take_routing()
    finally:
        model.train(training)
    return layers, _error(logits, expected[..., : logits.shape[-1]])


@torch.no_grad()
def _dense_mlps(model, dense, tokens: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """{block: (input, output) of the dense model's MLP} of the blocks that the mixture routes."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    blocks = getattr(dense.base_model, model.family.blocks)
    hooks = [
        blocks[i].mlp.register_forward_hook(lambda _, args, out, i=i: seen.update({i: (args[0], out)}))
        for i in model.moe_layers
    ]
    x = torch.tensor([tokens[: model.max_len]], device=next(dense.parameters()).device)
    try:
        dense.eval().base_model(input_ids=x, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _error(given: Tensor, expected: Tensor) -> float:
    return ((given - expected).abs().mean() / expected.abs().mean()).item()


def parity_lines(model, dense) -> list[str]:
    layers, logits = parity(model, dense)
    lines = [f'upcycled layer {i}: relative error {error:.4f}' for i, error in layers.items()]
    return [*lines, f'relative error of the logits against the dense model {logits:.4f}']
