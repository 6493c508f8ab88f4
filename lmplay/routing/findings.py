"""What an X-ray found: computed once, shown as tables, pictures and a page.

G groups (domains, or kinds of tokens), E experts.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..base.routed import Experts
from .collect import Favourite, Observed, RoutedTokens, entropy_bits, gini, information
from .drift import Drift
from .history import History
from .svg import FEW
from .token_types import TYPES
from .trace import Trace

FAVOURITES = 8
IN_CONTEXT = 3  # of a few experts' favourites; 1 of many's


@dataclass
class Report:
    """The parts of an X-ray.

    checkpoint, step  what was X-rayed
    text              what it was shown, in words
    history           None where the run recorded none
    drifts            one per layer, None where its experts are frozen; empty where all are
    reference         what drift is measured from, in words
    snapshots         the load at each saved checkpoint, measured on the same text
    trace             a text that the model wrote, token by token
    other             another model on the same text, to be shown beside this one
    """

    model: str
    checkpoint: str
    step: int
    text: str
    observed: Observed
    history: History | None
    experts: list[Experts]
    drifts: list[Drift | None]
    reference: str
    snapshots: History | None = None
    trace: Trace | None = None
    other: 'Report | None' = None


@dataclass
class KeyMap:
    """A layer's keys: points (E, 2), explained variance (2,), usage (E,), domain favoured (E,) or -1."""

    layer: RoutedTokens
    points: np.ndarray
    explained: np.ndarray
    usage: np.ndarray
    favours: np.ndarray


class Findings:
    """A report and what follows from it.

    groups     'domain' or 'type' -> names of the groups
    tokens     -> (G,) tokens of each
    fractions  -> by layer, (G, E) share of each group's assignments that goes to each expert
    loads      by layer, (E,) share of all assignments
    """

    def __init__(self, report: Report):
        self.report, self.observed = report, report.observed
        self.layers, self.names = self.observed.layers, [layer.name for layer in self.observed.layers]
        self.groups = {'domain': self.observed.domains, 'type': list(TYPES)}
        members = {'domain': self.observed.domain, 'type': self.observed.type.astype(np.int64)}
        self.tokens = {k: np.bincount(members[k], minlength=len(g)) for k, g in self.groups.items()}
        self.fractions = {
            k: [layer.fractions(members[k], len(g)) for layer in self.layers] for k, g in self.groups.items()
        }
        self.loads = [layer.load for layer in self.layers]

    @cached_property
    def summary(self) -> list[dict]:
        """One row per layer."""
        return [
            {
                'layer': layer.name,
                'experts': layer.num_experts,
                'top_k': layer.expert_ids.shape[1],
                'busiest': int(load.argmax()),
                'busiest_share': float(load.max()),
                'unused': int((load == 0).sum()),
                'gini': gini(load),
                'load_std': float(load.std(ddof=1)) if len(load) > 1 else 0.0,
                'load_entropy_bits': entropy_bits(load),
                'router_entropy_nats': float(layer.entropy.mean()),
                **{
                    f'{kind}_bits': information(self.fractions[kind][i], self.tokens[kind])
                    for kind in self.groups
                },
            }
            for i, (layer, load) in enumerate(zip(self.layers, self.loads))
        ]

    @cached_property
    def other(self) -> 'Findings | None':
        return None if self.report.other is None else Findings(self.report.other)

    @property
    def drifts(self) -> list[tuple[RoutedTokens, Drift]]:
        """Of the layers whose experts are trained."""
        return [(layer, d) for layer, d in zip(self.layers, self.report.drifts) if d is not None]

    @cached_property
    def keys(self) -> list[KeyMap]:
        """Of the layers whose router knows places."""
        found = []
        for i, experts in enumerate(self.report.experts):
            if experts.keys is None:
                continue
            load, fractions = self.loads[i], self.fractions['domain'][i]
            points, explained = principal(experts.keys.detach().float().cpu().numpy())
            usage = load if experts.usage is None else experts.usage.detach().float().cpu().numpy()
            with np.errstate(invalid='ignore', divide='ignore'):
                favours = np.where(load > 0, np.nan_to_num(fractions / load).argmax(0), -1)
            found.append(KeyMap(self.layers[i], points, explained, usage, favours))
        return found

    @cached_property
    def coactivation(self) -> list[tuple[RoutedTokens, np.ndarray]]:
        """(E, E) of the layers that choose several experts per token."""
        return [(layer, layer.coactivation()) for layer in self.layers if layer.expert_ids.shape[1] > 1]

    @cached_property
    def favourites(self) -> list[tuple[RoutedTokens, list[tuple[int, float, list[Favourite]]], int]]:
        """By layer its experts with load and favourite tokens, and how many of those to show in context."""
        found = []
        for layer, load in zip(self.layers, self.loads):
            favourites = enumerate(self.observed.favourites(layer, FAVOURITES))
            experts = [(e, float(load[e]), tokens) for e, tokens in favourites]
            found.append((layer, experts, IN_CONTEXT if layer.num_experts <= FEW else 1))
        return found


def principal(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (E, 2) on the first two principal components, and the fraction of variance of each."""
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    u, s = np.pad(u, ((0, 0), (0, max(0, 2 - u.shape[1])))), np.pad(s, (0, max(0, 2 - len(s))))
    return u[:, :2] * s[:2], s[:2] ** 2 / max(float((s**2).sum()), 1e-30)
