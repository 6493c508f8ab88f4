"""Comparisons of finished runs."""

import pytest

from lmplay.compare.finished import compare_runs
from lmplay.errors import UserError


def test_finished_runs_are_compared_and_mistakes_told(baseline, wide, tmp_path):
    places = [str(r.folder) for r in baseline]
    wide = [str(r.folder) for r in wide]
    found = compare_runs(
        [*places, *wide], metric='bits_per_byte', baseline='gpt2ish,embed_dim=32', out=tmp_path / 'out'
    )
    page = found.report.read_text()
    assert 'better' in page and 'bits per byte' in page
    (verdict,) = found.verdicts
    assert (
        verdict.verdict == 'better'
        and verdict.low < verdict.mean < verdict.high < 0
        and verdict.sentence in str(found)
    )
    with pytest.raises(UserError, match='Unknown experiment'):
        found['none']
    with pytest.raises(UserError, match='Unknown baseline'):
        compare_runs([*places, *wide], metric='loss', baseline='gpt2', out=tmp_path)
    with pytest.raises(UserError, match='only one experiment'):
        compare_runs(places, metric='loss', baseline=None, out=tmp_path)
    with pytest.raises(UserError, match='no seed in common'):
        compare_runs([places[0], wide[1]], metric='loss', baseline=None, out=tmp_path)
    with pytest.raises(UserError, match='no finished run'):
        compare_runs([str(tmp_path)], metric='loss', baseline=None, out=tmp_path)
