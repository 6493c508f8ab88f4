"""Runs that are stopped early: what never caught up is, what may catch up is not."""

import json
import math

import numpy as np
import pytest

from lmplay.compare.hopeless import STOPPED, Watch, hopeless, largest_closed_gap, why_stopped, wrongly_stopped
from lmplay.compare.judge import judge

TOKENS = np.linspace(1000, 20_000, 20)


def curves(rng, n, *, spread=0.05, level=0.0):
    """Curves that fall alike, with noise that is smaller at the end; level: what they end above others."""
    found = []
    for _ in range(n):
        noise = np.cumsum(rng.normal(0, spread, 20)[::-1])[::-1] / 5
        found.append((TOKENS, 3 + level + 4 * np.exp(-TOKENS / 5000) + noise + rng.normal(0, 0.01)))
    return found


def up_to(curve, n):
    return curve[0][:n], curve[1][:n]


def test_the_largest_gap_that_was_closed():
    slow = (TOKENS, np.linspace(6, 2.9, 20))
    quick = (TOKENS, np.linspace(4, 3, 20))
    assert (
        largest_closed_gap([slow, quick], 0.05) == pytest.approx(2)
        and largest_closed_gap([slow, quick], 1.0) == 0
    )
    assert largest_closed_gap([quick, (TOKENS, quick[1] + 1)], 0.5) == 0  # it never caught up


def test_what_is_far_behind_is_stopped_and_what_ever_recovered_is_not():
    rng = np.random.default_rng(0)
    recorded = curves(rng, 12)
    (lost,) = curves(rng, 1, level=1.0)
    why = hopeless(up_to(lost, 8), recorded[:3], recorded)
    assert why and '40% of its tokens' in why and '12 finished runs' in why
    assert hopeless(up_to(lost, 2), recorded[:3], recorded) is None  # too early
    assert hopeless(lost, recorded[:3], recorded) is None  # it is finished
    assert hopeless(up_to(lost, 8), recorded[:3], recorded[:11]) is None  # too little is known
    assert hopeless((TOKENS[:8], np.full(8, math.nan)), recorded[:3], recorded) is None
    slow = (TOKENS, recorded[0][1] + np.linspace(3, -0.1, 20))  # a slow start that pays
    assert hopeless(up_to(lost, 8), recorded[:3], [*recorded, slow]) is None


def test_equal_runs_are_rarely_stopped():
    """The rule's error rate, as it is measured on recorded curves and on new ones."""
    rng = np.random.default_rng(1)
    recorded = curves(rng, 20)
    wrong, of = wrongly_stopped(recorded)
    assert of >= 10 and wrong / of <= 0.1
    new = curves(rng, 100)
    stopped = sum(any(hopeless(up_to(c, n), recorded[:3], recorded) for n in range(4, 20)) for c in new)
    assert stopped / 100 <= 0.05


def test_the_watch_notes_why_in_the_run(baseline, tmp_path):
    watch = Watch(baseline, tmp_path / 'c')
    assert watch.recorded == [] and watch(baseline[0].folder) is None
    rng = np.random.default_rng(0)
    watch.baseline = watch.recorded = curves(rng, 12)
    lines = [{'kind': 'validation', 'tokens': int(t), 'loss': 9.0} for t in TOKENS[:10]]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert why_stopped(tmp_path) is None
    assert watch(tmp_path) == why_stopped(tmp_path) and (tmp_path / STOPPED).is_file()


def test_what_was_stopped_counts_as_worse(baseline, wide):
    """Unless a finished seed is not worse; there is no mean of those that are left."""
    for ours, theirs, verdict, words in (
        (
            wide,
            baseline[:1],
            'worse',
            'is worse than wide: on every seed that was finished, and on seeds 1, 2',
        ),
        (baseline, wide[:1], 'no verdict', 'a finished seed on which it is not worse'),
    ):
        runs = {'wide' if ours is wide else 'gpt2ish': ours, 'mine': theirs}
        entry = judge(runs, hopeless={'mine': {1: 'far behind', 2: 'far behind'}})['experiments'][1]
        assert entry['comparison']['verdict'] == verdict and entry['comparison']['mean'] is None
        assert words in entry['sentence'] and entry['stopped'] == {'1': 'far behind', '2': 'far behind'}
