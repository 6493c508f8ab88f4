"""The page and its pictures, of every size."""

import re

import pytest

from lmplay.routing.page import write


@pytest.mark.parametrize('E, K, points', [(1, 1, 1), (4, 1, 3), (16, 2, 2), (17, 3, 240), (128, 8, 3)])
def test_every_size_is_drawn(report, E, K, points, tmp_path):
    text = write(report(E, K, points=points, layers=1), tmp_path).page.read_text(encoding='utf-8')
    assert 'too late &lt;b&gt;' in text and 'too late <b>' not in text
    assert (tmp_path / 'coactivation-layer-0.svg').is_file() == (K > 1)
    assert all(
        'nan' not in re.sub(r'base64,[^"]*', '', f.read_text()).lower() for f in tmp_path.glob('*.svg')
    )
    assert text.count('data:image/svg+xml') == len(list(tmp_path.glob('*.svg')))


def test_pictures_that_fail_are_left_out_with_a_warning(report, tmp_path, caplog):
    """All tables are written, and the page lacks those pictures alone."""
    (tmp_path / 'whole').mkdir()
    whole = write(report(4, 2), tmp_path / 'whole')
    given = report(4, 2)
    given.observed.layers[0].name = 'x' * 300  # no file system takes that
    found = write(given, tmp_path / 'broken')
    lost = sum(len(s.pictures) for s in whole.sections) - sum(len(s.pictures) for s in found.sections)
    assert lost == len(caplog.records) > 0
    assert all("The picture '" in r.message and 'is left out' in r.message for r in caplog.records)
    names = {f.name for f in (tmp_path / 'whole').glob('*.csv')}
    assert {f.name for f in (tmp_path / 'broken').glob('*.csv')} == names
    assert found.page.read_text().count('data:image/svg+xml') == sum(len(s.pictures) for s in found.sections)
