"""The SoME layer: frozen random experts, chosen by a learned query and self-organizing keys.

B sequences, T positions, N = B * T tokens, D width of the model, F inner width of an expert, E experts, K
choices per token.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmplay.errors import CheckpointError, ExperimentError, unknown
from lmplay.modules.experts import experts_mlp
from lmplay.modules.routing import expert_load

from .frozen import frozen_experts
from .keys import Keys


class Choice(NamedTuple):
    """Unit queries, scores over the temperature, the chosen experts by rank, and their gate weights."""

    queries_ND: Tensor
    logits_NE: Tensor
    expert_ids_NK: Tensor
    gates_NK: Tensor


ROUTERS = ('linear', 'mlp')


def query_network(embed_dim: int, router: str, router_mlp_mult: float) -> nn.Module:
    """What turns a token into its query.

    router  'linear': published. 'mlp': linear, GELU, linear, router_mlp_mult * embed_dim wide in between,
            started at N(0, 0.02^2) with zero biases (the authors' version 5)
    """
    if router not in ROUTERS:
        raise ExperimentError(unknown('router', router, ROUTERS, 'a layer of SoME'))
    if router == 'linear':
        return nn.Linear(embed_dim, embed_dim)
    hidden = int(embed_dim * router_mlp_mult)
    if hidden < 1:
        raise ExperimentError(
            f'router_mlp_mult must leave at least one unit of {embed_dim}; given: {router_mlp_mult}.'
        )
    linear = nn.Linear(embed_dim, hidden), nn.Linear(hidden, embed_dim)
    for layer in linear:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(linear[0], nn.GELU(), linear[1])


class SoMELayer(nn.Module):
    """y = sum_j g_j expert_j(x) over the top_k frozen experts whose keys are nearest to the query of x.

    Only the query network learns by gradient, through the gates g. The experts are buffers that are not
    saved: they follow from the seed, and loading compares their digest. They are held in the precision of the
    products.
    """

    frozen = ('w1', 'b1', 'w2', 'b2')  # buffers that follow from a seed, and may be sharded
    temperature: Tensor  # of the gates, in training
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    expert_digest: Tensor

    def __init__(
        self,
        *,
        embed_dim: int,
        num_experts: int,
        d_ffn: int,
        top_k: int,
        init: str,
        expert_seed: int,
        layer: int,
        train_temperature: float,
        eval_temperature: float,
        include_padding: bool,
        router: str = 'linear',
        router_mlp_mult: float = 1.0,
        **rules,
    ):
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ExperimentError(f'top_k must be between 1 and num_experts ({num_experts}); given: {top_k}.')
        for name, value in (('train_temperature', train_temperature), ('eval_temperature', eval_temperature)):
            if value <= 0:
                raise ExperimentError(f'{name} must be above 0; given: {value}.')
        self.top_k, self.eval_temperature, self.include_padding = top_k, eval_temperature, include_padding
        self.query = query_network(embed_dim, router, router_mlp_mult)
        self.keys = Keys(num_experts, embed_dim, top_k=top_k, **rules)
        self.register_buffer('temperature', torch.tensor(train_temperature), persistent=False)
        *experts, digest = frozen_experts(
            num_experts=num_experts,
            embed_dim=embed_dim,
            d_ffn=d_ffn,
            top_k=top_k,
            init=init,
            seed=expert_seed,
            layer=layer,
            device=self.keys.vectors.device,
        )
        for name, tensor in zip(self.frozen, experts):
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer('expert_digest', digest)

    def frozen_parameters(self) -> int:
        return sum(getattr(self, name).numel() for name in self.frozen)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, D) to (B, T, D), and the fraction of assignments per expert (E,).

        mask (B, T) bool is False at padding, which the key update then leaves out (unless include_padding).
        """
        x_ND = x.flatten(0, 1)
        choice = self.route(x_ND)
        y_ND = experts_mlp(
            x_ND, expert_ids_NK=choice.expert_ids_NK, weights_NK=choice.gates_NK, **self._experts(x_ND)
        )
        mask_N = None if mask is None or self.include_padding else mask.flatten()
        if self.training:
            self.keys.collect(choice.queries_ND, choice.expert_ids_NK, mask_N, gates_NK=choice.gates_NK)
        return y_ND.view_as(x), expert_load(choice.expert_ids_NK, len(self.keys.vectors), mask_N)

    def route(self, x_ND: Tensor) -> Choice:
        queries_ND = F.normalize(self.query(x_ND).to(self.keys.vectors.dtype), dim=1)
        temperature = self.temperature if self.training else self.eval_temperature
        logits_NE = self.keys.scores(queries_ND) / temperature
        top_NK, expert_ids_NK = logits_NE.topk(self.top_k, dim=1)
        return Choice(queries_ND, logits_NE, expert_ids_NK, top_NK.softmax(1))

    def _experts(self, x_ND: Tensor) -> dict[str, Any]:
        """The stacked weights in the dtype of the products; being bfloat16 numbers, they convert exactly."""
        device, dtype = x_ND.device.type, x_ND.dtype
        if dtype != torch.float64 and device != 'meta' and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if self.w1.dtype != dtype and not isinstance(self.w1, nn.Parameter):  # sharded ones stay as they are
            for name in self.frozen:
                setattr(self, name, getattr(self, name).to(dtype))
        w1, w2 = self.w1.to(dtype), self.w2.to(dtype)
        return dict(w1_EDF=w1, b1_EF=None, w2_EFD=w2, b2_ED=None)  # the biases are all 0

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        saved, mine = state_dict.get(f'{prefix}expert_digest'), self.expert_digest
        if saved is not None and not mine.is_meta and not torch.equal(saved.to(mine.device), mine):
            raise CheckpointError(
                f'The checkpoint was trained with other frozen experts than this model has (the digests of '
                f"'{prefix.rstrip('.')}' differ): expert_seed, init, num_experts, embed_dim, d_ffn and top_k "
                f'must be those of the checkpoint.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
