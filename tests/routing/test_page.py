"""Tables, pictures and the page, on routing made up for the purpose, of every size."""

import csv
import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from lmplay.base.base_model import Experts
from lmplay.routing.collect import Observed, RoutedTokens, entropy_bits, gini, information
from lmplay.routing.drift import drift
from lmplay.routing.history import History
from lmplay.routing.page import Report, principal, write
from lmplay.routing.pictures import by_favour, chain
from lmplay.routing.token_types import TYPES, Pieces
from lmplay.tokenizers import get_tokenizer


def observed(n, E, K, layers=2, seed=0):
    rng = np.random.default_rng(seed)
    routed = []
    for i in range(layers):
        ids = np.argsort(rng.random((n, E)), axis=1)[:, :K].astype(np.int32)
        weights = rng.random((n, K), dtype=np.float32) + 0.1
        weights /= weights.sum(1, keepdims=True)
        routed.append(RoutedTokens(f'block {i}', E, ids, weights, rng.random(n, dtype=np.float32)))
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


@pytest.mark.parametrize('E, K, points', [(1, 1, 1), (4, 1, 3), (16, 2, 2), (17, 3, 240), (128, 8, 3)])
def test_every_size_is_drawn(E, K, points, tmp_path):
    text = write(report(E, K, points=points, layers=1), tmp_path).page.read_text(encoding='utf-8')
    assert 'too late &lt;b&gt;' in text and 'too late <b>' not in text
    assert (tmp_path / 'coactivation-block-0.svg').is_file() == (K > 1)
    assert all(
        'nan' not in re.sub(r'base64,[^"]*', '', f.read_text()).lower() for f in tmp_path.glob('*.svg')
    )
    assert text.count('data:image/svg+xml') == len(list(tmp_path.glob('*.svg')))


def test_tables_count_what_was_routed(tmp_path):
    given = report(7, 2)
    write(given, tmp_path)
    rows = {
        f.stem: list(csv.DictReader(open(f, encoding='utf-8', newline=''))) for f in tmp_path.glob('*.csv')
    }
    o = given.observed
    for kind, members, groups in (('domain', o.domain, o.domains), ('type', o.type, TYPES)):
        for layer in o.layers:
            counts, totals = Counter(), Counter()
            for at in range(len(o.tokens)):
                totals[groups[members[at]]] += 1
                for e in layer.expert_ids[at]:
                    counts[groups[members[at]], int(e)] += 1
            own = [r for r in rows[f'{kind}s'] if r['layer'] == layer.name]
            assert len(own) == len(totals) * 7
            for r in own:
                assert int(r['tokens']) == totals[r[kind]]
                assert float(r['fraction']) == pytest.approx(
                    counts[r[kind], int(r['expert'])] / (2 * totals[r[kind]]), abs=1e-5
                )
    together = Counter()
    for pair in o.layers[1].expert_ids.tolist():
        together[max(pair), min(pair)] += 1
    found = {
        (int(r['expert']), int(r['other'])): float(r['fraction'])
        for r in rows['coactivation']
        if r['layer'] == 'block 1'
    }
    assert found == pytest.approx({k: v / 300 for k, v in together.items()}, abs=1e-5)
    assert (
        len(rows['drift']) == 2 * 7
        and len(rows['keys']) == 2 * 7
        and len(rows['training']) == 3 * 2 * (7 + 1)
    )
    assert [(r['step'], r['alarm']) for r in rows['alarms']] == [('6', 'warning'), ('7', 'collapse')]


def test_favourite_tokens_are_those_that_weigh_most_beyond_their_share():
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


def test_orders():
    fractions = np.array([[0.0, 0.6, 0.1, 0.3, 0.0], [0.0, 0.1, 0.7, 0.2, 0.0]])
    assert by_favour(fractions, fractions.mean(0)).tolist() == [1, 3, 2, 0, 4]
    alike = np.array([[1, 0, 0.5, 0], [0, 1, 0.4, 0.9], [0.5, 0.4, 1, 0], [0, 0.9, 0, 1]])
    assert chain(alike).tolist() == [1, 3, 0, 2]
