"""What is particular to a family of models in transformers; the rest of this experiment is the same for all.

B sequences, T positions, S positions attended to, H heads, K width of a head, D width of the model, F inner
width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmplay.errors import ExperimentError, unknown

ATTENTION = 'lmplay_causal'


@dataclass(frozen=True)
class Family:
    """What a family calls its parts, and how they compute.

    type            transformers' model_type
    blocks          the trunk's attribute that holds them
    embed_dropout   the trunk's attribute of the dropout after the embedding
    positions       the weight of the position embedding, None where there is none
    projections     the attributes of the MLP's two linear layers
    gelu            the MLP's activation as torch.nn.GELU names it: 'tanh', or 'none' (exact)
    dropout_in_mlp  whether the dropout after the MLP is part of it
    settings        configuration that weights from elsewhere must share -> our parameter for it, '' where we
                    have none
    """

    type: str
    blocks: str
    embed_dropout: str
    positions: str | None
    projections: tuple[str, str]
    gelu: str
    dropout_in_mlp: bool
    settings: dict[str, str]

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
    ):
        """transformers' configuration of that shape, in all else that of the family's published models."""
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
        return transformers.GPTNeoXConfig(
            num_hidden_layers=num_blocks,
            hidden_size=embed_dim,
            intermediate_size=4 * embed_dim,
            num_attention_heads=num_heads,
            max_position_embeddings=max_len,
            attention_dropout=attn_dropout,
            hidden_dropout=ff_dropout,
            **common,
        )

    @property
    def model_class(self) -> Any:
        """transformers' causal language model."""
        import transformers

        return transformers.GPT2LMHeadModel if self.type == 'gpt2' else transformers.GPTNeoXForCausalLM

    def mlp_weights(self, mlp: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w1 (D, F), b1 (F,), w2 (F, D), b2 (D,) of a block's MLP."""
        first, second = (getattr(mlp, name) for name in self.projections)
        # GPT-2's Conv1D is (in, out)
        w1, w2 = (p.weight.t() if isinstance(p, nn.Linear) else p.weight for p in (first, second))
        return w1, first.bias, w2, second.bias


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
    )
}


def find_family(name: str) -> Family:
    if name not in FAMILIES:
        raise ExperimentError(unknown('model family', name, FAMILIES))
    return FAMILIES[name]


def causal_attention() -> str:
    """The name under which our attention is registered with transformers.

    transformers' own builds masks that wait for the device and, once compiled, rule out the flash kernels.
    Here padding stands at the end of sequences, where causal attention never looks.
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
    """query (B, H, T, K), key and value (B, H, S, K), S - T of them before the first query: (B, T, H, K)."""
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
    )
    return y.transpose(1, 2), None
