"""some and some_baseline: one backbone, with the self-organizing mixture of experts or GPT-2's MLP.

B sequences, T positions, N = B * T tokens, D = embed_dim, V vocabulary, L layers, E experts, K choices per
token.
"""

from math import log, sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmplay.base.base_model import LMBase, LMOutput, StepContext
from lmplay.base.routed import Experts, RoutedLayer, RoutedLM, layer_name
from lmplay.errors import ExperimentError, unknown
from lmplay.modules import CausalSelfAttention, FeedForward, cached_length, layer_cache
from lmplay.tokenizers import get_tokenizer
from lmplay.utils import to_name

from .keys import entropy_bits, gini
from .layer import SoMELayer

TEMPERATURE_SCHEDULES = ('constant', 'linear')
BACKBONE_INITS = ('published', 'scaled')
VOCABULARY = 'gpt2_8192'  # as many entries as the publication's, for runs whose plan trains none


def sinusoidal_positions(max_len: int, embed_dim: int) -> Tensor:
    """(max_len, D): sines in even columns, cosines in odd ones (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(max_len)[:, None]
    angle = position * torch.exp(torch.arange(0, embed_dim, 2) * (-log(10_000) / embed_dim))
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)[:, :embed_dim]


def init_as_multihead_attention(attn: CausalSelfAttention) -> None:
    """As nn.MultiheadAttention does it: Xavier for queries, keys and values, zero biases."""
    nn.init.xavier_uniform_(attn.qkv.weight)
    nn.init.zeros_(attn.qkv.bias)
    nn.init.zeros_(attn.proj.bias)


class Block(nn.Module):
    """Post-norm: norm(x + attention(x)), then norm(x + feed-forward(x)) (Vaswani et al. 2017, sec. 3.1)."""

    def __init__(self, *, num_heads: int, embed_dim: int, ff: nn.Module):
        super().__init__()
        self.attn = CausalSelfAttention(num_heads=num_heads, embed_dim=embed_dim)
        self.ln1 = nn.LayerNorm(embed_dim)
        self.ff = ff
        self.ln2 = nn.LayerNorm(embed_dim)

    def attend(self, x: Tensor, cache=None) -> Tensor:
        return self.ln1(x + self.attn(x, cache=cache))

    def forward(self, x: Tensor, cache=None) -> Tensor:
        x = self.attend(x, cache)
        return self.ln2(x + self.ff(x))


class SoMEBlock(Block):
    ff: SoMELayer

    def forward(self, x: Tensor, cache=None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, D) to (B, T, D), and the fraction of assignments per expert (E,)."""
        x = self.attend(x, cache)
        y, load_E = self.ff(x, mask)
        return self.ln2(x + y), load_E


