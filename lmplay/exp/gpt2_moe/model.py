"""A pretrained transformer, GPT-2, Pythia or Llama, whose MLPs are turned into layers of experts.

The transformer is transformers' own; `families.py` says how they differ, `moe_layer.py` is the layer of
experts, `pretrained.py` imports weights.

B sequences, T positions, N = B * T tokens, D = embed_dim, V vocabulary, L routed layers, E experts, K choices
per token.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmplay.base.base_model import LMBase, LMOutput, StepContext
from lmplay.base.ranks import mean_over_ranks, sum_over_ranks
from lmplay.base.routed import Experts, RoutedLayer, RoutedLM, layer_name
from lmplay.errors import ExperimentError, unknown
from lmplay.modules.routing import (
    Routing,
    entropy,
    expert_load,
    load_balance_loss,
    masked_mean,
    router_entropy,
    z_loss,
)
from lmplay.tokenizers import Tokenizer, get_tokenizer, padded_vocab
from lmplay.utils import to_name

from . import study
from .families import find_family, honour_masks
from .moe_layer import MoELayer

LB_SCOPES = ('micro_batch', 'step')


def routed_layers(choice: str | list[int], num_blocks: int) -> list[int]:
    """Indices of the routed blocks, from 'last N', 'all', 'alternating' (every second), 'none', or a list.

    Raises ExperimentError for anything else.
    """
    blocks = range(num_blocks)
    if isinstance(choice, str):
        named = {'none': blocks[:0], 'all': blocks, 'alternating': blocks[1::2]}
        named |= {f'last {i + 1}': blocks[-i - 1 :] for i in blocks}
        routed = named.get(' '.join(choice.split()))
        if routed is not None:
            return list(routed)
    elif isinstance(choice, (list, tuple)) and all(type(i) is int and i in blocks for i in choice):
        return sorted(set(choice))
    raise ExperimentError(
        f"moe_layers must be 'last N' with N up to {num_blocks}, a list of block numbers from 0 to "
        f"{num_blocks - 1}, 'all', 'alternating' or 'none'; given: {choice!r}."
    )


def _require_padding_at_the_end(mask: Tensor) -> None:
    """Refuses a mask (B, T) with a real token after padding; on a GPU without waiting for it."""
    good = ~(mask[:, 1:] & ~mask[:, :-1]).any()
    refusal = "padding must stand at the end of sequences: a mask's False is followed by True"
    if mask.is_cuda:
        torch._assert_async(good, refusal)  # pyright: ignore[reportPrivateImportUsage]
    elif not mask.is_meta and not good:
        raise ExperimentError(f'For this model {refusal}.')


def _check_sizes(*, embed_dim: int, num_heads: int, num_experts: int, top_k: int) -> None:
    if embed_dim % num_heads:
        raise ExperimentError(
            f'embed_dim must be a multiple of num_heads; given: {embed_dim} and {num_heads}.'
        )
    if not 1 <= num_experts <= 64 or not 1 <= top_k <= num_experts:
        raise ExperimentError(
            f'num_experts must be from 1 to 64 and top_k from 1 to num_experts; '
            f'given: {num_experts} and {top_k}.'
        )


class UpcycledLM(RoutedLM):
    """A causal language model of transformers with layers of experts in place of some of its MLPs.

    family              'gpt2', 'gpt_neox' (Pythia), or 'llama' (SmolLM2 and others)
    moe_layers          see `routed_layers`
    num_experts, top_k  experts of a routed layer, and how many serve a token
    lb_coef, z_coef     weights of the load-balance loss and the router's z-loss, each a mean over the routed
                        layers
    noise_std           of the noise on the router's logits in training; falls linearly to 0 over the first
                        noise_fraction of a stage's steps, rounded down
    perturbation        noise on the copies that upcycling makes, relative to each parameter's standard
                        deviation
    vocab_size          rows of the embedding, where a family pads it beyond the tokenizer's vocabulary
    num_kv_heads, ff_dim, rope_theta, norm_eps, tied_head
                        of Llama alone: heads of keys and values (None: a third of num_heads), width of the
                        MLP (None: 8/3 of embed_dim), base of the rotary positions, epsilon of the norms,
                        whether the output head's weight is the embedding's

    lb_scope            of the fractions in the load-balance loss: those of each 'micro_batch', on all ranks
                        together, or of the whole 'step'. Those are known only after its last forward pass,
                        when the first micro-batches have had their backward pass already; so 'step' passes
                        through the trunk twice, a third more FLOPs where a step has several micro-batches
    """

    exports = {study.FORMAT: study.write_study}

    def __init__(
        self,
        *,
        family='gpt2',
        num_blocks=12,
        embed_dim=768,
        num_heads=12,
        max_len=1024,
        moe_layers: str | list[int] = 'last 4',
        num_experts=8,
        top_k=1,
        lb_coef=0.01,
        lb_scope='micro_batch',
        z_coef=0.001,
        noise_std=0.1,
        noise_fraction=0.25,
        perturbation=1e-3,
        attn_dropout=0.1,
        ff_dropout=0.1,
        embed_dropout=0.1,
        vocab_size: int | None = None,
        num_kv_heads: int | None = None,
        ff_dim: int | None = None,
        rope_theta: float | None = None,
        norm_eps: float | None = None,
        tied_head: bool | None = None,
        tokenizer: str | Tokenizer = 'gpt2',
        version='gpt2_moe',
    ):
        _check_sizes(embed_dim=embed_dim, num_heads=num_heads, num_experts=num_experts, top_k=top_k)
        if lb_scope not in LB_SCOPES:
            raise ExperimentError(unknown('lb_scope', lb_scope, LB_SCOPES, version))
        super().__init__(to_name(version, num_blocks=num_blocks, max_len=max_len), max_len=max_len)
        self.previews = lb_scope == 'step'
        self.previewed: list[tuple[Tensor, Tensor]] = []  # (expert load (L, E), tokens) of this step's parts
        self.num_blocks, self.embed_dim, self.num_heads = num_blocks, embed_dim, num_heads
        self.num_experts, self.top_k, self.perturbation = num_experts, top_k, perturbation
        self.lb_coef, self.z_coef, self.noise_fraction = lb_coef, z_coef, noise_fraction
        self.tokenizer = get_tokenizer(tokenizer)
        vocab_size = padded_vocab(self.tokenizer, vocab_size)
        self.family = find_family(family)
        self.family.check_dropout(ff_dropout, embed_dropout)
        options = dict(
            num_kv_heads=num_kv_heads,
            ff_dim=ff_dim,
            rope_theta=rope_theta,
            norm_eps=norm_eps,
            tied_head=tied_head,
        )
        self.options = self.family.complete(options, embed_dim=embed_dim, num_heads=num_heads)
        self.ff_dim = self.options.get('ff_dim', 4 * embed_dim)
        config = self.family.config(
            **self.options,
            num_blocks=num_blocks,
            embed_dim=embed_dim,
            num_heads=num_heads,
            max_len=max_len,
            vocab_size=vocab_size,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
        )
        self.model = self.family.model_class(config)
        honour_masks(self.trunk)
        if self.family.embed_dropout is not None:
            getattr(self.trunk, self.family.embed_dropout).p = embed_dropout
        self.moe_layers: dict[int, MoELayer] = {}
        for i in routed_layers(moe_layers, num_blocks):
            layer = self._moe_layer(noise_std=noise_std, dropout=ff_dropout)
            self.moe_layers[i] = self.blocks[i].mlp = layer

    def _moe_layer(self, *, noise_std: float, dropout: float) -> MoELayer:
        return MoELayer(
            embed_dim=self.embed_dim,
            ff_dim=self.ff_dim,
            num_experts=self.num_experts,
            top_k=self.top_k,
            noise_std=noise_std,
            gelu=self.family.gelu,
            dropout=dropout if self.family.dropout_in_mlp else 0.0,
            out_std=0.02 / (2 * self.num_blocks) ** 0.5 if self.family.type == 'gpt2' else 0.02,
        )

    @property
    def trunk(self):
        return self.model.base_model

    @property
    def blocks(self):
        return getattr(self.trunk, self.family.blocks)

    @property
    def fc(self):
        """The output head; in GPT-2 its weight is the token embedding's."""
        return self.model.lm_head

    def features(self, x: Tensor, cache: list | None = None, mask: Tensor | None = None) -> LMOutput:
        """(B, T) token ids to features (B, T, D), ready for `fc`.

        mask (B, T) bool, False at padding, which stands at the end of sequences and counts in no loss or
        metric. Raises ExperimentError for padding elsewhere, which attention would see; a compiled model does
        not look.
        """
        if mask is not None and not torch.compiler.is_compiling():
            _require_padding_at_the_end(mask)
        if cache is not None and not cache:
            from transformers import DynamicCache

            cache.append(DynamicCache(config=self.model.config))
        out = self.trunk(
            input_ids=x, past_key_values=cache[0] if cache else None, use_cache=cache is not None
        )
        output = LMOutput(features=out.last_hidden_state)
        if self.moe_layers:
            self._report(output, None if mask is None else mask.reshape(-1))
        return output

    def _report(self, output: LMOutput, mask_N: Tensor | None) -> None:
        """Adds the losses and metrics of the last forward pass, from the decisions of its routed layers."""
        routings = [layer.take_routing() for layer in self.moe_layers.values()]
        load_LE, mean_LE = self._shares(routings, mask_N).chunk(2)
        step_LE = self._step_load() if self.training and self.previewed else load_LE
        balance, z, entropies = [], [], []
        for routing, load_E in zip(routings, step_LE):
            balance.append(load_balance_loss(routing.probs_NE, load_E, mask_N))
            z.append(z_loss(routing.logits_NE, mask_N))
            entropies.append(router_entropy(routing.logits_NE.detach(), mask_N))
        distribution_L = torch.stack([entropy(mean_E) for mean_E in mean_LE])
        balance_L, z_L = torch.stack(balance), torch.stack(z)
        output.losses = {
            'load_balance': (balance_L.mean(), self.lb_coef),
            'z_loss': (z_L.mean(), self.z_coef),
        }
        output.metrics = {
            'expert_load': load_LE,
            'router_entropy': torch.stack(entropies),
            'distribution_entropy': distribution_L,
            'distribution_entropy_normalised': distribution_L / max(math.log(self.num_experts), 1e-9),
            'load_std': load_LE.std(1) if self.num_experts > 1 else torch.zeros_like(distribution_L),
            'load_balance_by_layer': balance_L.detach(),
            'z_loss_by_layer': z_L.detach(),
        }

    @torch.no_grad()
    def _shares(self, routings: list[Routing], mask_N: Tensor | None) -> Tensor:
        """(2L, E): of each layer the load of the experts, then their mean probability; over all ranks."""
        dtype = routings[0].logits_NE.dtype
        load = [expert_load(r.expert_ids_NK, self.num_experts, mask_N, dtype) for r in routings]
        mean = [masked_mean(r.logits_NE.softmax(-1), mask_N) for r in routings]
        tokens = len(routings[0].logits_NE) if mask_N is None else mask_N.sum()
        return mean_over_ranks(torch.stack([*load, *mean]), tokens)

    def _step_load(self) -> Tensor:
        """(L, E): the load of the experts over the whole step, as previewed."""
        loads_MLE, tokens_M = map(torch.stack, zip(*self.previewed))
        return (loads_MLE * tokens_M[:, None, None]).sum(0) / tokens_M.sum().clamp(min=1)

    @torch.no_grad()
    def preview(self, x: Tensor, mask: Tensor) -> None:
        """Notes the load of the experts in a micro-batch, for the load-balance loss of lb_scope 'step'."""
        self.trunk(input_ids=x, use_cache=False)
        routings, mask_N = [layer.take_routing() for layer in self.moe_layers.values()], mask.reshape(-1)
        if routings:
            load_LE, _ = self._shares(routings, mask_N).chunk(2)
            self.previewed.append((load_LE, sum_over_ranks(mask_N.sum())))

    @torch.no_grad()
    def routing(self, x: Tensor) -> list[RoutedLayer]:
        """What each routed layer decides about the tokens x (B, T)."""
        self.trunk(input_ids=x, use_cache=False)
        routed = []
        for i, layer in self.moe_layers.items():
            r = layer.take_routing()
            log_p_NE = r.logits_NE.log_softmax(-1)
            routed.append(
                RoutedLayer(
                    name=layer_name(i),
                    num_experts=self.num_experts,
                    expert_ids=r.expert_ids_NK.view(*x.shape, -1),
                    weights=r.weights_NK.view(*x.shape, -1),
                    entropy=-(log_p_NE.exp() * log_p_NE).sum(-1).view(x.shape),
                )
            )
        return routed

    def layer_names(self) -> list[str]:
        return [layer_name(i) for i in self.moe_layers]

    def experts(self) -> list[Experts]:
        return [
            Experts(weights=tuple(p.detach() for p in layer.experts)) for layer in self.moe_layers.values()
        ]

    def before_step(self, ctx: StepContext) -> None:
        """Sets the router noise of this step; it falls over whole steps, as in the study."""
        annealed = int(self.noise_fraction * ctx.total_steps)
        left = max(0.0, 1 - ctx.step / annealed) if annealed else 0.0
        self.previewed.clear()
        for layer in self.moe_layers.values():
            layer.noise.fill_(layer.noise_std * left)

    def import_pretrained(self, source) -> list[str]:
        """Warm start from 'pretrained:NAME' (hub or its cache), a folder in its format, or an LMBase.

        A dense model is upcycled: each expert becomes a perturbed copy of its block's MLP, and the lines
        returned are those of the warm-start parity check. An upcycled model of the same shape is copied, one
        of the moe-emergence study's files too. Raises CheckpointError for anything else.
        """
        from .pretrained import import_pretrained

        return import_pretrained(self, source)

    def as_transformers(self) -> Any | None:
        """The dense model itself; with routed layers, None."""
        if self.moe_layers:
            return None
        if self.family.type == 'gpt2':
            self.model.config.embd_pdrop = self.trunk.drop.p
        return self.model

    @classmethod
    def reads(cls, path: Path) -> bool:
        return study.find_stem(path) is not None

    @classmethod
    def read_foreign(cls, path: Path) -> tuple[LMBase, dict[str, Any]]:
        stem = study.find_stem(path)
        assert stem is not None
        return study.read_study(stem, cls)

    def active_parameters(self) -> int:
        idle = 1 - self.top_k / self.num_experts
        return self.total_parameters() - round(
            idle * sum(p.numel() for layer in self.moe_layers.values() for p in layer.experts)
        )

    def flops_per_token(self, length: int) -> float:
        """Forward FLOPs, multiply and add counted as two: blocks, routers, head, and attention in full."""
        D, routed = self.embed_dim, len(self.moe_layers)
        mlps = self.num_blocks - routed + routed * self.top_k
        kv_heads = self.options.get('num_kv_heads', self.num_heads)
        attention = 2 * D * D + 2 * D * D * kv_heads // self.num_heads
        mlp = len(self.family.projections) * D * self.ff_dim
        products = attention * self.num_blocks + mlp * mlps + routed * D * self.num_experts
        return 2 * (products + self.fc.weight.numel()) + 4 * length * D * self.num_blocks
