"""What a model routes where: every token of some text, and what is counted from it.

n tokens of text (end of text and padding left out), L routed layers, E experts, K choices per token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..base.routed import RoutedLM
from ..data.held_out import HeldOut
from ..device import autocast
from ..errors import DataError
from ..tokenizers import as_tokenizer
from .token_types import Pieces, token_types

TOKENS_PER_BATCH = 4096
CONTEXT_TOKENS, CONTEXT_CHARACTERS = 40, 30  # shown on each side of a favourite token


@dataclass
class RoutedTokens:
    """How one layer routed the tokens: expert_ids (n, K), weights (n, K), entropy (n,) in nats."""

    name: str
    num_experts: int
    expert_ids: np.ndarray
    weights: np.ndarray
    entropy: np.ndarray

    def fractions(self, group: np.ndarray, groups: int) -> np.ndarray:
        """(groups, E) share of each group's assignments by expert; NaN for a group without tokens."""
        K = self.expert_ids.shape[1]
        counts = np.bincount(
            (group[:, None] * self.num_experts + self.expert_ids).ravel(), minlength=groups * self.num_experts
        )
        counts = counts.reshape(groups, self.num_experts)
        with np.errstate(invalid='ignore'):
            return counts / (K * np.bincount(group, minlength=groups)[:, None])

    @property
    def load(self) -> np.ndarray:
        """(E,) share of all assignments."""
        return self.fractions(np.zeros(len(self.expert_ids), int), 1)[0]

    def coactivation(self) -> np.ndarray:
        """(E, E) share of the tokens that both experts serve; on the diagonal, that the expert serves."""
        E, K = self.num_experts, self.expert_ids.shape[1]
        counts = np.zeros(E * E, np.int64)
        for a in range(K):
            for b in range(K):
                counts += np.bincount(self.expert_ids[:, a] * E + self.expert_ids[:, b], minlength=E * E)
        return counts.reshape(E, E) / len(self.expert_ids)


@dataclass
class Favourite:
    """A token of which an expert takes more than its share.

    count          assignments of the token to the expert
    share          of the token's gate weight
    lift           that share over the expert's share of all gate weight
    before, after  the context of one assignment
    """

    token: int
    text: str
    count: int
    share: float
    lift: float
    before: str
    after: str


