"""The experts' keys: unit vectors that move by three local rules after each optimizer step, without gradient.

The rules are those of the SoME publication. A step's update needs only sums over its tokens, so micro-batches
and processes add up and no query is kept.

N tokens, E experts, K choices per token, D width of the model.
"""

from contextlib import nullcontext
from math import log

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(device: torch.device):
    """A context in which products keep the precision of their inputs, even under autocast."""
    return torch.autocast(device.type, enabled=False) if device.type != 'meta' else nullcontext()


def query_sums(queries_ND: Tensor, expert_ids_NK: Tensor, num_experts: int, *, as_product: bool) -> Tensor:
    """(K, E, D): the sum of the queries that chose each expert at each rank.

    as_product: by a product with ones and zeros. On CUDA, adding many rows into few is slow and not
    deterministic; on a CPU, adding is 30 times faster than the product.
    """
    if as_product:
        chosen_KNE = expert_ids_NK.t()[:, :, None] == torch.arange(num_experts, device=queries_ND.device)
        return chosen_KNE.to(queries_ND.dtype).transpose(1, 2) @ queries_ND
    sums_KED = queries_ND.new_zeros(expert_ids_NK.shape[1], num_experts, queries_ND.shape[1])
    for sums_ED, ids_N in zip(sums_KED, expert_ids_NK.t()):
        sums_ED.index_add_(0, ids_N, queries_ND)
    return sums_KED


