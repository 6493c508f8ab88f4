"""Favourite tokens and measures against plain counting."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from lmplay.routing.collect import entropy_bits, gini, information


def test_favourite_tokens_are_those_that_weigh_most_beyond_their_share(observed):
    o = observed(400, 5, 2, layers=1)
    layer = o.layers[0]
    weight, count = defaultdict(float), Counter()
    for t, ids, ws in zip(o.tokens.tolist(), layer.expert_ids.tolist(), layer.weights.tolist()):
        for e, w in zip(ids, ws):
            weight[t, e] += w
            count[t, e] += 1
    total = sum(weight.values())
    for e, favourites in enumerate(o.favourites(layer, 4)):
        own = sum(w for (_, x), w in weight.items() if x == e) / total
        scores = {}
        for t in set(o.tokens.tolist()):
            share = weight[t, e] / sum(weight[t, x] for x in range(5))
            scores[t] = weight[t, e] * math.log(share / own) if share else 0.0
        assert [f.token for f in favourites] == sorted(scores, key=lambda t: -scores[t])[:4]
        for f in favourites:
            assert (f.text, f.count) == (chr(f.token), count[f.token, e])
            assert f.lift == pytest.approx(f.share / own, rel=1e-4)
            place = ''.join(map(chr, o.tokens)).index(
                f.before + f.text + f.after
            )  # it stands in the text, served by e
            assert e in layer.expert_ids[place + len(f.before)]
            documents = o.document[place : place + len(f.before + f.text + f.after)]
            assert len(set(documents.tolist())) == 1


def test_measures():
    assert gini(np.ones(8)) == pytest.approx(0) and gini(np.eye(8)[0]) == pytest.approx(7 / 8)
    assert entropy_bits(np.full(8, 1 / 8)) == pytest.approx(3) and entropy_bits(np.eye(8)[0]) == 0
    alike = np.array([[0.25, 0.75], [0.25, 0.75], [np.nan, np.nan]])
    assert information(alike, np.array([10, 30, 0])) == pytest.approx(0, abs=1e-12)
    assert information(np.eye(2), np.array([5, 5])) == pytest.approx(1)
