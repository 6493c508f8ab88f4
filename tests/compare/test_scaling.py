"""Compute ratios on curves whose truth is known: exact, simulated, and where nothing can be said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmplay.compare import scaling
from lmplay.compare.scaling import (
    Ladder,
    expected_widths,
    joint_fit,
    log_ratios,
    needed,
    predict_next,
    ratios,
)
from tests.compare.scaling_simulation import X, covered, curve, ladders


@given(st.lists(st.floats(0.3, 3), min_size=2, max_size=6), st.floats(0, 1), st.floats(0.01, 0.3))
def test_a_curve_is_inverted(steps, share, bend):
    """On a parabola the local parabola is exact, whatever the spacing of the rungs."""
    x = np.cumsum([0.0, *steps])
    loss = lambda v: 5 - v + bend / (2 * x[-1]) * v * v  # noqa: E731  falls over the whole range
    at = share * x[-1]
    found = needed(x, loss(x)[None], np.array([loss(at)]))
    if len(x) > 2:
        assert found[0] == pytest.approx(at, abs=1e-6)
    else:
        assert 0 <= found[0] <= x[-1]


@given(st.floats(0.5, 2), st.integers(3, 8))
def test_a_constant_ratio_is_found(ratio, rungs):
    x = np.linspace(0, 6, rungs)
    found = log_ratios(x, curve(x)[None], x, curve(x - math.log(ratio))[None])[0]
    known = np.isfinite(found)
    assert np.allclose(found[known], math.log(ratio), atol=0.03)
    assert known.all() or ratio != 1


def test_there_is_no_ratio_outside_the_losses_of_the_baseline():
    better, worse = (curve(X)[None] - shift for shift in (0.05, -0.05))
    assert np.isnan(log_ratios(X, curve(X)[None], X, better)[0]).tolist() == [False, False, False, True]
    assert np.isnan(log_ratios(X, curve(X)[None], X, worse)[0]).tolist() == [True, False, False, False]
    found = ratios(Ladder(X, np.tile(curve(X)[:, None], 3)), Ladder(X, np.tile(curve(X)[:, None] + 9, 3)))
    assert np.isnan(found.value).all() and found.trend == 'cannot be told' and found.change is None
    assert np.isfinite(log_ratios(X, curve(X)[None], X, worse, beyond=True)).all()


def test_one_seed_has_no_interval():
    found = ratios(Ladder(X, curve(X)[:, None]), Ladder(X, curve(X + 0.1)[:, None]))
    assert np.isfinite(found.value[:3]).all() and np.isnan(found.low).all()


@pytest.mark.parametrize('seeds', [2, 3])
@pytest.mark.parametrize('ratio', [0.8, 1.25])
def test_intervals_cover_the_ratio_in_19_of_20_ladders(monkeypatch, seeds, ratio):
    monkeypatch.setattr(scaling, 'DRAWS', 600)
    trials = 150
    share, trends = covered(np.random.default_rng(seeds), seeds=seeds, ratio=ratio, trials=trials)
    assert share[1:3].min() >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials)
    assert (trends['grows'] + trends['shrinks']) / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize('expected', ['shrinks', 'grows'])
def test_a_change_over_the_ladder_is_seen(expected):
    """ln ratio of -0.6 at one end that is all but gone at the other; noise far below it."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, math.log(1000), 6)
    at = np.interp(x, [x[0], x[-1]], [-0.6, -0.05] if expected == 'shrinks' else [-0.05, -0.6])
    base = Ladder(x, curve(x)[:, None] + 0.003 * rng.standard_normal((6, 3)))
    other = Ladder(x, curve(x - at)[:, None] + 0.003 * rng.standard_normal((6, 3)))
    assert ratios(base, other).trend == expected
    steady = Ladder(x, curve(x + 0.4)[:, None] + 0.003 * rng.standard_normal((6, 3)))
    assert ratios(base, steady).trend == 'holds'


def test_equal_experiments_are_within_noise():
    trends = covered(np.random.default_rng(0), seeds=3, ratio=1.0, trials=60)[1]
    assert trends['within noise'] >= 0.8 * 60


def test_the_width_to_expect_is_the_width_that_comes():
    slope = (curve(X[0]) - curve(X[-1])) / X[-1]
    expected = expected_widths(X, slope=slope, sd=0.015, seeds=3)
    rng = np.random.default_rng(0)
    found = [ratios(*ladders(rng, seeds=3, ratio=1.02)) for _ in range(40)]
    measured = np.nanmedian([(f.high - f.low) / 2 for f in found], axis=0)
    assert expected[1:] == pytest.approx(measured[1:], rel=0.25) and np.isnan(expected[0])
    assert expected_widths(X, slope=slope, sd=0.03, seeds=12)[1] < 1.05 * expected[1]


def test_the_joint_fit_finds_what_made_the_curves():
    x = np.linspace(20, 30, 7)
    made = [Ladder(x, (1.5 + A * np.exp(-a * x))[:, None]) for A, a in ((30.0, 0.12), (60.0, 0.15))]
    fit = joint_fit(made)
    assert fit.identified and fit.E == pytest.approx(1.5, abs=1e-3)
    assert fit.a == pytest.approx([0.12, 0.15], abs=1e-3) and fit.A == pytest.approx([30, 60], rel=0.02)
    assert fit.loss(0, x) == pytest.approx(made[0].mean, abs=1e-4)
    power = [Ladder(x, (30 * np.exp(-0.1 * x))[:, None])]
    assert not joint_fit(power).identified  # E is at 0


def test_the_next_rung_is_predicted():
    x = np.linspace(20, 26, 3)
    made = [Ladder(x, (1.5 + 30 * np.exp(-0.12 * x))[:, None])]
    assert predict_next(made, [28.0])[0] == pytest.approx(1.5 + 30 * math.exp(-0.12 * 28), abs=5e-3)
    two = [Ladder(x[:2], (30 * np.exp(-0.1 * x[:2]))[:, None])]
    assert predict_next(two, [28.0])[0] == pytest.approx(30 * math.exp(-2.8))