class Backbone(LMBase):
    """What both models share: scaled embedding, sinusoidal positions, post-norm, an untied head with bias.

    backbone_init is one of
    - 'published': as torch initialises the publication's modules. Embedding N(0, 1); attention as
      nn.MultiheadAttention: Xavier for queries, keys and values together, nn.Linear's weights for the output,
      zero biases
    - 'scaled': embedding N(0, 1 / embed_dim), of unit variance once scaled; all linear layers as nn.Linear
    """

    positions: Tensor

    def __init__(
        self,
        name: str,
        *,
        tokenizer,
        max_len: int,
        num_blocks: int,
        num_heads: int,
        embed_dim: int,
        backbone_init: str,
        **derived,
    ):
        if backbone_init not in BACKBONE_INITS:
            raise ExperimentError(unknown('backbone_init', backbone_init, BACKBONE_INITS, name))
        super().__init__(name, max_len=max_len, **derived)
        self.tokenizer = get_tokenizer(tokenizer)
        vocab_size = self.tokenizer.n_vocab
        self.num_heads, self.embed_dim = num_heads, embed_dim
        self.tok_embed = nn.Embedding(vocab_size, embed_dim)
        if backbone_init == 'scaled':
            nn.init.normal_(self.tok_embed.weight, std=embed_dim**-0.5)
        self.register_buffer('positions', sinusoidal_positions(max_len, embed_dim), persistent=False)
        blocks = [self.make_block(i) for i in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(embed_dim, vocab_size)
        if backbone_init == 'published':
            for block in blocks:
                init_as_multihead_attention(block.attn)

    def make_block(self, layer: int) -> Block:
        raise NotImplementedError

    def embed(self, x: Tensor, cache: list | None) -> Tensor:
        """(B, T) token ids to (B, T, D)."""
        start = cached_length(cache)
        return self.tok_embed(x) * sqrt(self.embed_dim) + self.positions[start : start + x.shape[1]]

    def param_groups(self, weight_decay: float) -> list[dict]:
        """All trained parameters decay, including biases, norms and embeddings, as in the publication."""
        return [{'params': [p for p in self.parameters() if p.requires_grad], 'weight_decay': weight_decay}]


class SoMEBaseline(Backbone):
    """The publication's "GPT-2-style" baseline.

    d_ffn            inner width of the MLP, 4 * embed_dim by default
    include_padding  of no effect: it is taken so that one plan serves SoME and its baseline
    """

    def __init__(
        self,
        *,
        max_len=512,
        num_blocks=8,
        num_heads=8,
        embed_dim=512,
        d_ffn=None,
        backbone_init='published',
        include_padding=True,
        tokenizer=VOCABULARY,
        version='some_baseline',
    ):
        self.d_ffn = d_ffn or 4 * embed_dim
        super().__init__(
            to_name(version, num_blocks=num_blocks, embed_dim=embed_dim),
            tokenizer=tokenizer,
            max_len=max_len,
            num_blocks=num_blocks,
            num_heads=num_heads,
            embed_dim=embed_dim,
            backbone_init=backbone_init,
            d_ffn=self.d_ffn,
        )

    def make_block(self, layer: int) -> Block:
        return Block(
            num_heads=self.num_heads,
            embed_dim=self.embed_dim,
            ff=FeedForward(self.embed_dim, ff_dim=self.d_ffn),
        )

    def features(self, x: Tensor, cache: list | None = None) -> Tensor:
        """(B, T) token ids to (B, T, D), ready for the head `fc`."""
        x = self.embed(x, cache)
        for i, block in enumerate(self.blocks):
            x = block(x, cache=layer_cache(cache, i))
        return x


class SoME(Backbone, RoutedLM):
    """Self-organizing mixture of experts; alpha to decay_fix and peer_inertia to respawn_threshold are
    explained in keys.py, router and router_mlp_mult in layer.py.

    d_ffn                 inner width of an expert, 3 * embed_dim by default
    init                  of the experts: 'sparse' (published), 'sparse_scaled', 'default', 'orthogonal'; see
                          frozen.py
    train_temperature     of the softmax over the chosen experts' scores, in training
    eval_temperature      the same in evaluation
    temperature_schedule  'constant' (published), or 'linear': from train_temperature to eval_temperature over
                          the stage
    include_padding       count padding in the key update, as the published code does
    expert_seed           the seed that the experts follow from
    """

    def __init__(
        self,
        *,
        max_len=512,
        num_blocks=8,
        num_heads=8,
        embed_dim=512,
        num_experts=128,
        d_ffn=None,
        top_k=8,
        alpha=0.015,
        beta=0.001,
        delta=0.001,
        theta_percentile=0.05,
        warmup_steps=400,
        ema_decay=0.995,
        init='sparse',
        train_temperature=1.0,
        eval_temperature=0.5,
        temperature_schedule='constant',
        decay_fix=False,
        include_padding=True,
        expert_seed=0,
        router='linear',
        router_mlp_mult=1.0,
        peer_inertia='min',
        usage_by='assignments',
        key_norm='unit',
        respawn_threshold=0.0,
        backbone_init='published',
        tokenizer=VOCABULARY,
        version='some',
    ):
        if temperature_schedule not in TEMPERATURE_SCHEDULES:
            raise ExperimentError(
                unknown('temperature_schedule', temperature_schedule, TEMPERATURE_SCHEDULES, version)
            )
        self.temperature_schedule = temperature_schedule
        self.layer_options: dict[str, Any] = dict(
            embed_dim=embed_dim,
            num_experts=num_experts,
            d_ffn=d_ffn or 3 * embed_dim,
            top_k=top_k,
            alpha=alpha,
            beta=beta,
            delta=delta,
            theta_percentile=theta_percentile,
            warmup_steps=warmup_steps,
            ema_decay=ema_decay,
            init=init,
            train_temperature=train_temperature,
            eval_temperature=eval_temperature,
            decay_fix=decay_fix,
            include_padding=include_padding,
            expert_seed=expert_seed,
            router=router,
            router_mlp_mult=router_mlp_mult,
            peer_inertia=peer_inertia,
            usage_by=usage_by,
            key_norm=key_norm,
            respawn_threshold=respawn_threshold,
        )
        super().__init__(
            to_name(version, num_blocks=num_blocks, embed_dim=embed_dim),
            tokenizer=tokenizer,
            max_len=max_len,
            num_blocks=num_blocks,
            num_heads=num_heads,
            embed_dim=embed_dim,
            backbone_init=backbone_init,
            d_ffn=self.layer_options['d_ffn'],
        )

    def make_block(self, layer: int) -> SoMEBlock:
        return SoMEBlock(
            num_heads=self.num_heads,
            embed_dim=self.embed_dim,
            ff=SoMELayer(layer=layer, **self.layer_options),
        )

    @property
    def routed_blocks(self) -> list[SoMEBlock]:
        return [cast(SoMEBlock, block) for block in self.blocks]

    @property
    def layers(self) -> list[SoMELayer]:
        return [block.ff for block in self.routed_blocks]

    def features(self, x: Tensor, cache: list | None = None, mask: Tensor | None = None) -> LMOutput:
        """(B, T) token ids to features (B, T, D), ready for `fc`; mask (B, T) bool, False at padding."""
        x = self.embed(x, cache)
        loads = []
        for i, block in enumerate(self.blocks):
            x, load_E = block(x, cache=layer_cache(cache, i), mask=mask)
            loads.append(load_E)
        return LMOutput(features=x, metrics={'expert_load': torch.stack(loads), **self._usage_metrics()})

    def _usage_metrics(self) -> dict[str, Tensor]:
        """Gini and entropy (bits) of each layer's running usage, (L,), and of the middle layer."""
        usage_LE = torch.stack([layer.keys.usage for layer in self.layers])
        gini_L, entropy_L, middle = gini(usage_LE), entropy_bits(usage_LE), len(self.blocks) // 2
        return {
            'some_gini': gini_L,
            'some_entropy': entropy_L,
            'gini_middle': gini_L[middle],
            'entropy_middle': entropy_L[middle],
        }

    def routing(self, x: Tensor) -> list[RoutedLayer]:
        """What each layer decides about the tokens x (B, T).

        The entropy is that of softmax(scores / temperature) over all experts, of which the gates keep the
        top_k.
        """
        routed, h = [], self.embed(x, None)
        for i, block in enumerate(self.routed_blocks):
            h = block.attend(h)
            choice = block.ff.route(h.flatten(0, 1))
            log_p_NE = choice.logits_NE.log_softmax(-1)
            entropy_N = -(log_p_NE.exp() * log_p_NE).sum(-1)
            routed.append(
                RoutedLayer(
                    name=layer_name(i),
                    num_experts=self.layer_options['num_experts'],
                    expert_ids=choice.expert_ids_NK.view(*x.shape, -1),
                    weights=choice.gates_NK.view(*x.shape, -1),
                    entropy=entropy_N.view(x.shape),
                )
            )
            h = block.ln2(h + block.ff(h)[0])
        return routed

    def layer_names(self) -> list[str]:
        return [layer_name(i) for i, _ in enumerate(self.layers)]

    def experts(self) -> list[Experts]:
        """Keys and usage: the experts are frozen, their keys move."""
        return [Experts(keys=layer.keys.vectors, usage=layer.keys.usage) for layer in self.layers]

    def before_step(self, ctx: StepContext) -> None:
        for layer in self.layers:
            layer.keys.clear()
            if self.temperature_schedule == 'linear':
                start, end = self.layer_options['train_temperature'], self.layer_options['eval_temperature']
                layer.temperature.fill_(start + (end - start) * ctx.step / ctx.total_steps)

    def after_step(self, ctx: StepContext) -> None:
        """Moves the keys by all micro-batches of the step, unless it was skipped."""
        for layer in self.layers:
            layer.keys.update(ctx.stepped)

    def total_parameters(self) -> int:
        """Counts the frozen experts too, which are buffers to torch."""
        return super().total_parameters() + sum(layer.frozen_parameters() for layer in self.layers)

    def active_parameters(self) -> int:
        frozen = sum(layer.frozen_parameters() for layer in self.layers)
        active = frozen * self.layer_options['top_k'] // self.layer_options['num_experts']
        return super().active_parameters() + active

    def flops_per_token(self, length: int) -> float:
        D, layer = self.embed_dim, self.layer_options
        query = sum(p.numel() for p in self.layers[0].query.parameters() if p.ndim == 2)
        products = 4 * D * D + query + D * layer['num_experts'] + layer['top_k'] * 2 * D * layer['d_ffn']
        attention = 2 * length * D
        return 2 * (len(self.blocks) * (products + attention) + self.fc.weight.numel())

    def training_flops_per_token(self, length: int) -> float:
        """Frozen experts need no weight gradients: backward costs them as much as forward, not twice."""
        layer = self.layer_options
        experts = 2 * len(self.blocks) * layer['top_k'] * 2 * self.embed_dim * layer['d_ffn']
        return super().training_flops_per_token(length) - experts
