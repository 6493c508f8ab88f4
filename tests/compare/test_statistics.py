"""The statistics against published tables and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmplay.compare.statistics import (
    Noise,
    detectable,
    document_noise,
    effective_documents,
    paired,
    sd_range,
    seeds_needed,
    t_quantile,
    verdict,
)
from tests.compare.simulation import DOCUMENTS, SEEDS, SIZES, told_apart

# Quantiles of Student's t as printed in the usual tables.
TABLE = {
    1: (3.078, 6.314, 12.706, 31.821, 63.657),
    2: (1.886, 2.920, 4.303, 6.965, 9.925),
    3: (1.638, 2.353, 3.182, 4.541, 5.841),
    4: (1.533, 2.132, 2.776, 3.747, 4.604),
    9: (1.383, 1.833, 2.262, 2.821, 3.250),
    30: (1.310, 1.697, 2.042, 2.457, 2.750),
    120: (1.289, 1.658, 1.980, 2.358, 2.617),
}


@pytest.mark.parametrize('df', TABLE)
def test_t_quantiles_are_those_of_the_tables(df):
    for p, expected in zip((0.90, 0.95, 0.975, 0.99, 0.995), TABLE[df]):
        assert t_quantile(p, df) == pytest.approx(expected, abs=6e-4)
        assert t_quantile(1 - p, df) == pytest.approx(-expected, abs=6e-4)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=3, unique=True))
def test_p_values_have_closed_forms_for_two_and_three_seeds(differences):
    """With one degree of freedom Student's t is Cauchy's distribution; two have a closed form as well."""
    result = paired(differences)
    assume(result.sd > 1e-6)
    t = abs(result.mean) / (result.sd / math.sqrt(result.n))
    if result.n == 2:
        expected = 2 * math.atan2(1, t) / math.pi
    else:
        expected = 1 - t / math.sqrt(2 + t * t)
    assert result.p == pytest.approx(expected, abs=1e-9)


def test_paired_t_by_hand():
    # differences 1, 2, 3, 4: mean 2.5, sd 1.29099, t = 3.87298, p = 0.030466 (two-sided, df 3)
    result = paired([1, 2, 3, 4])
    assert result.mean == 2.5 and result.sd == pytest.approx(1.2909944)
    assert result.p == pytest.approx(0.030466, abs=1e-6)
    assert (result.low, result.high) == pytest.approx(
        (2.5 - 3.182446 * 0.6454972, 2.5 + 3.182446 * 0.6454972), abs=1e-5
    )


def test_equal_losses_and_single_seeds():
    same = paired([0.0, 0.0, 0.0], Noise(0.0, 9))
    assert same.p == 1 and same.low == same.high == 0 and verdict(same.low, same.high) == 'within noise'
    alike = paired([-0.1, -0.1], Noise(0.0, 9))
    assert alike.p == 0 and verdict(alike.low, alike.high) == 'better'
    assert paired([0.3]).p is None and verdict(paired([0.3]).low, paired([0.3]).high) == 'no verdict'


def test_the_interval_is_that_of_its_parts():
    """Without noise of documents it is Student's; without noise of seeds it is that of the documents."""
    seeds = [0.10, 0.14, 0.12]
    assert paired(seeds, Noise(0.0, 50)) == paired(seeds)
    documents = paired([0.1, 0.1, 0.1], Noise(0.04**2, 24))
    assert documents.high - 0.1 == pytest.approx(2.0639 * 0.04, abs=1e-5)
    both = paired(seeds, Noise(0.04**2, 24))
    error = np.std(seeds, ddof=1) / math.sqrt(3)
    assert both.high - both.mean == pytest.approx(math.hypot(4.302653 * error, 2.063899 * 0.04), abs=1e-6)


@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=6),
    st.floats(0, 1),
    st.floats(1, 200),
    st.sampled_from([0.05, 0.025, 0.01]),
)
def test_p_agrees_with_the_interval(differences, variance, df, alpha):
    found = paired(differences, Noise(variance, df), alpha=alpha)
    assume(min(abs(found.low), abs(found.high)) > 1e-9)
    assert (found.p < alpha) == (verdict(found.low, found.high) != 'within noise')


