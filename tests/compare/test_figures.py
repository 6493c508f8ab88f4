"""What the pictures of a comparison are drawn from."""

from pathlib import Path

import pytest

from lmplay.compare.figures import curves, themed
from lmplay.runs.finished import FinishedRun


def run(*points):
    """A run evaluated after so many tokens, a tenth of that in seconds."""
    records = [
        {'kind': 'validation', 'samples': t, 'tokens': t, 'seconds': t / 10, 'loss': loss}
        for t, loss in points
    ]
    return FinishedRun(Path(), {}, {}, stages={}, summary={}, environment={}, documents={}, records=records)


def test_seeds_evaluated_at_different_moments_are_drawn_at_common_ones():
    same = [run((10, 5.0), (20, 4.0)), run((10, 6.0), (20, 3.0))]
    xs, ys = curves(same, 'seconds', 'loss')
    assert xs.tolist() == [1, 2] and ys.tolist() == [[5, 4], [6, 3]]
    xs, ys = curves([run((10, 5.0), (20, 4.0), (30, 3.0)), run((12, 6.0), (28, 2.0))], 'tokens', 'loss')
    assert xs.tolist() == [12, 28] and ys.tolist() == [pytest.approx([4.8, 3.2]), [6, 2]]


def test_pictures_of_one_page_share_no_names():
    svg = (
        '<?xml version="1.0"?><svg viewBox="0 0 1 1"><g id="a"><use xlink:href="#a"/>'
        '<path clip-path="url(#a)"/></g></svg>'
    )
    first, second = (themed(svg, title='T', description='<D>', number=i) for i in (0, 1))
    assert (
        'id="f0-a"' in first
        and 'href="#f0-a"' in first
        and 'url(#f0-a)' in first
        and 'f0-' not in second
        and '&lt;D&gt;' in first
    )
