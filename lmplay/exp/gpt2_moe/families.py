"""What is particular to a family of models in transformers; the rest of this experiment is the same for all.

B sequences, T positions, S positions attended to, H heads, K width of a head, D width of the model, F inner
width.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmplay.errors import ExperimentError, unknown
from lmplay.modules.attention import default_kv_heads
from lmplay.modules.block import default_gated_dim
from lmplay.modules.experts import SWIGLU

ATTENTION = 'lmplay_causal'


@dataclass(frozen=True)
class Family:
    """What a family calls its parts, and how they compute.

    type            transformers' model_type
    blocks          the trunk's attribute that holds them
    embed_dropout   the trunk's attribute of the dropout after the embedding, None where there is none
    positions       the weight of the position embedding, None where there is none
    projections     the attributes of the MLP's linear layers, from input to output
    gelu            the MLP's activation as `experts_mlp` names it: 'tanh', 'none' (exact GELU), or SWIGLU
    dropout_in_mlp  whether the dropout after the MLP is part of it
    centers         whether upcycling takes what all inputs of a block share out of its router
    options         those of `config` that it takes, with their values where none is given; None for what
                    follows from the shape
    settings        configuration that weights from elsewhere must share -> our parameter for it, '' where we
                    have none
    """

    type: str
    blocks: str
    embed_dropout: str | None
    positions: str | None
    projections: tuple[str, ...]
    gelu: str
    dropout_in_mlp: bool
    settings: dict[str, str]
    centers: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def config(
        self,
        *,
        num_blocks: int,
        embed_dim: int,
        num_heads: int,
        max_len: int,
        vocab_size: int,
        attn_dropout: float,
        ff_dropout: float,
        **options: Any,
    ):
        """transformers' configuration of that shape, in all else that of the family's published models.

        options: values for the family's `options`. Raises ExperimentError for others.
        """
        import transformers

        common: dict[str, Any] = dict(
            vocab_size=vocab_size,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation=causal_attention(),
        )
        if self.type == 'gpt2':
            return transformers.GPT2Config(
                n_layer=num_blocks,
                n_embd=embed_dim,
                n_head=num_heads,
                n_positions=max_len,
                attn_pdrop=attn_dropout,
                resid_pdrop=ff_dropout,
                **common,
            )
        common |= dict(  # as the families after GPT-2 call them
            num_hidden_layers=num_blocks,
            hidden_size=embed_dim,
            num_attention_heads=num_heads,
            max_position_embeddings=max_len,
            attention_dropout=attn_dropout,
        )
        if self.type == 'gpt_neox':
            return transformers.GPTNeoXConfig(
                intermediate_size=4 * embed_dim, hidden_dropout=ff_dropout, **common
            )
        shape = self.complete(options, embed_dim=embed_dim, num_heads=num_heads)
        return transformers.LlamaConfig(
            intermediate_size=shape['ff_dim'],
            num_key_value_heads=shape['num_kv_heads'],
            rms_norm_eps=shape['norm_eps'],
            rope_parameters={'rope_type': 'default', 'rope_theta': shape['rope_theta']},
            tie_word_embeddings=shape['tied_head'],
            **common,
        )

    def check_dropout(self, ff_dropout: float, embed_dropout: float) -> None:
        """Raises ExperimentError for dropout where the family has none."""
        if self.embed_dropout is None and (ff_dropout or embed_dropout):
            raise ExperimentError(
                f'The family {self.type} has dropout in its attention alone: ff_dropout and embed_dropout '
                f'must be 0; given: {ff_dropout} and {embed_dropout}.'
            )

    @property
    def model_class(self) -> Any:
        """transformers' causal language model."""
        import transformers

        return {
            'gpt2': transformers.GPT2LMHeadModel,
            'gpt_neox': transformers.GPTNeoXForCausalLM,
            'llama': transformers.LlamaForCausalLM,
        }[self.type]

    def complete(self, given: dict[str, Any], *, embed_dim: int, num_heads: int) -> dict[str, Any]:
        """The family's options, with what is given of them. Raises ExperimentError for those it has not."""
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if name not in self.options:
                raise ExperimentError(f'The family {self.type} has no {name}; given: {value}.')
        options = self.options | given
        if 'ff_dim' in options and options['ff_dim'] is None:
            options['ff_dim'] = default_gated_dim(embed_dim)
        if 'num_kv_heads' in options and options['num_kv_heads'] is None:
            options['num_kv_heads'] = default_kv_heads(num_heads)
        kv_heads = options.get('num_kv_heads', num_heads)
        if kv_heads < 1 or num_heads % kv_heads or options.get('ff_dim', 1) < 1:
            raise ExperimentError(
                'num_heads must be a multiple of num_kv_heads, and ff_dim at least 1; given: num_heads '
                f'{num_heads}, num_kv_heads {kv_heads}, ff_dim {options.get("ff_dim")}.'
            )
        return options

    def setting(self, config: Any, key: str) -> Any:
        """A setting of transformers' configuration; those of rotary positions stand inside one of them."""
        rotary = key in ('rope_theta', 'rope_type')
        return config.rope_parameters.get(key) if rotary else getattr(config, key)

    def mlp_parameters(self, embed_dim: int, ff_dim: int) -> int:
        """Parameters of a dense MLP; a gated one has no biases."""
        weights = len(self.projections) * embed_dim * ff_dim
        return weights if self.gelu == SWIGLU else weights + ff_dim + embed_dim

    def mlp_weights(self, mlp: nn.Module) -> tuple[Tensor, ...]:
        """A block's MLP in the order of `MoELayer.experts`; weights are (in, out)."""
        weights = []
        for projection in (getattr(mlp, name) for name in self.projections):
            # GPT-2's Conv1D is (in, out)
            weight = projection.weight
            weights.append(weight.t() if isinstance(projection, nn.Linear) else weight)
            if projection.bias is not None:
                weights.append(projection.bias)
        return tuple(weights)