def test_the_noise_of_documents_is_the_formula():
    """SE^2 of equal documents is their sample variance over n; of unequal ones n is the effective number."""
    rng = np.random.default_rng(0)
    d, groups = rng.normal(0.1, 1, 12), np.arange(12)
    equal = np.full(12, 7.0)
    found = document_noise(np.zeros(12), d * equal, (equal, equal), groups)
    assert found.variance == pytest.approx(d.var(ddof=1) / 12) and found.df == pytest.approx(11)
    tokens = rng.uniform(50, 100, 40)
    d, w, base = rng.normal(0.1, 1, 40), tokens / tokens.sum(), rng.normal(3, 1, 40)
    n = (w**2).sum() ** 2 / (w**4).sum()
    found = document_noise(base * tokens, (base + d) * tokens, (tokens, tokens), np.arange(40))
    assert found.variance == pytest.approx(n / (n - 1) * (w**2 * (d - w @ d) ** 2).sum())
    assert found.df == pytest.approx(n - 1) and 30 < n < effective_documents(tokens) < 40


def test_documents_of_one_group_count_as_one():
    rng = np.random.default_rng(0)
    d, tokens = rng.normal(0, 1, 20), np.full(20, 5.0)
    twice = [np.repeat(v, 2) for v in (d * tokens, tokens, np.arange(20))]
    split = document_noise(np.zeros(40), twice[0], (twice[1], twice[1]), twice[2])
    whole = document_noise(np.zeros(20), d * tokens, (tokens, tokens), np.arange(20))
    assert split.variance == pytest.approx(whole.variance) and split.df == pytest.approx(whole.df)


@pytest.mark.parametrize('n, huge', [(9, 1), (1, 1), (500, 1e6)])
def test_below_ten_documents_there_is_no_interval(n, huge):
    tokens = np.full(n, 100.0)
    tokens[0] *= huge
    assert document_noise(np.zeros(n), tokens, (tokens, tokens), np.arange(n)) is None
    ten = np.full(10, 100.0)
    assert document_noise(np.zeros(10), ten, (ten, ten), np.arange(10)) is not None


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('seeds', SEEDS)
def test_equal_experiments_are_told_apart_in_at_most_1_of_20_comparisons(size, seeds):
    """Over new seeds and new text at once, up to three standard errors of the simulation."""
    trials = 700
    for n in DOCUMENTS:
        for share, domains in ((0.0, True), (1.0, False), (10.0, True)):
            rng = np.random.default_rng([seeds, n])
            found = list(told_apart(rng, seeds, n, trials, size=size, seed_share=share, domains=domains))
            alarms = np.count_nonzero(found) / trials
            assert alarms <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials), (n, share, domains)


@pytest.mark.parametrize('shift, verdict', [(-1.2, -1), (1.2, 1)])
def test_known_improvements_and_known_harm_are_found(shift, verdict):
    world = dict(size='capped', domains=True, seed_share=0.3, shift=shift)
    found = list(told_apart(np.random.default_rng(0), 3, 60, 200, **world))
    assert found.count(verdict) > 190 and found.count(-verdict) == 0


@pytest.mark.parametrize('effect', [0.5, 1.0, 2.0])
def test_the_seeds_needed_are_needed_and_enough(effect):
    """Power by simulation: with so many seeds the difference is found in about 80 % of comparisons."""
    n = seeds_needed(effect, 1.0)
    rng = np.random.default_rng(0)

    def power(n):
        d = rng.normal(effect, 1.0, (4000, n))
        t = d.mean(1) / (d.std(1, ddof=1) / math.sqrt(n))
        return (abs(t) > t_quantile(0.975, n - 1)).mean()

    assert 0.77 <= power(n) <= 0.93
    assert n < 4 or power(n - 1) < 0.82
    assert detectable(1.0, n) <= effect
    assert seeds_needed(1e-6, 1.0) is None and seeds_needed(0.0, 1.0) is None


def test_no_number_of_seeds_makes_up_for_too_little_text():
    assert seeds_needed(0.1, 0.05) is not None and seeds_needed(0.1, 0.05, Noise(0.1**2, 30)) is None
    assert seeds_needed(0.1, 0.05, Noise(0.01**2, 30)) >= seeds_needed(0.1, 0.05)


@pytest.mark.parametrize('n', [2, 3, 10])
def test_the_range_of_the_deviation_holds_in_4_of_5_cases(n):
    sds = np.random.default_rng(n).normal(0, 1, (4000, n)).std(1, ddof=1)
    inside = [low <= 1 <= high for low, high in (sd_range(sd, n) for sd in sds)]
    assert 0.78 <= np.mean(inside) <= 0.82
