"""The order of many experts."""

import numpy as np

from lmplay.routing.heatmaps import by_favour, chain


def test_orders():
    fractions = np.array([[0.0, 0.6, 0.1, 0.3, 0.0], [0.0, 0.1, 0.7, 0.2, 0.0]])
    assert by_favour(fractions, fractions.mean(0)).tolist() == [1, 3, 2, 0, 4]
    alike = np.array([[1, 0, 0.5, 0], [0, 1, 0.4, 0.9], [0.5, 0.4, 1, 0], [0, 0.9, 0, 1]])
    assert chain(alike).tolist() == [1, 3, 0, 2]
