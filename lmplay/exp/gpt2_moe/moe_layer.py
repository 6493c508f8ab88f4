"""The mixture that stands in for a block's MLP.

B rows, T positions, N = B * T tokens, D width of the model, F inner width of an expert, E experts, K choices per token.
"""

import contextlib

import torch
from torch import Tensor, nn

from lmplay.modules.experts import experts_mlp
from lmplay.modules.routing import Routing, route


class MoELayer(nn.Module):
    """Routes each token to `top_k` of `num_experts` MLPs: (B, T, D) to (B, T, D). No token is dropped.

    noise_std is the noise on the router's logits in training; `noise` is what it stands at now. `routing` is what the last
    forward pass decided; whoever reads it takes it away.
    """

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
        self.router = nn.Linear(embed_dim, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(num_experts, embed_dim, ff_dim))
        self.b1 = nn.Parameter(torch.empty(num_experts, ff_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, ff_dim, embed_dim))
        self.b2 = nn.Parameter(torch.empty(num_experts, embed_dim))
        self.b1.skip_weight_decay = self.b2.skip_weight_decay = (
            True  # biases, though stacked ones have two dimensions
        )
        self.dropout = nn.Dropout(dropout)
        self.register_buffer('noise', torch.tensor(float(noise_std)), persistent=False)
        self.routing: Routing | None = None
        self.reset_experts()

    def reset_experts(self) -> None:
        """Fresh experts, each for itself, as the family initialises its MLP."""
        nn.init.normal_(self.w1, std=0.02)
        nn.init.normal_(self.w2, std=self.out_std)
        nn.init.zeros_(self.b1)
        nn.init.zeros_(self.b2)

    @property
    def experts(self) -> tuple[nn.Parameter, ...]:
        return self.w1, self.b1, self.w2, self.b2

    @torch.no_grad()
    def copy_mlp(
        self, weights: tuple[Tensor, ...], *, perturbation: float, generator: torch.Generator
    ) -> None:
        """Makes each expert a copy of an MLP (Komatsuzaki et al. 2022), each of its parameters with noise of `perturbation`
        times the parameter's standard deviation, drawn on the CPU so that it is the same everywhere."""
        for own, dense in zip(self.experts, weights):
            scale = perturbation * dense.float().std()
            for expert in own:
                expert.copy_(dense)
                if perturbation:
                    expert += (torch.randn(dense.shape, generator=generator, device='cpu') * scale.cpu()).to(
                        expert
                    )

    def route(self, x_ND: Tensor, *, noisy: bool) -> Routing:
        """Routes tokens (N, D); in float32 whatever the layer computes in (Fedus et al. 2021, 2.4)."""
        device = x_ND.device.type
        with torch.autocast(device, enabled=False) if device != 'meta' else contextlib.nullcontext():
            dtype = torch.promote_types(x_ND.dtype, torch.float32)
            logits_NE = nn.functional.linear(x_ND.to(dtype), self.router.weight.to(dtype))
        return route(logits_NE, top_k=self.top_k, noise_std=self.noise if noisy and self.noise_std else None)

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        self.routing = self.route(x_ND, noisy=self.training)
        y_ND = experts_mlp(
            x_ND,
            expert_ids_NK=self.routing.expert_ids_NK,
            weights_NK=self.routing.weights_NK,
            w1_EDF=self.w1,
            b1_EF=self.b1,
            w2_EFD=self.w2,
            b2_ED=self.b2,
            gelu=self.gelu,
        )
        return self.dropout(y_ND.view(x.shape))
