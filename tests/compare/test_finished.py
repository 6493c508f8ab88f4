"""Comparisons of finished runs."""

import shutil
from pathlib import Path

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


def test_a_run_that_never_ended_leaves_its_experiment_without_a_verdict(baseline, wide, tmp_path):
    """Whether it stopped by itself or was killed: those that are left are the lucky ones."""
    for run in (*baseline, *wide):
        place = tmp_path / 'runs' / run.exp / run.folder.name
        shutil.copytree(run.folder, place, ignore=shutil.ignore_patterns('checkpoints'))
    found = compare_runs([str(tmp_path / 'runs')], metric='loss', baseline=None, out=tmp_path / 'all')
    assert found.verdicts[0].verdict != 'no verdict'
    (tmp_path / 'runs' / 'gpt2ish' / wide[2].folder.name / 'summary.json').unlink()
    found = compare_runs([str(tmp_path / 'runs')], metric='loss', baseline=None, out=tmp_path / 'some')
    (verdict,) = found.verdicts
    assert verdict.verdict == 'no verdict' and 'stopped early on seed 2' in verdict.sentence
    assert any('is not finished' in w for w in found.findings['warnings'])
    assert len(found.runs['gpt2ish,embed_dim=64']) == 2


def test_an_edited_source_is_said(trained, experiments, baseline, tmp_path):
    same = [trained('same', 'same', seed) for seed in range(3)]
    places = [str(r.folder) for r in (*baseline, *same)]
    model = Path(experiments['same']).parent / 'model.py'
    before = model.read_text()
    model.write_text(before + '# edited\n')
    try:
        found = compare_runs(places, metric='loss', baseline='gpt2ish', out=tmp_path)
    finally:
        model.write_text(before)
    (said,) = (w for w in found.findings['warnings'] if 'changed on disk' in w)
    assert said.startswith('same has changed') and 'model.py' in said