@dataclass
class Observed:
    """Every token with its document, domain and type (indices), and what each layer did with it."""

    tokens: np.ndarray
    document: np.ndarray
    domain: np.ndarray
    type: np.ndarray
    domains: list[str]
    layers: list[RoutedTokens]
    pieces: Pieces

    def favourites(self, layer: RoutedTokens, count: int) -> Iterator[list[Favourite]]:
        """For each expert up to `count` tokens, by weight * log(lift), its part of the information."""
        vocabulary, index = np.unique(self.tokens, return_inverse=True)
        V, E, K = len(vocabulary), layer.num_experts, layer.expert_ids.shape[1]
        cell = (index[:, None] * E + layer.expert_ids).ravel()
        weight = np.bincount(cell, layer.weights.ravel(), V * E).reshape(V, E)
        counts = np.bincount(cell, minlength=V * E).reshape(V, E)
        share = weight / np.maximum(weight.sum(1, keepdims=True), 1e-30)
        lift = share / np.maximum(weight.sum(0) / weight.sum(), 1e-30)
        score = weight * np.log(np.maximum(lift, 1e-30))
        place = np.argsort(cell, kind='stable')  # assignments, sorted by (token, expert)
        first = np.searchsorted(cell[place], np.arange(V * E + 1))
        for e in range(E):
            found = []
            for v in np.argsort(-score[:, e], kind='stable')[:count]:
                if score[v, e] <= 0:
                    break
                those = place[first[v * E + e] : first[v * E + e + 1]]
                heavy = those[layer.weights.ravel()[those] >= layer.weights.ravel()[those].max()]
                at = int(heavy[len(heavy) // 2]) // K  # the first would always be in the first document
                found.append(
                    Favourite(
                        int(vocabulary[v]),
                        self.pieces(int(vocabulary[v])),
                        int(counts[v, e]),
                        float(share[v, e]),
                        float(lift[v, e]),
                        *self._context(at),
                    )
                )
            yield found

    def _context(self, at: int) -> tuple[str, str]:
        """What stands before and after a token in its document."""
        low, high = max(0, at - CONTEXT_TOKENS), at + 1 + CONTEXT_TOKENS
        same = self.document[low:high] == self.document[at]
        before = self.tokens[low:at][same[: at - low]].tolist()
        after = self.tokens[at + 1 : high][same[at - low + 1 :]].tolist()
        return self.pieces.join(before)[-CONTEXT_CHARACTERS:], self.pieces.join(after)[:CONTEXT_CHARACTERS]


def observe(
    model: RoutedLM, held_out: HeldOut, *, device: torch.device, dtype: torch.dtype | None = None
) -> Observed:
    """Routes every token of the held-out text through the model, which is put into evaluation mode."""
    tokenizer = as_tokenizer(model.tokenizer)
    tokens, document, layers = _route(model.eval(), held_out, device, dtype)
    order = np.argsort(document, kind='stable')  # sequences come by document, but not by domain
    document, tokens = document[order], tokens[order]
    names = [d['domain'] for d in held_out.documents]
    domains = list(dict.fromkeys(names))
    pieces = Pieces(tokenizer)
    parts = np.split(tokens, np.flatnonzero(np.diff(document)) + 1)
    types = [
        token_types(part.tolist(), pieces, domain=names[d])
        for part, d in zip(parts, np.unique(document).tolist())
    ]
    return Observed(
        tokens,
        document,
        np.array([domains.index(n) for n in names])[document],
        np.concatenate(types),
        domains,
        [
            RoutedTokens(r.name, r.num_experts, r.expert_ids[order], r.weights[order], r.entropy[order])
            for r in layers
        ],
        pieces,
    )


@torch.no_grad()
def _route(
    model: RoutedLM, held_out: HeldOut, device: torch.device, dtype: torch.dtype | None
) -> tuple[np.ndarray, np.ndarray, list[RoutedTokens]]:
    """(tokens (n,), document (n,) of each, layers) in the order of the held-out sequences."""
    tokenizer = as_tokenizer(model.tokenizer)
    special = torch.tensor([tokenizer.eot_token, tokenizer.pad_token])
    tokens, documents, steps = [], [], []
    for batch in held_out.batches(max(1, TOKENS_PER_BATCH // held_out.length)):
        real = torch.arange(batch.x.shape[1]) < batch.lengths[:, None]
        real &= ~torch.isin(batch.x, special)
        with autocast(device, dtype):
            routed = model.routing(batch.x.to(device))
        tokens.append(batch.x[real].numpy())
        assert batch.documents is not None
        documents.append(batch.documents[real].numpy())
        steps.append([_chosen(layer, real) for layer in routed])
    if not steps:
        raise DataError('The text to route is empty.')
    layers = [
        RoutedTokens(layer.name, layer.num_experts, *map(np.concatenate, zip(*parts)))
        for layer, parts in zip(routed, zip(*steps))
    ]
    return np.concatenate(tokens), np.concatenate(documents), layers


def _chosen(layer, real: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """expert_ids, weights and entropy of a RoutedLayer at the real tokens."""
    return (
        layer.expert_ids.cpu()[real].int().numpy(),
        layer.weights.float().cpu()[real].numpy(),
        layer.entropy.float().cpu()[real].numpy(),
    )


def gini(load: np.ndarray) -> float:
    """Gini coefficient: 0 where all are used alike, towards 1 where one takes everything."""
    E = len(load)
    return float(((2 * np.arange(1, E + 1) - E - 1) * np.sort(load)).sum() / (E * max(load.sum(), 1e-30)))


def entropy_bits(share: np.ndarray) -> float:
    """Shannon entropy in bits: log2 E where all are used alike."""
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum()) + 0.0  # no -0.0


def information(fractions: np.ndarray, tokens: np.ndarray) -> float:
    """Mutual information, bits, of a token's group and its expert; fractions (groups, E), tokens (groups,).

    0 where all groups are routed alike; the entropy of the groups where each has experts of its own.
    """
    known = tokens > 0
    joint = fractions[known] * (tokens[known] / tokens.sum())[:, None]
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    cells = joint > 0
    return float((joint[cells] * np.log2(joint[cells] / independent[cells])).sum())
