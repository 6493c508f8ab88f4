"""Verdicts on experiments whose truth is known: equal ones, a wider one, one without positions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lmplay.compare.judge import compare_pair, judge, noise
from lmplay.compare.statistics import paired_t, t_quantile


def test_identical_but_for_its_name_is_within_noise(trained, baseline):
    findings = judge({'gpt2ish': baseline, 'same': [trained('same', 'same', seed) for seed in range(3)]})
    entry = findings['experiments'][1]
    assert entry['comparison']['verdict'] == 'within noise' and entry['comparison']['mean'] == 0
    assert 'identical' in entry['sentence'] and not findings['warnings']
    assert {r['setting'] for r in findings['settings']} <= {'experiment', 'lmplay commit'}


def test_doubled_width_is_better_and_no_positions_are_worse(trained, baseline, wide):
    findings = judge(
        {
            'gpt2ish': baseline,
            'wide': wide,
            'nopos': [trained('nopos', 'nopos', seed) for seed in range(3)],
        }
    )
    wide, nopos = findings['experiments'][1:]
    assert wide['comparison']['verdict'] == 'better' and wide['comparison']['high'] < 0, wide['sentence']
    assert nopos['comparison']['verdict'] == 'worse' and nopos['comparison']['low'] > 0, nopos['sentence']
    assert (
        wide['unequal']['total_parameters'] == pytest.approx(2.8, abs=0.1)
        and 'times the FLOPs per token' in wide['sentence']
    )
    assert any('not matched' in w for w in findings['warnings'])
    assert findings['alpha'] == 0.025  # two comparisons share the 5 %
    for row in findings['domains']:
        assert row['experiments']['nopos']['difference'] > 0
    assert any(r['setting'] == 'model.embed_dim' for r in findings['settings'])


def test_one_seed_gives_no_verdict_and_says_so(baseline, wide):
    findings = judge({'gpt2ish': baseline[:1], 'wide': wide[:1]})
    entry = findings['experiments'][1]
    assert entry['comparison']['verdict'] == 'no verdict' and entry['comparison']['documents'][1] < 0
    assert 'One seed gives no verdict' in entry['sentence'] and findings['noise']['sd'] is None


def simulated(baseline, rng, n, *, shift=0.0):
    """n pairs of runs as if trained again: the recorded losses, with noise of the recorded size from seed to
    seed and, in each document, of the size at which the recorded seeds differ there. Pairs share no luck: the
    hard case."""
    recorded = np.stack([r.documents['loss'] for r in baseline])
    tokens = baseline[0].documents['tokens']
    totals = recorded.sum(1) / tokens.sum()
    residual = (recorded / tokens - totals[:, None]).std(0, ddof=1)

    def runs(extra):
        made = []
        for seed in range(n):
            level = rng.normal(totals.mean() + extra, totals.std(ddof=1)) - totals.mean()
            loss = recorded.mean(0) + tokens * (level + rng.normal(0, residual))
            run = baseline[0]
            made.append(
                replace(run, summary=run.summary | {'seed': seed}, documents=run.documents | {'loss': loss})
            )
        return made

    return runs(0.0), runs(shift)


@pytest.mark.parametrize('n', [2, 3, 5])
def test_equal_experiments_are_within_noise_in_19_of_20_simulated_comparisons(baseline, n):
    """4,000 comparisons of equals: at least 95 %, up to three standard errors of the simulation (1 %)."""
    rng, trials = np.random.default_rng(n), 4000
    verdicts = []
    for _ in range(trials):
        ours, theirs = simulated(baseline, rng, n)
        if paired_t([b.loss('loss') - a.loss('loss') for a, b in zip(ours, theirs)]).p > 0.05:
            verdicts.append('within noise')  # whatever the documents say; see test_statistics
        else:
            verdicts.append(compare_pair(ours, theirs, 'loss', 0.05)['verdict'])
    within = verdicts.count('within noise') / trials
    print(f'{n} seeds: within noise in {within:.1%}')
    assert within >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials)
    assert verdicts.count('better') and verdicts.count('worse') and 'no verdict' not in verdicts


def test_a_difference_of_the_detectable_size_is_found_about_as_often_as_promised(baseline):
    rng = np.random.default_rng(0)
    shift = noise('gpt2ish', baseline, 'loss')['detectable']
    verdicts = [
        compare_pair(*simulated(baseline, rng, 3, shift=shift), 'loss', 0.05)['verdict'] for _ in range(100)
    ]
    assert verdicts.count('better') == 0 and 0.6 < verdicts.count('worse') / 100 <= 0.95


def test_the_noise_is_the_sample_deviation(baseline):
    losses = [r.loss('loss') for r in baseline]
    measured = noise('gpt2ish', baseline, 'loss')
    assert measured['sd'] == pytest.approx(np.std(losses, ddof=1))
    assert measured['detectable'] == pytest.approx(
        (t_quantile(0.975, 2) + t_quantile(0.8, 2)) * measured['sd'] * math.sqrt(2 / 3)
    )
    assert noise('gpt2ish', baseline[:1], 'loss')['detectable'] is None


def test_losses_that_are_not_finite(baseline):
    def broken(run):
        return replace(run, documents=run.documents | {'loss': run.documents['loss'] * np.nan})

    other = [broken(baseline[0]), *baseline[1:]]
    entry = judge({'a': baseline, 'b': other})['experiments'][1]
    assert entry['comparison']['verdict'] == 'diverged' and 'diverged on seed 0' in entry['sentence']
    entry = judge({'a': other, 'b': baseline})['experiments'][1]
    assert entry['comparison']['verdict'] == 'no verdict'


def test_seeds_of_one_side_only_are_left_out_and_said(trained, baseline):
    findings = judge({'gpt2ish': baseline, 'same': [trained('same', 'same', seed) for seed in range(3)][:2]})
    assert findings['experiments'][1]['comparison']['seeds'] == [0, 1] and any(
        'left out' in w for w in findings['warnings']
    )


def test_a_few_long_documents_are_warned_of(baseline):
    tokens = baseline[0].documents['tokens'].copy()
    tokens[:2] = 1e6
    runs = [replace(r, documents=r.documents | {'tokens': tokens}) for r in baseline]
    assert any('as if there were 2.0' in w for w in judge({'a': runs, 'b': runs})['warnings'])


def test_routing_is_found_under_its_older_and_its_newer_name(baseline):
    load = [[0.25, 0.75]]

    def routed(key):
        last = baseline[0].records[-1] | {'kind': 'validation', key: load}
        return replace(baseline[0], records=[*baseline[0].records[:-1], baseline[0].validations[-1] | last])

    for key in ('expert_load', 'model/expert_load'):
        findings = judge({'dense': baseline[:1], 'routed': [routed(key)]})
        assert findings['routing'] == {'routed': load}
