"""What follows from a report."""

import numpy as np
import pytest

from lmplay.routing.findings import principal


def test_principal_components():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(20, 2)) * [3, 1] @ np.linalg.qr(rng.normal(size=(9, 2)))[0].T
    points, explained = principal(plane + 5)
    assert explained.sum() == pytest.approx(1) and explained[0] > explained[1]
    away = plane[:, None] - plane[None]
    np.testing.assert_allclose(
        np.linalg.norm(points[:, None] - points[None], axis=2), np.linalg.norm(away, axis=2), atol=1e-9
    )
    assert principal(np.ones((1, 4)))[0].tolist() == [[0, 0]]
