"""The experts' keys: unit vectors that move by three local rules after each optimizer step, without gradient.

The rules are those of the SoME publication; its authors' later ones, from notebooks of their versions 5 to 7,
are options. A step's update needs only sums over its tokens, so micro-batches and processes add up and no
query is kept, except those that respawned keys start from.

N tokens, E experts, K choices per token, D width of the model.
"""

from contextlib import nullcontext
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmplay.base.ranks import gather_over_ranks, sum_over_ranks
from lmplay.errors import ExperimentError, unknown

CHOICES = {
    'peer_inertia': ('min', 'max'),
    'usage_by': ('assignments', 'gate_mass'),
    'key_norm': ('unit', 'clamp'),
}
RESPAWN_NOISE = 0.01  # standard deviation of what is added to the query that a respawned key starts from


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

    Later rules of the same authors, off by default:

    peer_inertia        'max': the more used expert of a pair sets the inertia of its pull, not the less used
                        one (version 5, fix 6)
    usage_by            'gate_mass': usage counts gate weights, not assignments (version 5, fix 8, which
                        records it beside the assignments; here it is the usage that the rules see)
    key_norm            'clamp': keys keep norms below 1, so that a decayed key stays weak; only longer ones
                        are scaled to 1, before the decay (version 7)
    respawn_threshold   a key whose norm falls below it restarts at a random query of the step, with no usage
                        (versions 3.5, 6 and 7, with 0.1); 0 is off. Needs key_norm 'clamp'

    `vectors` (E, D) are the keys, unit vectors unless clamped, `usage` (E,) running assignments or gate mass
    per step, `pull` (E,) the factors on the scores. Raises ExperimentError for an option without that value.
    """

    vectors: Tensor
    usage: Tensor
    pull: Tensor
    updates: Tensor
    query_sums_KED: Tensor
    counts_KE: Tensor
    pairs_EE: Tensor
    mass_E: Tensor
    candidates_ED: Tensor
    priority_E: Tensor

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
        peer_inertia: str = 'min',
        usage_by: str = 'assignments',
        key_norm: str = 'unit',
        respawn_threshold: float = 0.0,
    ):
        super().__init__()
        self.peer_inertia, self.usage_by, self.key_norm = peer_inertia, usage_by, key_norm
        self.respawn_threshold = respawn_threshold
        self._check_options()
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
        self.register_buffer('mass_E', torch.zeros(num_experts), persistent=False)
        if respawn_threshold:
            self.register_buffer('candidates_ED', torch.zeros(num_experts, embed_dim), persistent=False)
            self.register_buffer('priority_E', torch.full((num_experts,), -1.0), persistent=False)

    def _check_options(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ExperimentError(unknown(name, getattr(self, name), choices, 'the keys of SoME'))
        if not 0 <= self.respawn_threshold < 1:
            raise ExperimentError(
                f'respawn_threshold must be at least 0 and below 1, a norm; given: {self.respawn_threshold}.'
            )
        if self.respawn_threshold and self.key_norm == 'unit':
            raise ExperimentError(
                f"respawn_threshold needs key_norm 'clamp', as no unit key falls below it; given: "
                f"respawn_threshold {self.respawn_threshold}, key_norm 'unit'."
            )

    def scores(self, queries_ND: Tensor) -> Tensor:
        """(N, E), in the keys' precision: rounded scores would change which experts are chosen."""
        with full_precision(queries_ND.device):
            return queries_ND.to(self.vectors.dtype) @ (self.vectors * self.pull[:, None]).t()

    def clear(self) -> None:
        """Discards what was collected since the last update."""
        for sums in self._sums():
            sums.zero_()
        if self.respawn_threshold:
            self.priority_E.fill_(-1)

    def _sums(self) -> tuple[Tensor, ...]:
        return self.query_sums_KED, self.counts_KE, self.pairs_EE, self.mass_E

    @torch.no_grad()
    def collect(
        self,
        queries_ND: Tensor,
        expert_ids_NK: Tensor,
        mask_N: Tensor | None = None,
        *,
        gates_NK: Tensor | None = None,
    ) -> None:
        """Adds a micro-batch: queries by expert and rank, and which experts were chosen together.

        mask_N is False at tokens that do not count; gates_NK are needed where they are the usage.
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
        if self.usage_by == 'gate_mass':
            assert gates_NK is not None
            self.mass_E.scatter_add_(0, expert_ids_NK.flatten(), (gates_NK.to(dtype) * weight_NK).flatten())
        if self.respawn_threshold:
            priority_N = torch.rand_like(weight_N) * weight_N - (1 - weight_N)
            self._keep_candidates(queries_ND, priority_N)

    def _keep_candidates(self, queries_ND: Tensor, priority_N: Tensor) -> None:
        """Keeps as many of the step's queries as there are experts, at random: those of highest priority."""
        priority_M = torch.cat([self.priority_E, priority_N])
        highest_E, index_E = priority_M.topk(len(self.priority_E))
        self.candidates_ED.copy_(torch.cat([self.candidates_ED, queries_ND])[index_E])
        self.priority_E.copy_(highest_E)

    @torch.no_grad()
    def update(self, stepped: bool | Tensor = True) -> None:
        """Moves the keys by what all ranks collected, if the step was taken."""
        if self.respawn_threshold:  # before ranks share them, so that all have the same noise
            self.candidates_ED += RESPAWN_NOISE * torch.randn_like(self.candidates_ED)
        self._join_ranks()
        used_E = self.mass_E if self.usage_by == 'gate_mass' else self.counts_KE.sum(0)
        usage_E = self.ema_decay * self.usage + (1 - self.ema_decay) * used_E
        keys_ED = self._attracted(self.vectors, usage_E)
        keys_ED = self._pulled_together(keys_ED, usage_E)
        if self.key_norm == 'clamp':
            keys_ED = keys_ED / keys_ED.norm(dim=1, keepdim=True).clamp(min=1)
        keys_ED, pull_E = self._decayed(keys_ED, usage_E)
        if self.key_norm == 'unit':
            keys_ED = F.normalize(keys_ED, dim=1)
        if self.respawn_threshold:
            keys_ED, usage_E, pull_E = self._respawned(keys_ED, usage_E, pull_E)
        # not read here: that would wait for the device
        stepped = torch.as_tensor(stepped, device=keys_ED.device)
        for state, moved in (
            (self.vectors, keys_ED),
            (self.usage, usage_E),
            (self.pull, pull_E),
            (self.updates, self.updates + 1),
        ):
            state.copy_(torch.where(stepped, moved, state))

    def _join_ranks(self) -> None:
        for sums in self._sums():
            sums.copy_(sum_over_ranks(sums))
        if self.respawn_threshold:
            candidates_MD, priority_M = (gather_over_ranks(t) for t in (self.candidates_ED, self.priority_E))
            if len(priority_M) > len(self.priority_E):
                self.priority_E.fill_(-1)
                self._keep_candidates(candidates_MD, priority_M)

    def _attracted(self, keys_ED: Tensor, usage_E: Tensor) -> Tensor:
        """Towards the queries that chose a key, rank by rank; later ranks see keys already moved."""
        rate_E1 = (self.alpha / (1 + usage_E))[:, None]
        for sums_ED, counts_E in zip(self.query_sums_KED, self.counts_KE):
            keys_ED = keys_ED + rate_E1 * (sums_ED - counts_E[:, None] * keys_ED)  # the sum of query - key
        return keys_ED

    def _pulled_together(self, keys_ED: Tensor, usage_E: Tensor) -> Tensor:
        """Towards the keys chosen by the same tokens, all from where they stand."""
        of_pair = torch.maximum if self.peer_inertia == 'max' else torch.minimum
        inertia_EE = 1 + of_pair(usage_E[:, None], usage_E[None, :])
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

    def _respawned(self, keys_ED: Tensor, usage_E: Tensor, pull_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, usage, pull), the n-th faded key replaced by the n-th of the step's random queries."""
        faded_E = keys_ED.norm(dim=1) < self.respawn_threshold
        place_E = (faded_E.cumsum(0) - 1).clamp(min=0)
        faded_E = faded_E & (self.priority_E[place_E] >= 0)  # a step may have fewer queries
        new_ED = F.normalize(self.candidates_ED[place_E], dim=1)
        return (
            torch.where(faded_E[:, None], new_ED, keys_ED),
            usage_E.masked_fill(faded_E, 0),
            pull_E.masked_fill(faded_E, 1),
        )


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
