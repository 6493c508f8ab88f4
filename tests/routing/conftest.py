"""Routing made up for the purpose, of any size."""

import numpy as np
import pytest
import torch

from lmplay.base.base_model import Experts
from lmplay.routing.collect import Observed, RoutedTokens
from lmplay.routing.drift import drift
from lmplay.routing.findings import Report
from lmplay.routing.history import History
from lmplay.routing.token_types import TYPES, Pieces
from lmplay.tokenizers import get_tokenizer


@pytest.fixture(scope='session', name='observed')
def _observed():
    return observed


@pytest.fixture(scope='session', name='report')
def _report():
    return report


def observed(n, E, K, layers=2, seed=0):
    rng = np.random.default_rng(seed)
    routed = []
    for i in range(layers):
        ids = np.argsort(rng.random((n, E)), axis=1)[:, :K].astype(np.int32)
        weights = rng.random((n, K), dtype=np.float32) + 0.1
        weights /= weights.sum(1, keepdims=True)
        routed.append(RoutedTokens(f'layer {i}', E, ids, weights, rng.random(n, dtype=np.float32)))
    document = np.sort(rng.integers(0, 6, n))
    types = rng.integers(0, len(TYPES), n).astype(np.int8)
    return Observed(
        rng.integers(32, 127, n),
        document,
        document % 2,
        types,
        ['x', 'y'],
        routed,
        Pieces(get_tokenizer('bytes')),
    )


def report(E, K, *, points=3, **options):
    found = observed(300, E, K, **options)
    rng = np.random.default_rng(1)
    experts = [
        Experts(weights=(torch.randn(E, 3, 4),), keys=torch.randn(E, 6), usage=torch.rand(E))
        for _ in found.layers
    ]
    load = rng.random((points, len(found.layers), E))
    curves = {'router_entropy': rng.random((points, len(found.layers)))}
    history = History(
        np.arange(points) + 5,
        load / load.sum(2, keepdims=True),
        curves,
        [(6, 'warning', 'take care'), (7, 'collapse', 'too late <b>')],
    )
    return Report(
        'model',
        'somewhere',
        7,
        'text',
        found,
        history,
        experts,
        [drift(x, None) for x in experts],
        'their mean',
    )
