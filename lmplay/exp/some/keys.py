"""Where the experts sit: unit vectors that move by three local rules after each optimizer step, without gradient.

N tokens, E experts, K choices per token, D width. The rules are those of the SoME publication; a step's update needs only
sums over its tokens, so micro-batches and ranks add up and no query is kept.
"""

from contextlib import nullcontext
from math import log

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(device: torch.device):
    """A context in which products keep the precision of what they are given, whatever autocast is on around it."""
    return torch.autocast(device.type, enabled=False) if device.type != 'meta' else nullcontext()


def query_sums(queries_ND: Tensor, expert_ids_NK: Tensor, num_experts: int, *, as_product: bool) -> Tensor:
    """(K, E, D): for each rank and expert the sum of the queries that chose it.

    as_product: as a product with ones and zeros. On CUDA, adding many rows into few is slow and in an order left to chance;
    on a CPU it is 30 times faster than the product.
    """
    if as_product:
        chosen_KNE = expert_ids_NK.t()[:, :, None] == torch.arange(num_experts, device=queries_ND.device)
        return chosen_KNE.to(queries_ND.dtype).transpose(1, 2) @ queries_ND
    sums_KED = queries_ND.new_zeros(expert_ids_NK.shape[1], num_experts, queries_ND.shape[1])
    for sums_ED, ids_N in zip(sums_KED, expert_ids_NK.t()):
        sums_ED.index_add_(0, ids_N, queries_ND)
    return sums_KED


class Keys(nn.Module):
    """The keys of one layer, how much each is used, and this step's sums. Everything that a step changes is saved.

    alpha, beta, delta  strengths of attraction to queries, of pull between experts chosen together, of decay; 0 switches a
                        rule off
    theta_percentile    fraction; keys used less than this quantile of the non-zero usages decay
    warmup_steps        key updates before decay sets in
    ema_decay           of the running usage, per update
    decay_fix           The published decay scales a key that is then made a unit vector again, so it changes nothing. With
                        this option the decay is kept as `pull`, a factor in [0, 1] on the key's scores, which grows back at
                        the same rate while the key is used enough. Not in the publication.

    `vectors` (E, D) unit vectors, `usage` (E,) running assignments per step, `pull` (E,).
    """

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
        """(N, E), in the keys' precision: a rounded score would change which experts are chosen."""
        with full_precision(queries_ND.device):
            return queries_ND.to(self.vectors.dtype) @ (self.vectors * self.pull[:, None]).t()

    def clear(self) -> None:
        """Forgets what was collected since the last update."""
        for sums in self._sums():
            sums.zero_()

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query_sums_KED, self.counts_KE, self.pairs_EE

    @torch.no_grad()
    def collect(self, queries_ND: Tensor, expert_ids_NK: Tensor, mask_N: Tensor | None = None) -> None:
        """Adds a micro-batch: who asked, whom it chose by rank, and which experts were chosen together.

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
        """Moves the keys by what was collected, in all processes where training is distributed, if the step was taken.

        Usage first; then attraction, rank after rank, later ranks seeing keys already moved; then the pull between experts
        that a token chose together, all from the keys as they then stand; decay; unit length.
        """
        if dist.is_available() and dist.is_initialized():
            for sums in self._sums():
                dist.all_reduce(sums)
        usage = self.ema_decay * self.usage + (1 - self.ema_decay) * self.counts_KE.sum(0)
        keys = self.vectors
        rate_E1 = (self.alpha / (1 + usage))[:, None]
        for sums_ED, counts_E in zip(
            self.query_sums_KED, self.counts_KE
        ):  # sum of (query - key), from its two sums
            keys = keys + rate_E1 * (sums_ED - counts_E[:, None] * keys)
        inertia_EE = 1 + torch.minimum(usage[:, None], usage[None, :])
        weight_EE = self.beta / inertia_EE * self.pairs_EE.clone().fill_diagonal_(0)
        with full_precision(keys.device):
            keys = keys + weight_EE @ keys - weight_EE.sum(1)[:, None] * keys
        theta = torch.nanquantile(usage.where(usage > 0, torch.nan), self.theta_percentile)
        weak_E = (usage < theta) & (self.updates >= self.warmup_steps)
        pull = self.pull
        if self.decay_fix:
            pull = torch.where(weak_E, pull * (1 - self.delta), (pull / (1 - self.delta)).clamp(max=1))
        else:
            keys = torch.where(weak_E[:, None], keys * (1 - self.delta), keys)
        stepped = torch.as_tensor(
            stepped, device=keys.device
        )  # a device that decides by itself is not waited for
        for state, moved in (
            (self.vectors, F.normalize(keys, dim=1)),
            (self.usage, usage),
            (self.pull, pull),
            (self.updates, self.updates + 1),
        ):
            state.copy_(torch.where(stepped, moved, state))


def gini(usage: Tensor) -> Tensor:
    """Gini coefficient over the last dimension: 0 where all are used alike, towards 1 where one takes everything."""
    E = usage.shape[-1]
    ranked = usage.sort(dim=-1).values
    position = torch.arange(1, E + 1, device=usage.device, dtype=usage.dtype)
    total = ranked.sum(-1).clamp(min=torch.finfo(usage.dtype).tiny)
    return ((2 * position - E - 1) * ranked).sum(-1) / (E * total)


def entropy_bits(usage: Tensor) -> Tensor:
    """Shannon entropy of the shares over the last dimension, in bits: log2 E where all are used alike."""
    share = usage / usage.sum(-1, keepdim=True).clamp(min=torch.finfo(usage.dtype).tiny)
    return -torch.special.xlogy(share, share).sum(-1) / log(2)
