"""Routing of tokens to experts: top-k choice, gate weights, noise, and the losses that keep a router healthy.

N tokens (B * T), E experts, K choices per token.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """A router's decision: clean logits, probabilities after noise, chosen experts and their gate weights."""

    logits_NE: Tensor
    probs_NE: Tensor
    expert_ids_NK: Tensor
    weights_NK: Tensor


def route(logits_NE: Tensor, *, top_k: int, noise_std: Tensor | None = None) -> Routing:
    """Chooses the `top_k` most probable experts of each token, after adding N(0, noise_std^2) to the logits.

    With one choice the gate weight is 1 and its gradient that of the chosen probability (straight-through
    estimator, Bengio et al. 2013): the layer's output is the expert's own, and the router still learns. With
    more, the chosen probabilities are scaled to sum to 1.
    """
    noisy_NE = logits_NE if noise_std is None else logits_NE + noise_std * torch.randn_like(logits_NE)
    probs_NE = noisy_NE.softmax(-1)
    top_NK, expert_ids_NK = probs_NE.topk(top_k, -1)
    if top_k == 1:
        weights_NK = 1 + (top_NK - top_NK.detach())
    else:
        weights_NK = top_NK / top_NK.sum(-1, keepdim=True)
    return Routing(logits_NE, probs_NE, expert_ids_NK, weights_NK)


def expert_load(
    expert_ids_NK: Tensor, num_experts: int, mask_N: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(E,): each expert's share of the assignments, over the tokens where mask_N (bool) is True."""
    every_E = torch.arange(num_experts, device=expert_ids_NK.device)
    count_NE = (expert_ids_NK[:, :, None] == every_E).sum(1)
    return masked_mean(count_NE.to(dtype), mask_N) / expert_ids_NK.shape[1]


def load_balance_loss(probs_NE: Tensor, load_E: Tensor, mask_N: Tensor | None = None) -> Tensor:
    """E * sum over experts of load * mean probability (Fedus et al. 2021, section 2.2).

    1 when balanced, E when one expert takes all. Only the probabilities carry a gradient. Not linear in the
    batch: both factors are those of the micro-batch given.
    """
    return probs_NE.shape[1] * (load_E.detach() * masked_mean(probs_NE, mask_N)).sum()


def z_loss(logits_NE: Tensor, mask_N: Tensor | None = None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2, which keeps logits small (Zoph et al. 2022, equation 5)."""
    return masked_mean(logits_NE.logsumexp(-1).square(), mask_N)


def router_entropy(logits_NE: Tensor, mask_N: Tensor | None = None) -> Tensor:
    """Mean over tokens of the entropy of softmax(logits), in nats."""
    log_p_NE = logits_NE.log_softmax(-1)
    return masked_mean(-(log_p_NE.exp() * log_p_NE).sum(-1), mask_N)


def distribution_entropy(logits_NE: Tensor, mask_N: Tensor | None = None) -> Tensor:
    """The entropy, in nats, of the mean over tokens of softmax(logits).

    log E where experts are used alike, even by a router that is sure of every token.
    """
    return entropy(masked_mean(logits_NE.softmax(-1), mask_N))


def entropy(p_E: Tensor) -> Tensor:
    """Of a distribution, in nats."""
    return -torch.special.xlogy(p_E, p_E).sum()


def masked_mean(values: Tensor, mask_N: Tensor | None) -> Tensor:
    """Mean over the first dimension of the tokens where mask_N is True, 0 where it is nowhere."""
    if mask_N is None:
        return values.mean(0)
    kept_N = mask_N.view(-1, *[1] * (values.ndim - 1)).to(values.dtype)
    return (values * kept_N).sum(0) / kept_N.sum().clamp(min=1)