class Keys(nn.Module):
    """The keys of one layer, how much each is used, and this step's sums. What lasts between steps is saved.

    alpha, beta, delta  strengths of attraction to queries, of pull between experts chosen together, and of
                        decay; 0 switches a rule off
    theta_percentile    keys used less than this quantile (a fraction) of the non-zero usages decay
    warmup_steps        key updates before decay begins
    ema_decay           of the running usage, per update
    decay_fix           The published decay scales a key that is then normalised again, so it has no effect.
                        With this option the decay is kept as `pull`, a factor in [0, 1] on the key's scores
                        that grows back at the same rate while the key is used enough. Not in the publication.

    `vectors` (E, D) are unit vectors, `usage` (E,) running assignments per step, `pull` (E,) the factors on
    the scores.
    """

    vectors: Tensor
    usage: Tensor
    pull: Tensor
    updates: Tensor
    query_sums_KED: Tensor
    counts_KE: Tensor
    pairs_EE: Tensor

    def __init__(
        self,
        num_experts: int,
        embed_dim: int,
        *,
        top_k: int,
        alpha: float,
        beta: float,
        delta: float,
        theta_percentile: float,
        warmup_steps: int,
        ema_decay: float,
        decay_fix: bool,
    ):
        super().__init__()
        self.alpha, self.beta, self.delta = alpha, beta, delta
        self.theta_percentile, self.warmup_steps = theta_percentile, warmup_steps
        self.ema_decay, self.decay_fix = ema_decay, decay_fix
        self.register_buffer('vectors', F.normalize(torch.randn(num_experts, embed_dim), dim=1))
        self.register_buffer('usage', torch.zeros(num_experts))
        self.register_buffer('pull', torch.ones(num_experts))
        self.register_buffer('updates', torch.zeros((), dtype=torch.int64))
        self.register_buffer('query_sums_KED', torch.zeros(top_k, num_experts, embed_dim), persistent=False)
        self.register_buffer('counts_KE', torch.zeros(top_k, num_experts), persistent=False)
        self.register_buffer('pairs_EE', torch.zeros(num_experts, num_experts), persistent=False)

    def scores(self, queries_ND: Tensor) -> Tensor:
        """(N, E), in the keys' precision: rounded scores would change which experts are chosen."""
        with full_precision(queries_ND.device):
            return queries_ND.to(self.vectors.dtype) @ (self.vectors * self.pull[:, None]).t()

    def clear(self) -> None:
        """Discards what was collected since the last update."""
        for sums in self._sums():
            sums.zero_()

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query_sums_KED, self.counts_KE, self.pairs_EE

    @torch.no_grad()
    def collect(self, queries_ND: Tensor, expert_ids_NK: Tensor, mask_N: Tensor | None = None) -> None:
        """Adds a micro-batch: queries by expert and rank, and which experts were chosen together.

        mask_N is False at tokens that do not count.
        """
        dtype, E = self.vectors.dtype, len(self.vectors)
        queries_ND = queries_ND.to(dtype)
        weight_N = queries_ND.new_ones(len(queries_ND)) if mask_N is None else mask_N.to(dtype)
        weight_NK = weight_N[:, None].expand_as(expert_ids_NK)
        with full_precision(queries_ND.device):
            self.query_sums_KED += query_sums(
                queries_ND * weight_N[:, None], expert_ids_NK, E, as_product=queries_ND.is_cuda
            )
            self.counts_KE.scatter_add_(1, expert_ids_NK.t(), weight_NK.t())
            chosen_NE = weight_N.new_zeros(len(weight_N), E).scatter_(1, expert_ids_NK, weight_NK)
            self.pairs_EE += chosen_NE.t() @ chosen_NE

    @torch.no_grad()
    def update(self, stepped: bool | Tensor = True) -> None:
        """Moves the keys by what all processes collected, if the step was taken."""
        if dist.is_available() and dist.is_initialized():
            for sums in self._sums():
                dist.all_reduce(sums)
        usage_E = self.ema_decay * self.usage + (1 - self.ema_decay) * self.counts_KE.sum(0)
        keys_ED = self._attracted(self.vectors, usage_E)
        keys_ED = self._pulled_together(keys_ED, usage_E)
        keys_ED, pull_E = self._decayed(keys_ED, usage_E)
        stepped = torch.as_tensor(
            stepped, device=keys_ED.device
        )  # not read here: that would wait for the device
        for state, moved in (
            (self.vectors, F.normalize(keys_ED, dim=1)),
            (self.usage, usage_E),
            (self.pull, pull_E),
            (self.updates, self.updates + 1),
        ):
            state.copy_(torch.where(stepped, moved, state))

    def _attracted(self, keys_ED: Tensor, usage_E: Tensor) -> Tensor:
        """Towards the queries that chose a key, rank by rank; later ranks see keys already moved."""
        rate_E1 = (self.alpha / (1 + usage_E))[:, None]
        for sums_ED, counts_E in zip(self.query_sums_KED, self.counts_KE):
            keys_ED = keys_ED + rate_E1 * (sums_ED - counts_E[:, None] * keys_ED)  # the sum of query - key
        return keys_ED

    def _pulled_together(self, keys_ED: Tensor, usage_E: Tensor) -> Tensor:
        """Towards the keys chosen by the same tokens, all from where they stand."""
        inertia_EE = 1 + torch.minimum(usage_E[:, None], usage_E[None, :])
        weight_EE = self.beta / inertia_EE * self.pairs_EE.clone().fill_diagonal_(0)
        with full_precision(keys_ED.device):
            return keys_ED + weight_EE @ keys_ED - weight_EE.sum(1)[:, None] * keys_ED

    def _decayed(self, keys_ED: Tensor, usage_E: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, pull) after the decay of little used keys."""
        theta = torch.nanquantile(usage_E.where(usage_E > 0, torch.nan), self.theta_percentile)
        weak_E = (usage_E < theta) & (self.updates >= self.warmup_steps)
        if not self.decay_fix:
            return torch.where(weak_E[:, None], keys_ED * (1 - self.delta), keys_ED), self.pull
        grown_E = (self.pull / (1 - self.delta)).clamp(max=1)
        return keys_ED, torch.where(weak_E, self.pull * (1 - self.delta), grown_E)


def gini(usage: Tensor) -> Tensor:
    """Gini coefficient over the last dimension: 0 for equal usage, towards 1 where one takes everything."""
    E = usage.shape[-1]
    ranked = usage.sort(dim=-1).values
    position = torch.arange(1, E + 1, device=usage.device, dtype=usage.dtype)
    total = ranked.sum(-1).clamp(min=torch.finfo(usage.dtype).tiny)
    return ((2 * position - E - 1) * ranked).sum(-1) / (E * total)


def entropy_bits(usage: Tensor) -> Tensor:
    """Shannon entropy of the shares over the last dimension, in bits: log2 E for equal usage."""
    share = usage / usage.sum(-1, keepdim=True).clamp(min=torch.finfo(usage.dtype).tiny)
    return -torch.special.xlogy(share, share).sum(-1) / log(2)
