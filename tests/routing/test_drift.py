"""Drift of experts against plain NumPy."""

import numpy as np
import pytest
import torch

from lmplay.base.base_model import Experts
from lmplay.routing.drift import drift


def stacked(E, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(E, 5, 7, generator=g), torch.randn(E, 11, generator=g)


def flat(weights, e):
    return np.concatenate([w[e].double().numpy().ravel() for w in weights])


@pytest.mark.parametrize('from_start', [True, False])
def test_drift(from_start):
    E = 4
    now, start = stacked(E, 1), stacked(E, 2)
    found = drift(Experts(weights=now), Experts(weights=start) if from_start else None)
    w = np.stack([flat(now, e) for e in range(E)])
    begun = (
        np.stack([flat(start, e) for e in range(E)])
        if from_start
        else np.repeat(w.mean(0, keepdims=True), E, 0)
    )
    added = w - begun
    norm = np.linalg.norm
    np.testing.assert_allclose(found.norm, norm(added, axis=1) / norm(begun, axis=1), rtol=1e-4)
    np.testing.assert_allclose(
        found.cosine, (w * begun).sum(1) / norm(w, axis=1) / norm(begun, axis=1), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        found.between, added @ added.T / np.outer(norm(added, axis=1), norm(added, axis=1)), atol=1e-4
    )


def test_experts_that_did_not_move():
    weights = stacked(3, 0)
    found = drift(Experts(weights=weights), Experts(weights=weights))
    assert (found.norm == 0).all() and np.allclose(found.cosine, 1) and np.isnan(found.between).all()
