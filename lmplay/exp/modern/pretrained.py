"""Imports weights of Llama's family: from the hub or its cache, or a folder in Hugging Face's format."""

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
from lmplay.errors import CheckpointError

SIZES = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'vocab_size')


def import_llama(model, source: str) -> list[str]:
    """Copies the weights that `source` names into the model; returns lines for the log.

    Raises CheckpointError for anything that does not fit, before the weights are changed.
    """
    folder, name = find_folder(source), source.removeprefix('pretrained:')
    config = read_config(folder, 'llama')
    _check_config(model, config, folder)
    weights = read_weights(folder)
    check_tie(config, weights, folder)
    if config.get('tie_word_embeddings'):
        weights.pop('lm_head.weight', None)
    # older files hold what follows from rope_theta
    weights = {k: v for k, v in weights.items() if not k.endswith('.rotary_emb.inv_freq')}
    own = named_weights(model)
    refuse(misfits(weights, own), f"The model in '{folder}'", f'does not fit {model.name}')
    lines = [f'weights of {name}', *adopt_tokenizer(model, folder)]
    for key, tensor in own.items():
        tensor.copy_(weights[key])
    return lines


def named_weights(model) -> dict[str, Tensor]:
    """The model's weights under the names of transformers' LlamaForCausalLM, sharing its memory."""
    named = {'model.embed_tokens.weight': model.tok_embed.weight, 'model.norm.weight': model.ln.weight}
    if model.fc.weight is not model.tok_embed.weight:
        named['lm_head.weight'] = model.fc.weight
    for i, block in enumerate(model.blocks):
        attn, ff = block.attn, block.ff
        q, k, v = attn.qkv.weight.split([heads * attn.head_dim for heads in attn.heads])
        parts = {
            'input_layernorm': block.ln1.weight,
            'self_attn.q_proj': q,
            'self_attn.k_proj': k,
            'self_attn.v_proj': v,
            'self_attn.o_proj': attn.proj.weight,
            'post_attention_layernorm': block.ln2.weight,
            'mlp.gate_proj': ff.gate.weight,
            'mlp.up_proj': ff.up.weight,
            'mlp.down_proj': ff.down.weight,
        }
        named |= {f'model.layers.{i}.{part}.weight': weight for part, weight in parts.items()}
    return {name: weight.detach() for name, weight in named.items()}


def as_llama(model) -> Any:
    """transformers' LlamaForCausalLM with a copy of the weights; of the dropouts it has that of attention."""
    import transformers

    h, attn = model.hyperparameters, model.blocks[0].attn
    config = transformers.LlamaConfig(
        hidden_size=model.tok_embed.embedding_dim,
        intermediate_size=model.blocks[0].ff.gate.out_features,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=attn.heads[0],
        num_key_value_heads=attn.heads[1],
        vocab_size=model.tok_embed.num_embeddings,
        max_position_embeddings=model.max_len,
        rms_norm_eps=model.ln.eps,
        rope_parameters={'rope_type': 'default', 'rope_theta': h['rope_theta']},
        attention_dropout=h['attn_dropout'],
        tie_word_embeddings=model.fc.weight is model.tok_embed.weight,
    )
    llama = transformers.LlamaForCausalLM(config)
    llama.load_state_dict(named_weights(model), strict=not config.tie_word_embeddings)
    return llama


def _check_sizes(config: dict[str, Any], folder: Path) -> None:
    for key in SIZES:
        if type(config.get(key)) is not int or config[key] < 1:
            raise CheckpointError(
                f"'{folder / 'config.json'}': {key} must be a whole number of at least 1; "
                f'given: {config.get(key)!r}.'
            )


def _check_config(model, config: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError where the weights would compute something else in this model."""
    _check_sizes(config, folder)
    heads, attn = config['num_attention_heads'], model.blocks[0].attn
    rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
    theta = rope.get('rope_theta', config.get('rope_theta', 10_000.0))
    given = {
        'num_blocks': (config['num_hidden_layers'], len(model.blocks)),
        'embed_dim': (config['hidden_size'], model.tok_embed.embedding_dim),
        'num_heads': (heads, attn.heads[0]),
        'num_kv_heads': (config.get('num_key_value_heads') or heads, attn.heads[1]),
        'ff_dim': (config['intermediate_size'], model.blocks[0].ff.gate.out_features),
        'vocab_size': (config['vocab_size'], model.tok_embed.num_embeddings),
        'rope_theta': (theta, model.hyperparameters['rope_theta']),
        'norm_eps': (config.get('rms_norm_eps', 1e-6), model.ln.eps),
        'tied_head': (bool(config.get('tie_word_embeddings')), model.fc.weight is model.tok_embed.weight),
        'qk_norm': (False, model.hyperparameters['qk_norm']),
    }
    fixed = {
        'hidden_act': (config.get('hidden_act', 'silu'), 'silu'),
        'attention_bias': (bool(config.get('attention_bias')), False),
        'mlp_bias': (bool(config.get('mlp_bias')), False),
        'head_dim': (
            config.get('head_dim') or config['hidden_size'] // heads,
            config['hidden_size'] // heads,
        ),
        'rope_scaling': (rope.get('rope_type', rope.get('type', 'default')), 'default'),
        'partial_rotary_factor': (rope.get('partial_rotary_factor', 1.0), 1.0),
    }
    refuse(differences(given, fixed), f"The model in '{folder}'", f'does not fit {model.name}')
