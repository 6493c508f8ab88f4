"""What is read of runs, and what is computed from their curves."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmplay.errors import DataError
from lmplay.plots.curves import difference, find_curves, read_curves, smooth


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), max_size=30), st.integers(1, 12))
def test_smooth_is_a_centred_mean(values, width):
    expected = []
    for i, value in enumerate(values):
        window = [v for v in values[max(0, i - (width - 1) // 2) : i + width // 2 + 1] if not math.isnan(v)]
        expected.append(math.nan if math.isnan(value) else sum(window) / len(window))
    np.testing.assert_allclose(smooth(np.array(values, float), width), expected, atol=1e-9)


xs = st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=10).map(sorted)


@given(xs, xs)
def test_difference_of_two_lines_is_a_line(a, b):
    a, b = np.array(a, float), np.array(b, float)
    x, y = difference((a, 3 * a + 1), (b, a[0] + 2 * b))
    assert all(max(a[0], b[0]) <= v <= min(a[-1], b[-1]) for v in x)
    assert set(x) == {v for v in (*a, *b) if max(a[0], b[0]) <= v <= min(a[-1], b[-1])}
    np.testing.assert_allclose(y, x + 1 - a[0], atol=1e-9)


def test_difference_ignores_gaps():
    x, y = difference(
        (np.array([0.0, 1, 2]), np.array([1.0, np.nan, 3])), (np.array([0.0, 2]), np.array([0.0, 0]))
    )
    assert list(x) == [0, 2] and list(y) == [1, 3]


def test_a_run_is_read_with_its_stages_and_domains(make_run, tmp_path):
    (run,) = find_curves(make_run(tmp_path / 'one'))
    assert run.name == 'one' and run.stages == [('a', 0), ('b', 15)]
    x, y = run.curve('train', 'tokens', 'loss')
    assert list(x) == [100 * n for n in range(1, 31)] and y[0] == 10
    assert run.curve('prose', 'tokens', 'loss')[0][0] == 500  # the run's tokens, not the domain's
    assert run.extent('seconds') == 15


def test_repeated_points_keep_the_last(tmp_path):
    (tmp_path / 'm_train_stats.csv').write_text(
        'iter,accuracy,loss,tokens\n5,,1,1\n10,,2,2\n5,,3,3\n15,,4,4\n'
    )
    (run,) = find_curves(tmp_path / 'm_train_stats.csv')
    assert [list(v) for v in run.curve('train', 'samples', 'loss')] == [[5, 10, 15], [3, 2, 4]]


def test_the_original_tables(make_run, make_csv, tmp_path):
    make_csv(tmp_path / 'old' / 'gpt2ish_6L_1024', 9)
    make_csv(tmp_path / 'old' / 'unet_6L', 5)
    make_run(tmp_path / 'old' / 'new')
    assert [run.name for run in find_curves(tmp_path / 'old')] == ['new', 'gpt2ish_6L_1024', 'unet_6L']
    (run,) = find_curves(tmp_path / 'old' / 'unet_6L_validate_stats.csv')
    assert run.name == 'unet_6L' and len(run.train['loss']) == len(run.validation['loss']) == 5
    torn = tmp_path / 'old' / 'unet_6L_train_stats.csv'
    torn.write_text('iter,accuracy,loss\n5,0.5,nan\n10,0.5,1.5\n15,0.')
    (run,) = find_curves(torn)
    assert run.curve('train', 'samples', 'loss')[0].tolist() == [5, 10]


def test_a_models_metrics_have_two_names(make_run, tmp_path):
    (old,) = find_curves(make_run(tmp_path / 'old', load_balance=1.5))
    (new,) = find_curves(make_run(tmp_path / 'new', **{'model/load_balance': 1.5, 'model/loss': 7.0}))
    for run in (old, new):
        for name in ('load_balance', 'model/load_balance'):
            assert set(run.curve('train', 'samples', name)[1]) == {1.5}
    assert new.curve('train', 'samples', 'loss')[1][0] == 10


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(DataError, match='holds no run'):
        find_curves(tmp_path)


def test_a_loss_that_counts_padding_is_not_drawn_beside_one_that_does_not(tmp_path):
    """Earlier versions called both `loss`."""
    at = {'stage': 's', 'tokens': 1}
    old = [
        {'kind': 'train', 'samples': 1, 'loss': 2.0, 'accuracy': 0.9} | at,
        {'kind': 'validation', 'samples': 1, 'loss': 3.0, 'loss_with_pad': 2.1, 'accuracy': 0.4} | at,
    ]
    new = [old[0] | {'loss': 2.9, 'loss_with_pad': 2.0}, old[1]]
    for name, records in (('old', old), ('new', new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
    before, now = (read_curves(tmp_path / name) for name in ('old', 'new'))
    for run in (before, now):
        assert run.curve('train', 'samples', 'loss_with_pad')[1] == [2.0]
        assert run.curve('validation', 'samples', 'loss_with_pad')[1] == [2.1]
    assert len(before.curve('train', 'samples', 'loss')[1]) == 0
    assert len(before.curve('train', 'samples', 'accuracy')[1]) == 0
    assert now.curve('train', 'samples', 'loss')[1] == [2.9]
