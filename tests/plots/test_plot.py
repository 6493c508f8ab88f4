"""The pictures: their lines are those of the runs."""

import json
import math

import numpy as np
import pytest
from matplotlib import image

from lmplay.errors import UserError
from lmplay.plots.curves import find_curves
from lmplay.plots.plot import draw, plot, plot_run

PNG = b'\x89PNG'


def drawn(path):
    """Fraction of pixels of the picture that are not white; a test of the eye is beyond a test."""
    assert path.read_bytes()[:4] == PNG
    return float((image.imread(path)[..., :3].min(-1) < 0.9).mean())


def test_pictures_of_one_run(make_run, tmp_path):
    path = plot_run(make_run(tmp_path / 'one'))
    assert path == tmp_path / 'one' / 'curves.png' and drawn(path) > 0.01


@pytest.mark.parametrize('points', [0, 1, 2])
def test_pictures_of_short_runs(make_run, tmp_path, points):
    assert drawn(plot_run(make_run(tmp_path, points))) > 0.0005


def test_pictures_of_runs_with_gaps(make_run, tmp_path):
    make_run(tmp_path / 'gap', loss=lambda n: math.nan if 10 < n < 20 else 1 / n)
    make_run(tmp_path / 'lost', loss=lambda n: math.nan)
    make_run(tmp_path / 'whole')
    runs = find_curves(tmp_path)
    assert np.isnan(runs[0].train['loss']).sum() == 9
    assert drawn(plot(runs, tmp_path / 'out.png')) > 0.01
    assert drawn(plot_run(tmp_path / 'lost')) > 0.005


def test_difference_panels_show_what_they_say(make_run, tmp_path):
    make_run(tmp_path / 'base', 40)
    make_run(tmp_path / 'double', 20, factor=2.0)
    curves, differences = draw(find_curves(tmp_path), metrics=['loss'], smoothing=1).axes
    assert [len(line.get_xdata()) for line in curves.lines] == [40, 8, 20, 4]
    zero, train, validation = differences.lines
    np.testing.assert_allclose(train.get_ydata(), [2 + 8 / n for n in range(1, 21)])
    np.testing.assert_allclose(validation.get_ydata(), [2 + 8 / n for n in (5, 10, 15, 20)])
    assert differences.get_title(loc='left') == 'loss: difference from base'  # the longest
    assert curves.get_xlabel() == 'samples' and curves.get_ylabel() == 'loss (nats per token)'


def test_validation_lines_end_with_their_stage(tmp_path):
    lines = [
        {'kind': 'train', 'stage': s, 'samples': n, 'loss': 1.0}
        for s, n in (('a', 1), ('a', 2), ('b', 3), ('b', 4))
    ]
    lines += [
        {'kind': 'validation', 'stage': s, 'samples': n, 'loss': 2.0}
        for s, n in (('a', 1), ('a', 2), ('b', 3), ('b', 4))
    ]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    axes = draw(find_curves(tmp_path), metrics=['loss']).axes[0]
    drawn_lines = [list(line.get_xdata()) for line in axes.lines if set(line.get_ydata()) == {2.0}]
    assert drawn_lines == [[1, 2], [3, 4]]


def test_either_name_of_a_models_metric_is_drawn(make_run, tmp_path):
    make_run(tmp_path / 'new', **{'model/load_balance': 2.5})
    make_run(tmp_path / 'old', load_balance=1.5)
    for name in ('load_balance', 'model/load_balance'):
        curves, differences = draw(find_curves(tmp_path), metrics=[name], smoothing=1).axes
        assert [set(line.get_ydata()) for line in curves.lines] == [{2.5}, {1.5}]
        assert set(differences.lines[1].get_ydata()) == {-1.0}
        assert curves.get_title(loc='left') == 'load balance'


def test_gini_and_entropy_stand_beside_the_losses_where_they_were_recorded(make_run, tmp_path):
    more = {
        'model/gini_middle': 0.4,
        'model/entropy_middle': 6.0,
        'model/other': 1.0,
        'model/gini': [0.1, 0.2],
    }
    make_run(tmp_path / 'routed', **more)
    make_run(tmp_path / 'dense')
    routed, dense = (find_curves(tmp_path / name) for name in ('routed', 'dense'))
    titles = [axes.get_title(loc='left') for axes in draw(routed).axes]
    assert titles[:4] == ['loss', 'accuracy', 'entropy middle', 'gini middle']
    assert [axes.get_title(loc='left') for axes in draw(dense).axes][:2] == ['loss', 'accuracy']
    assert len(draw([*routed, *dense]).axes) == 8 and len(draw(routed, metrics=['loss']).axes) == 2


def test_pictures_that_can_not_be_drawn_are_user_errors(make_run, tmp_path):
    with pytest.raises(UserError, match='Nothing to plot'):
        plot([], tmp_path / 'x.png')
    runs = find_curves(make_run(tmp_path / 'run'))
    with pytest.raises(UserError, match="Can't write the picture '.*x.abc'"):
        plot(runs, tmp_path / 'x.abc')
    runs[0].name = '$\\frac{1}$'  # a name, no formula
    assert plot(runs, tmp_path / 'x.png').is_file()
