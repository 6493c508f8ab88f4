"""Verdicts on experiments whose truth is known: equal ones, a wider one, one without positions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lmplay.compare.judge import compare_pair, judge, noise
from lmplay.compare.statistics import t_quantile


def test_identical_but_for_its_name_is_within_noise(trained, baseline):
    findings = judge({'gpt2ish': baseline, 'same': [trained('same', 'same', seed) for seed in range(3)]})
    entry = findings['experiments'][1]
    assert entry['comparison']['verdict'] == 'within noise' and entry['comparison']['mean'] == 0
    assert 'identical' in entry['sentence'] and not findings['warnings']
    assert {r['setting'] for r in findings['settings']} <= {'experiment', 'lmplay commit'}


def test_doubled_width_is_better_and_no_positions_are_worse(trained, baseline, wide):
    findings = judge(
        {
            'gpt2ish': [*baseline, *(trained('baseline', 'gpt2ish', seed) for seed in (3, 4))],
            'wide': [*wide, *(trained('wide', 'gpt2ish', seed, '--embed-dim', '64') for seed in (3, 4))],
            'nopos': [trained('nopos', 'nopos', seed) for seed in range(5)],
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
    """n pairs of runs as if trained again and evaluated on other text: documents are drawn again from the
    recorded ones, and their losses get noise of the recorded size, from seed to seed and in each document."""
    recorded = np.stack([r.documents['loss'] for r in baseline])
    tokens = baseline[0].documents['tokens']
    totals = recorded.sum(1) / tokens.sum()
    residual = (recorded / tokens - totals[:, None]).std(0, ddof=1)
    drawn = rng.integers(0, len(tokens), len(tokens))
    documents = {k: v[drawn] for k, v in baseline[0].documents.items()}
    documents['hash'] = np.arange(len(tokens), dtype=np.uint64)
    taste = rng.normal(0, residual[drawn])  # what the change does to these documents, with any seed

    def runs(extra, own):
        made = []
        for seed in range(n):
            level = rng.normal(totals.mean() + extra, totals.std(ddof=1)) - totals.mean()
            noise = own + rng.normal(0, residual[drawn])
            loss = recorded.mean(0)[drawn] + tokens[drawn] * (level + noise)
            run = baseline[0]
            made.append(
                replace(run, summary=run.summary | {'seed': seed}, documents=documents | {'loss': loss})
            )
        return made

    return runs(0.0, 0.0), runs(shift, taste)


@pytest.mark.parametrize('n', [2, 3, 5])
def test_equal_experiments_are_within_noise_in_19_of_20_simulated_comparisons(baseline, n):
    """At least 95 %, up to three standard errors of the simulation."""
    rng, trials = np.random.default_rng(n), 600
    verdicts = [compare_pair(*simulated(baseline, rng, n), 'loss', 0.05)['verdict'] for _ in range(trials)]
    assert verdicts.count('within noise') / trials >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials)
    assert 'no verdict' not in verdicts


def test_a_difference_of_the_detectable_size_is_found_about_as_often_as_promised(baseline):
    rng = np.random.default_rng(0)
    shift = noise('gpt2ish', baseline, 'loss')['detectable']
    verdicts = [
        compare_pair(*simulated(baseline, rng, 3, shift=shift), 'loss', 0.05)['verdict'] for _ in range(100)
    ]
    assert verdicts.count('better') == 0 and 0.5 < verdicts.count('worse') / 100 <= 0.95


def test_the_noise_is_the_sample_deviation(baseline):
    losses = [r.loss('loss') for r in baseline]
    measured = noise('gpt2ish', baseline, 'loss')
    assert measured['sd'] == pytest.approx(np.std(losses, ddof=1))
    assert measured['detectable'] == pytest.approx(
        (t_quantile(0.975, 2) + t_quantile(0.8, 2)) * measured['sd'] * math.sqrt(2 / 3)
    )
    assert noise('gpt2ish', baseline[:1], 'loss')['detectable'] is None


def broken(run):
    return replace(run, documents=run.documents | {'loss': run.documents['loss'] * np.nan})


def ran_away(run):
    return replace(run, documents=run.documents | {'loss': run.documents['loss'] * 1e6})


def mostly_skipped(run):
    return replace(run, summary=run.summary | {'skipped_steps': run.summary['steps'] * 3 // 4})


@pytest.mark.parametrize('how', [broken, ran_away, mostly_skipped])
def test_a_run_that_diverged_is_shown_and_there_is_no_verdict(baseline, wide, how):
    other = [how(wide[0]), *wide[1:]]
    entry = judge({'a': baseline, 'b': other})['experiments'][1]
    assert entry['comparison']['verdict'] == 'diverged' and 'diverged on seed 0' in entry['sentence']
    assert entry['losses']['0'] is None and entry['losses']['1'] is not None
    assert entry['mean'] is entry['sd'] is entry['accuracy'] is entry['comparison']['mean'] is None
    findings = judge({'a': other, 'b': baseline, 'c': baseline})
    assert {e['comparison']['verdict'] for e in findings['experiments'][1:]} == {'no verdict'}
    assert findings['noise']['sd'] is None
    unpaired = judge({'a': baseline[:2], 'b': [*wide[:2], how(wide[2])]})['experiments'][1]
    assert unpaired['comparison']['verdict'] == 'diverged'


@pytest.mark.parametrize('who', ['a', 'b'])
def test_survivors_of_runs_that_stopped_early_get_no_verdict(baseline, wide, who):
    runs = {'a': baseline, 'b': wide}
    findings = judge(runs | {who: runs[who][:2]}, stopped={who: {2: 'the loss is not finite'}})
    entry = findings['experiments'][1]
    assert entry['comparison']['verdict'] == 'no verdict' and entry['comparison']['mean'] is None
    assert f'{who} stopped early on seed 2' in entry['sentence']
    stopped = {e['label']: e for e in findings['experiments']}[who]
    assert stopped['stopped'] == {'2': 'the loss is not finite'} and stopped['mean'] is None
    assert not any('difference' in e for row in findings['domains'] for e in row['experiments'].values())


def rewritten(runs, **columns):
    return [replace(r, documents=r.documents | columns) for r in runs]


def test_few_documents_carry_no_interval(baseline, wide):
    """Neither a verdict on the whole text, nor an interval in one of its domains."""
    domain = baseline[0].documents['domain'].copy()
    domain[:] = 'many'
    domain[:9] = 'few'
    findings = judge({'a': rewritten(baseline, domain=domain), 'b': rewritten(wide, domain=domain)})
    few, many = findings['domains']
    assert few['effective'] < 10 < many['effective'] and few['alpha'] == 0.025
    assert few['experiments']['b']['low'] is None and few['experiments']['b']['difference'] < 0
    assert many['experiments']['b']['low'] < many['experiments']['b']['high']
    tokens = baseline[0].documents['tokens'].copy()
    tokens[:2] *= 1000
    findings = judge({'a': rewritten(baseline, tokens=tokens), 'b': rewritten(wide, tokens=tokens)})
    assert findings['experiments'][1]['comparison']['verdict'] == 'no verdict'
    assert 'fewer than 10 documents' in findings['experiments'][1]['sentence']
    assert any('count as' in w for w in findings['warnings'])


def test_a_domain_without_targets_has_no_loss(baseline, wide):
    domain, tokens = (baseline[0].documents[k].copy() for k in ('domain', 'tokens'))
    domain[:12] = 'none'
    tokens[:12] = 0
    runs = {k: rewritten(v, domain=domain, tokens=tokens) for k, v in {'a': baseline, 'b': wide}.items()}
    (row,) = (row for row in judge(runs)['domains'] if row['domain'] == 'none')
    assert row['experiments'] == {'a': {'loss': None}, 'b': {'loss': None}}


def test_two_seeds_are_fewer_than_recommended(baseline, wide):
    findings = judge({'a': baseline[:2], 'b': wide[:2]})
    assert findings['seeds'] == 2 < findings['recommended_seeds']
    assert any('At least 3 seeds are recommended; compared here: b 2' in w for w in findings['warnings'])


def test_a_busy_machine_is_noticed(baseline):
    busy = [replace(r, summary=r.summary | {'load': 3.5}, environment={'load': 0.5}) for r in baseline]
    idle = [replace(r, summary=r.summary | {'load': 1.0}, environment={'load': 0.5}) for r in baseline]
    old = [replace(r, summary=r.summary | {'load': None}, environment={}) for r in baseline]
    load = judge({'a': busy, 'b': idle, 'c': old})['load']
    assert load['a'] == {'most': 3.5, 'busy': True} and load['b'] == {'most': 1.0, 'busy': False}
    assert load['c'] == {'most': None, 'busy': False}
    (stage,) = baseline[0].stage_settings.values()
    timed = {'stages': [stage | {'seconds': 5.0}]}
    sides = [[replace(r, settings=r.settings | timed) for r in side] for side in (busy, idle)]
    found = [w for w in judge(dict(zip('ab', sides)))['warnings'] if 'on a busy machine' in w]
    assert len(found) == 1 and found[0].startswith('a was trained for a fixed time')


def test_seeds_of_one_side_only_are_left_out_and_said(trained, baseline):
    findings = judge({'gpt2ish': baseline, 'same': [trained('same', 'same', seed) for seed in range(3)][:2]})
    assert findings['experiments'][1]['comparison']['seeds'] == [0, 1] and any(
        'left out' in w for w in findings['warnings']
    )


def test_routing_is_found_under_its_older_and_its_newer_name(baseline):
    load = [[0.25, 0.75]]

    def routed(key):
        last = baseline[0].records[-1] | {'kind': 'validation', key: load}
        return replace(baseline[0], records=[*baseline[0].records[:-1], baseline[0].validations[-1] | last])

    for key in ('expert_load', 'model/expert_load'):
        findings = judge({'dense': baseline[:1], 'routed': [routed(key)]})
        assert findings['routing'] == {'routed': load}
