"""The layer of experts that replaces a block's MLP.

B sequences, T positions, N = B * T tokens, D width of the model, F inner width of an expert, E experts, K
choices per token.
"""

import contextlib

import torch
from torch import Tensor, nn

from lmplay.modules.experts import SWIGLU, experts_mlp
from lmplay.modules.routing import Routing, route


class MoELayer(nn.Module):
    """Routes each token to `top_k` of `num_experts` MLPs: (B, T, D) to (B, T, D). No token is dropped.

    gelu is the activation as `experts_mlp` names it. Gated experts have no biases; their w1 holds the weights
    of gate and up-projection, side by side.

    noise_std is the initial standard deviation of the noise on the router's logits in training, `noise` the
    current one. `routing` is what the last forward pass decided, until it is taken.
    """

    noise: Tensor

    def __init__(
        self,
        *,
        embed_dim: int,
        ff_dim: int,
        num_experts: int,
        top_k: int,
        noise_std: float,
        gelu: str,
        dropout: float,
        out_std: float,
    ):
        super().__init__()
        self.top_k, self.gelu, self.noise_std, self.out_std = top_k, gelu, noise_std, out_std
        self.gated = gelu == SWIGLU
        self.router = nn.Linear(embed_dim, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(num_experts, embed_dim, 2 * ff_dim if self.gated else ff_dim))
        self.b1 = None if self.gated else nn.Parameter(torch.empty(num_experts, ff_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, ff_dim, embed_dim))
        self.b2 = None if self.gated else nn.Parameter(torch.empty(num_experts, embed_dim))
        for bias in self._biases:  # stacked, they have two dimensions, as weights have
            bias.skip_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]  torch allows it
        self.dropout = nn.Dropout(dropout)
        self.register_buffer('noise', torch.tensor(float(noise_std)), persistent=False)
        self.routing: Routing | None = None
        self.reset_experts()

    def reset_experts(self) -> None:
        """Initialises each expert independently, as the family does its MLP."""
        nn.init.normal_(self.w1, std=0.02)
        nn.init.normal_(self.w2, std=self.out_std)
        for bias in self._biases:
            nn.init.zeros_(bias)

    @property
    def _biases(self) -> list[nn.Parameter]:
        return [b for b in (self.b1, self.b2) if b is not None]

    @property
    def experts(self) -> tuple[Tensor, ...]:
        """w1 (E, D, F), b1 (E, F), w2 (E, F, D), b2 (E, D).

        Of gated experts w_gate (E, D, F), w_up (E, D, F), w_down (E, F, D).
        """
        if self.b1 is None or self.b2 is None:
            w_gate, w_up = self.w1.chunk(2, dim=-1)
            return w_gate, w_up, self.w2
        return self.w1, self.b1, self.w2, self.b2

    @torch.no_grad()
    def copy_mlp(
        self, weights: tuple[Tensor, ...], *, perturbation: float, generator: torch.Generator
    ) -> None:
        """Makes each expert a copy of an MLP (Komatsuzaki et al. 2022) with noise on each parameter.

        The noise has `perturbation` times the parameter's standard deviation, and is drawn on the CPU so that
        it is the same on every device.
        """
        for own, dense in zip(self.experts, weights):
            scale = perturbation * dense.float().std()
            for expert in own:
                expert.copy_(dense)
                if perturbation:
                    noise = torch.randn(dense.shape, generator=generator, device='cpu') * scale.cpu()
                    expert += noise.to(expert)

    def route(self, x_ND: Tensor, *, noisy: bool) -> Routing:
        """Routes tokens (N, D), always in float32 or wider (Fedus et al. 2021, section 2.4)."""
        device = x_ND.device.type
        with torch.autocast(device, enabled=False) if device != 'meta' else contextlib.nullcontext():
            dtype = torch.promote_types(x_ND.dtype, torch.float32)
            logits_NE = nn.functional.linear(x_ND.to(dtype), self.router.weight.to(dtype))
        return route(logits_NE, top_k=self.top_k, noise_std=self.noise if noisy and self.noise_std else None)

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        self.routing = routing = self.route(x_ND, noisy=self.training)
        if self.top_k == 1 or not self.training or not self.dropout.p:
            y_ND = self.dropout(self._mixture(x_ND, routing.expert_ids_NK, routing.weights_NK))
        else:
            y_ND = self._dropped_mixture(x_ND, routing)
        return y_ND.view(x.shape)

    def _mixture(self, x_ND: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor) -> Tensor:
        return experts_mlp(
            x_ND,
            expert_ids_NK=expert_ids_NK,
            weights_NK=weights_NK,
            w1_EDF=self.w1,
            b1_EF=self.b1,
            w2_EFD=self.w2,
            b2_ED=self.b2,
            gelu=self.gelu,
        )

    def _dropped_mixture(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """The mixture with dropout inside each expert, as the MLP has it of which experts are copies: a mask
        per expert output, where one on their sum would have more variance."""
        ids_NK, weights_NK = routing.expert_ids_NK, routing.weights_NK
        alone_M1 = ids_NK.reshape(-1, 1)
        y_MD = self._mixture(
            x_ND.repeat_interleave(self.top_k, 0), alone_M1, torch.ones_like(weights_NK).view(-1, 1)
        )
        y_NKD = self.dropout(y_MD).view(*ids_NK.shape, -1)
        return (y_NKD * weights_NK.to(y_NKD.dtype)[:, :, None]).sum(1)

    def take_routing(self) -> Routing:
        """What the last forward pass decided; cleared by the reader."""
        routing, self.routing = self.routing, None
        assert routing is not None, 'the routing of a forward pass can be taken once'
        return routing
