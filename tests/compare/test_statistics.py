"""The statistics against published tables and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmplay.compare.statistics import (
    bootstrap,
    detectable,
    paired_t,
    seeds_needed,
    t_quantile,
    verdict,
)

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
    result = paired_t(differences)
    assume(result.sd > 1e-6)
    t = abs(result.mean) / (result.sd / math.sqrt(result.n))
    if result.n == 2:
        expected = 2 * math.atan2(1, t) / math.pi
    else:
        expected = 1 - t / math.sqrt(2 + t * t)
    assert result.p == pytest.approx(expected, abs=1e-9)


def test_paired_t_by_hand():
    # differences 1, 2, 3, 4: mean 2.5, sd 1.29099, t = 3.87298, p = 0.030466 (two-sided, df 3)
    result = paired_t([1, 2, 3, 4])
    assert result.mean == 2.5 and result.sd == pytest.approx(1.2909944)
    assert result.p == pytest.approx(0.030466, abs=1e-6)
    assert (result.low, result.high) == pytest.approx(
        (2.5 - 3.182446 * 0.6454972, 2.5 + 3.182446 * 0.6454972), abs=1e-5
    )


def test_equal_losses_and_single_seeds():
    same = paired_t([0.0, 0.0, 0.0])
    assert same.p == 1 and same.low == same.high == 0 and verdict(same, (0.0, 0.0)) == 'within noise'
    assert paired_t([0.3]) == paired_t([0.3]) and paired_t([0.3]).p is None
    assert verdict(paired_t([-5.0]), (-6.0, -4.0)) == 'no verdict'


def test_both_seeds_and_documents_must_agree():
    seeds = paired_t([-0.10, -0.11, -0.12])
    assert verdict(seeds, (-0.2, -0.01)) == 'better'
    assert verdict(seeds, (-0.2, 0.01)) == 'within noise'
    assert verdict(seeds, None) == 'better'
    assert verdict(paired_t([0.10, 0.11, 0.12]), (0.05, 0.2)) == 'worse'


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        tokens = rng.integers(20, 200, 120).astype(float)
        baseline = tokens * rng.normal(3.0, 0.4, 120)
        other = baseline + tokens * rng.normal(0.05, 0.2, 120)
        low, high = bootstrap(baseline, other, (tokens, tokens), seed=i, resamples=500)
        covered += low <= 0.05 <= high
    assert 0.90 <= covered / 200 <= 0.99
    assert bootstrap(baseline, other, (tokens, tokens), seed=3) == bootstrap(
        baseline, other, (tokens, tokens), seed=3
    )
    assert bootstrap(baseline[:1], other[:1], (tokens[:1], tokens[:1])) is None


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