FAMILIES = {
    family.type: family
    for family in (
        Family(
            'gpt2',
            blocks='h',
            embed_dropout='drop',
            positions='transformer.wpe.weight',
            projections=('c_fc', 'c_proj'),
            gelu='tanh',
            dropout_in_mlp=True,
            settings={
                'n_layer': 'num_blocks',
                'n_embd': 'embed_dim',
                'n_head': 'num_heads',
                'vocab_size': 'vocab_size',
                'activation_function': '',
                'layer_norm_epsilon': '',
                'scale_attn_weights': '',
                'scale_attn_by_inverse_layer_idx': '',
                'tie_word_embeddings': '',
            },
        ),
        Family(
            'gpt_neox',
            blocks='layers',
            embed_dropout='emb_dropout',
            positions=None,
            projections=('dense_h_to_4h', 'dense_4h_to_h'),
            gelu='none',
            dropout_in_mlp=False,
            settings={
                'num_hidden_layers': 'num_blocks',
                'hidden_size': 'embed_dim',
                'num_attention_heads': 'num_heads',
                'vocab_size': 'vocab_size',
                'hidden_act': '',
                'layer_norm_eps': '',
                'use_parallel_residual': '',
                'rope_parameters': '',
                'tie_word_embeddings': '',
            },
        ),
        Family(
            'llama',
            blocks='layers',
            embed_dropout=None,
            positions=None,
            projections=('gate_proj', 'up_proj', 'down_proj'),
            gelu=SWIGLU,
            dropout_in_mlp=False,
            settings={
                'num_hidden_layers': 'num_blocks',
                'hidden_size': 'embed_dim',
                'num_attention_heads': 'num_heads',
                'num_key_value_heads': 'num_kv_heads',
                'intermediate_size': 'ff_dim',
                'vocab_size': 'vocab_size',
                'rope_theta': 'rope_theta',
                'rope_type': '',
                'rms_norm_eps': 'norm_eps',
                'tie_word_embeddings': 'tied_head',
                'head_dim': '',
                'hidden_act': '',
                'attention_bias': '',
                'mlp_bias': '',
            },
            centers=True,
            options=dict(num_kv_heads=None, ff_dim=None, rope_theta=10_000.0, norm_eps=1e-5, tied_head=True),
        ),
    )
}


def find_family(name: str) -> Family:
    if name not in FAMILIES:
        raise ExperimentError(unknown('model family', name, FAMILIES))
    return FAMILIES[name]


def causal_attention() -> str:
    """The name under which our attention is registered with transformers.

    transformers' own builds masks that wait for the device and, once compiled, rule out the flash kernels.
    Here padding stands at the end of sequences, where causal attention never looks; see `honour_masks`.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)
    return ATTENTION


def _attend(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask=None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_,
) -> tuple[Tensor, None]:
    """query (B, H, T, K), key and value (B, H, S, K), S - T of them before the first query: (B, T, H, K).

    Keys and values may have fewer heads, each of them for several of the queries.
    """
    T, S = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < T < S:
        attention_mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)
    y = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=attention_mask is None and T > 1,
        enable_gqa=key.shape[1] < query.shape[1],
    )
    return y.transpose(1, 2), None


def honour_masks(trunk: nn.Module) -> None:
    """Makes the trunk mind the `attention_mask` (B, S) that is handed to it, which with our attention
    transformers would drop: it reaches the layers with causality in it, (B, 1, T, S)."""
    trunk.register_forward_pre_hook(_with_causality, with_kwargs=True)


def _with_causality(trunk: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    mask = kwargs.get('attention_mask')
    if len(args) > 1:
        raise ExperimentError('The transformer takes its inputs by name: input_ids, attention_mask, ...')
    if mask is None or mask.ndim != 2 or trunk.config._attn_implementation != ATTENTION:
        return None
    x = next(x for x in (*args, kwargs.get('input_ids'), kwargs.get('inputs_embeds')) if x is not None)
    T, S = x.shape[1], mask.shape[1]
    cache = kwargs.get('past_key_values')
    if S != T + (cache.get_seq_length() if cache is not None else 0):
        raise ExperimentError(
            f'An attention_mask must cover cached and new positions; given: {list(mask.shape)} for {T} new.'
        )
    seen_TS = torch.ones(T, S, dtype=torch.bool, device=mask.device).tril(S - T)
    # padding attends to itself, not to nothing
    own_TS = torch.eye(S, dtype=torch.bool, device=mask.device)[S - T :]
    return args, kwargs | {'attention_mask': (seen_TS & mask.bool()[:, None] | own_TS)[:, None]}
