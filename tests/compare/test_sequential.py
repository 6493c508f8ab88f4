"""Rules that add seeds: their constants, their errors by simulation, what they say and when they stop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmplay.compare.judge import compare_pair, judge
from lmplay.compare.report import write_report
from lmplay.compare.sequential import Sequential, constant_level, open_critical, parse_seeds
from lmplay.compare.statistics import skewness, t_quantile
from lmplay.errors import UserError
from tests.compare.sequential_simulation import NOISES, fixed_power, peeking, stops
from tests.compare.test_judge import simulated

RULES = (Sequential(20), Sequential(None))
TRIALS = 20_000


def alarms(rule, trials=TRIALS, **world):
    found, _ = stops(np.random.default_rng(3), trials, rule, **world)
    return np.count_nonzero(found) / trials


def limit(rate, trials=TRIALS):
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


def test_the_level_of_the_default_and_of_several_experiments():
    assert constant_level(0.05, 20) == 0.0075
    assert constant_level(0.05, 20) < constant_level(0.05, 5) < 0.05
    assert constant_level(0.025, 20) < 0.0075 / 2 < 2 * constant_level(0.025, 20)


@given(st.integers(4, 500), st.sampled_from([0.05, 0.025, 0.01]))
def test_the_open_rule_inverts_its_e_process(n, alpha):
    t = open_critical(alpha, n)
    if math.isinf(t):
        return
    g, q = 1 + 4 * n, t * t / (n - 1)
    log_factor = -0.5 * math.log(g) + n / 2 * (math.log1p(q) - math.log1p(q / g))
    assert log_factor == pytest.approx(-math.log(alpha), abs=1e-6)
    assert open_critical(alpha / 2, n) > t


@pytest.mark.parametrize('rule', RULES, ids=str)
@pytest.mark.parametrize('alpha', [0.05, 0.0125])
def test_equal_experiments_are_told_apart_in_at_most_1_of_20_looking_after_every_seed(rule, alpha):
    assert alarms(rule, alpha=alpha) <= limit(alpha)
    for documents in (0.1, 0.5, 3.0):  # their noise beside that of a seed
        assert alarms(rule, alpha=alpha, documents=documents) <= limit(alpha), documents
    for noise in ('heavy tails (t, 3 df)', 'as recorded, either sign'):
        assert alarms(rule, alpha=alpha, noise=NOISES[noise]) <= limit(alpha), noise


def test_plain_t_tests_after_every_seed_and_skewed_noise_do_not_keep_the_rate():
    """The negative controls: the simulation sees an error rate that is not kept."""
    assert peeking(np.random.default_rng(0), TRIALS) > 0.2
    assert all(alarms(rule, noise=NOISES['skewed (exponential)']) > 0.1 for rule in RULES)


@pytest.mark.parametrize('effect, expected', [(1, 10.8), (2, 5.6), (4, 3.9), (8, 3.2)])
def test_the_seeds_it_takes(effect, expected):
    found, seeds = stops(np.random.default_rng(0), 5000, RULES[0], effect=effect)
    power = (found > 0).mean()
    assert seeds.mean() == pytest.approx(expected, abs=0.25) and (found < 0).mean() < 0.001
    assert power > 0.93
    # a fixed design of the same power takes more, or as many as the first look has
    fixed = next(n for n in range(2, 60) if fixed_power(np.random.default_rng(1), 5000, n, effect) >= power)
    assert seeds.mean() < max(fixed, 3.5)


def test_the_smallest_effect_ends_what_would_not_end():
    found, seeds = stops(np.random.default_rng(0), 2000, Sequential(None, 1.5))
    assert seeds.mean() < 25 and (found == 0).mean() > 0.95
    wrong, _ = stops(np.random.default_rng(0), TRIALS, Sequential(20, 1.0), effect=1.0)
    known_alike = (wrong == 0) & (_ < 20)
    assert known_alike.mean() <= limit(0.05)  # an effect as large as that is not called smaller


@pytest.mark.parametrize(
    'given_, message',
    [
        ('auto:', 'given: auto:'),
        ('auto:3', 'a maximum from 4 to 100'),
        ('auto:500', 'a maximum from 4 to 100'),
        ('auto:many', 'auto:MAX'),
        ('many', 'a whole number'),
        ('-1', 'from 1 to 1000'),
    ],
)
def test_seeds_that_are_refused(given_, message):
    with pytest.raises(UserError, match=message):
        parse_seeds(given_)


def test_seeds_that_are_understood():
    assert parse_seeds('7') == parse_seeds(7) == 7
    assert parse_seeds('auto') == Sequential(20) and parse_seeds('auto:open', 0.1) == Sequential(None, 0.1)
    assert str(parse_seeds('auto:8')) == 'auto:8'
    with pytest.raises(UserError, match='goes with --seeds auto'):
        parse_seeds('3', 0.1)
    with pytest.raises(UserError, match='above 0'):
        parse_seeds('auto', -1.0)


def test_skew_is_tested_where_it_can_be():
    rng = np.random.default_rng(0)
    assert skewness(rng.normal(0, 1, 7)) is None and skewness(np.zeros(9)) is None
    assert skewness(rng.exponential(1, 30))[1] < 0.01 < skewness(rng.normal(0, 1, 30))[1]


@pytest.fixture(name='pairs')
def _pairs(baseline):
    def pairs(n, shift, seed=0):
        return simulated(baseline, np.random.default_rng(seed), n, shift=shift)

    return pairs


def test_a_rule_shows_its_looks_and_why_it_ended(pairs):
    rule = Sequential(20)
    found = compare_pair(*pairs(4, 2.0), 'loss', 0.05, design=rule)
    sequence = found['sequence']
    assert found['verdict'] == 'worse' and sequence['ended'] == 'difference' and found['p'] is None
    assert [look['seeds'] for look in sequence['looks']] == [3, 4] and sequence['level'] == 0.0075
    fixed = compare_pair(*pairs(4, 2.0), 'loss', 0.05)
    assert found['low'] < fixed['low'] < fixed['high'] < found['high']
    # the interval over seeds is the one that the rule promises
    half = t_quantile(1 - 0.00375, 3) * found['sd'] / 2
    assert found['over_seeds'][1] - found['mean'] == pytest.approx(half)


@pytest.mark.parametrize('rule, ended', [(Sequential(20), None), (Sequential(5), 'maximum')])
def test_what_is_not_known_goes_on_to_the_maximum(pairs, rule, ended):
    found = compare_pair(*pairs(5, 0.0), 'loss', 0.05, design=rule)
    assert found['verdict'] == 'within noise' and found['sequence']['ended'] == ended


def test_no_difference_that_matters(pairs):
    found = compare_pair(*pairs(5, 0.0), 'loss', 0.05, design=Sequential(20, 5.0))
    assert found['sequence']['ended'] == 'equivalence'


def test_more_seeds_are_not_trained_where_the_text_is_the_limit(pairs):
    rule = Sequential(20)
    found = compare_pair(*pairs(3, 0.0), 'loss', 0.05, design=rule) | {'low': -1, 'high': 1}
    assert rule.ended(found | {'over_seeds': (-0.1, 0.1), 'documents': (-1, 1)}) == 'text'
    assert rule.ended(found | {'over_seeds': (-0.9, 0.9), 'documents': (-1, 1)}) is None


def test_the_page_says_so_far_until_it_is_known(pairs, tmp_path):
    for shift, n, rule, words in (
        (0.0, 3, Sequential(20), 'So far: '),
        (0.0, 4, Sequential(20, 5.0), 'differ by less than 5 nats per token'),
    ):
        ours, theirs = pairs(n, shift)
        findings = judge({'gpt2ish': ours, 'mine': theirs}, design=rule)
        findings |= {'title': 't', 'plan': 'p', 'budget': None, 'tuning': None}
        assert words in findings['experiments'][1]['sentence']
        text = write_report(findings, {'gpt2ish': ours, 'mine': theirs}, tmp_path).read_text()
        assert words in text and 'one look after each seed' in text
        assert ('so far' in text.split('</section>', 1)[1]) == (words == 'So far: ')


def test_skewed_differences_are_told(pairs):
    ours, theirs = pairs(12, 0.0)
    for run, extra in zip(theirs, [0.0] * 11 + [10.0]):
        run.documents['loss'] = run.documents['loss'] + extra * run.documents['tokens']
    findings = judge({'gpt2ish': ours, 'mine': theirs}, design=Sequential(20))
    assert any('are skewed over seeds' in w for w in findings['warnings'])
    assert not any('skewed' in w for w in judge({'gpt2ish': ours, 'mine': theirs})['warnings'])
