"""Tables, counted again."""

import csv
from collections import Counter

import pytest

from lmplay.routing.page import write
from lmplay.routing.token_types import TYPES


def test_tables_count_what_was_routed(report, tmp_path):
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
        if r['layer'] == 'layer 1'
    }
    assert found == pytest.approx({k: v / 300 for k, v in together.items()}, abs=1e-5)
    assert (
        len(rows['drift']) == 2 * 7
        and len(rows['keys']) == 2 * 7
        and len(rows['training']) == 3 * 2 * (7 + 1)
    )
    assert [(r['step'], r['alarm']) for r in rows['alarms']] == [('6', 'warning'), ('7', 'collapse')]
