"""The search for a learning rate: its documents, its choice, its words."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmplay.compare.tuning import FACTORS, SEEDS, check_text, choose, for_tuning, part_of, search_sentence
from lmplay.errors import UserError


@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(0, 2**64 - 1)), min_size=1, max_size=60))
def test_the_split_is_by_document_and_the_same_in_any_order(documents):
    domains, hashes = np.array([d for d, _ in documents]), np.array([h for _, h in documents], np.uint64)
    chosen = for_tuning(domains, hashes)
    order = np.random.default_rng(0).permutation(len(documents))
    assert (for_tuning(domains[order], hashes[order]) == chosen[order]).all()
    for domain in set(domains.tolist()):
        own = domains == domain
        groups = len(set(hashes[own].tolist()))
        assert len(set(hashes[own & chosen].tolist())) == (groups + 1) // 3  # about a third of each domain
        assert not set(hashes[own & chosen].tolist()) & set(hashes[own & ~chosen].tolist())


def test_verdict_and_search_share_no_document(baseline):
    tuning, verdict = (part_of(baseline[0], tuning=part) for part in (True, False))
    both = np.concatenate([r.documents['hash'] for r in (tuning, verdict)])
    assert sorted(both.tolist()) == sorted(baseline[0].documents['hash'].tolist())
    assert tuning.loss() != verdict.loss() and 0 < tuning.loss() < 10


def test_too_little_text_is_refused():
    domains, hashes = np.full(40, 'a'), np.arange(40, dtype=np.uint64)
    check_text(domains, hashes, np.full(40, 9))
    with pytest.raises(UserError, match='for tuning would count as 7.0'):
        check_text(domains[:20], hashes[:20], np.full(20, 9))


def shifted(runs, by):
    return [
        replace(r, documents=r.documents | {'loss': r.documents['loss'] + own * r.documents['tokens']})
        for r, own in zip(runs, by)
    ]


def test_another_rate_is_chosen_only_where_it_is_told_apart(baseline):
    clear = shifted(baseline, (-0.30, -0.31, -0.29))
    log = choose('mine', {0.5: clear, 1.0: baseline, 2.0: [*baseline[:2], None]}, 'loss')
    assert log['factor'] == log['best'] == 0.5 and log['told_apart']
    assert log['points'][0]['high'] < 0 and log['points'][2]['loss'] is None
    assert "0.003 (0.5 times the plan's) did best." in search_sentence('mine', log, [0.003])
    noisy = shifted(baseline, (-0.30, -0.02, -0.01))
    log = choose('mine', {0.5: noisy, 1.0: baseline, 2.0: baseline}, 'loss')
    assert log['best'] == 0.5 and log['factor'] == 1.0 and not log['told_apart']
    assert log['points'][0]['sd'] > 0 and 'do not tell it apart from' in search_sentence('mine', log, [0.006])
    log = choose('mine', {0.25: clear, 1.0: [None, *baseline[1:]], 2.0: baseline}, 'loss')
    assert log['factor'] == 0.25 and 'at the edge' in search_sentence('mine', log, [0.001])
    with pytest.raises(UserError, match='No learning rate worked'):
        choose('mine', {0.5: [None] * 3, 1.0: [*baseline[:2], None]}, 'loss')


def test_equal_effort_on_other_seeds():
    assert len(SEEDS) >= 3 and min(SEEDS) > 1000 and 1.0 in FACTORS
