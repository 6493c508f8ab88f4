"""Weights of GPT-2 in Hugging Face's format, taken from a folder or given to transformers."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from lmplay.base.pretrained import (
    adopt_tokenizer,
    check_tie,
    differences,
    find_folder,
    misfits,
    read_config,
    read_weights,
    refuse,
)

GELUS = {'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh', 'gelu': 'none'}  # theirs -> `gelu`
BUFFERS = re.compile(r'.*\.attn\.(masked_)?bias')  # of older files
PARTS = {
    'ln_1': 'ln1',
    'attn.c_attn': 'attn.qkv',
    'attn.c_proj': 'attn.proj',
    'ln_2': 'ln2',
    'mlp.c_fc': 'ff.0',
    'mlp.c_proj': 'ff.2',
}


def import_gpt2(model, source: str) -> list[str]:
    """Copies the weights that `source` names into the model; returns lines for the log.

    Positions beyond max_len are left out; the bias of an untied head, which GPT-2 lacks, becomes 0. Raises
    CheckpointError for anything that does not fit, before the weights are changed.
    """
    folder, name = find_folder(source), source.removeprefix('pretrained:')
    config = read_config(folder, 'gpt2')
    _check_config(model, config, folder)
    weights = {
        key if key.startswith(('transformer.', 'lm_head.')) else f'transformer.{key}': value
        for key, value in read_weights(folder).items()
        if not BUFFERS.fullmatch(key)
    }
    check_tie(config, weights, folder)
    if _tied(config):
        weights.pop('lm_head.weight', None)
    positions = weights.get('transformer.wpe.weight')
    if positions is not None:
        weights['transformer.wpe.weight'] = positions[: model.max_len]
    own = named_weights(model)
    refuse(misfits(weights, own), f"The model in '{folder}'", f'does not fit {model.name}')
    lines = [f'weights of {name}', *adopt_tokenizer(model, folder)]
    for key, tensor in own.items():
        tensor.copy_(weights[key])
    if model.fc.bias is not None:
        model.fc.bias.detach().zero_()
    return lines


def as_gpt2(model) -> Any | None:
    """transformers' GPT2LMHeadModel with a copy of the weights; None for an untied head: it has no bias."""
    import transformers

    if model.fc.bias is not None:
        return None
    h = model.hyperparameters
    config = transformers.GPT2Config(
        n_layer=len(model.blocks),
        n_embd=model.tok_embed.embedding_dim,
        n_head=h['num_heads'],
        n_positions=model.max_len,
        vocab_size=model.tok_embed.num_embeddings,
        activation_function={'tanh': 'gelu_new', 'none': 'gelu'}[h['gelu']],
        layer_norm_epsilon=model.ln.eps,
        attn_pdrop=h['attn_dropout'],
        resid_pdrop=h['ff_dropout'],
        embd_pdrop=h['embed_dropout'],
        bos_token_id=None,
        eos_token_id=None,
    )
    gpt2 = transformers.GPT2LMHeadModel(config)
    gpt2.load_state_dict(named_weights(model), strict=False)
    return gpt2


def named_weights(model) -> dict[str, Tensor]:
    """The model's weights under the names of transformers' GPT2LMHeadModel, sharing its memory."""
    named = {
        'transformer.wte.weight': model.tok_embed.weight,
        'transformer.wpe.weight': model.pos_embed[0],
        'transformer.ln_f.weight': model.ln.weight,
        'transformer.ln_f.bias': model.ln.bias,
    }
    if model.fc.weight is not model.tok_embed.weight:
        named['lm_head.weight'] = model.fc.weight
    for i, block in enumerate(model.blocks):
        for theirs, ours in PARTS.items():
            part = block.get_submodule(ours)
            # their products are (in, out)
            weight = part.weight.t() if part.weight.ndim == 2 else part.weight
            named[f'transformer.h.{i}.{theirs}.weight'] = weight
            named[f'transformer.h.{i}.{theirs}.bias'] = part.bias
    return {name: weight.detach() for name, weight in named.items()}


def _tied(config: dict[str, Any]) -> bool:
    return bool(config.get('tie_word_embeddings', True))


def _check_config(model, config: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError where the weights would compute something else in this model."""
    h, width = model.hyperparameters, config.get('n_embd', 768)
    activation = config.get('activation_function', 'gelu_new')
    given = {
        'num_blocks': (config.get('n_layer', 12), len(model.blocks)),
        'embed_dim': (width, model.tok_embed.embedding_dim),
        'num_heads': (config.get('n_head', 12), h['num_heads']),
        'norm_eps': (config.get('layer_norm_epsilon', 1e-5), model.ln.eps),
        'gelu': (GELUS.get(activation, activation), h['gelu']),
        'tie_head': (_tied(config), model.fc.bias is None),
    }
    positions = config.get('n_positions', 1024)
    few = [f'it has {positions} positions, this model {model.max_len} (--max-len {positions})']
    fixed = {
        'vocab_size': (config.get('vocab_size', 50257), model.tok_embed.num_embeddings),
        'n_inner': (config.get('n_inner') or 4 * width, 4 * width),
        'scale_attn_weights': (config.get('scale_attn_weights', True), True),
        'scale_attn_by_inverse_layer_idx': (config.get('scale_attn_by_inverse_layer_idx', False), False),
    }
    problems = (few if positions < model.max_len else []) + differences(given, fixed)
    refuse(problems, f"The model in '{folder}'", f'does not fit {model.name}')
