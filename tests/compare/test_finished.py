"""Comparisons of finished runs."""

import json
import shutil
from pathlib import Path

import pytest

from lmplay.compare.finished import compare_runs
from lmplay.compare.leaderboard import rank
from lmplay.compare.tuning import for_tuning
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
    with pytest.raises(UserError, match='are of one experiment'):
        compare_runs(places, metric='loss', baseline=None, out=tmp_path)
    with pytest.raises(UserError, match='no seed in common'):
        compare_runs([places[0], wide[1]], metric='loss', baseline=None, out=tmp_path)
    with pytest.raises(UserError, match='no finished run'):
        compare_runs([str(tmp_path)], metric='loss', baseline=None, out=tmp_path)


def test_a_run_that_never_ended_leaves_its_experiment_without_a_verdict(baseline, wide, tmp_path):
    """Whether it stopped by itself or was killed: those that are left are a biased sample."""
    for run in (*baseline, *wide):
        place = tmp_path / 'runs' / run.exp / run.folder.name
        shutil.copytree(run.folder, place, ignore=shutil.ignore_patterns('checkpoints'))
    found = compare_runs([str(tmp_path / 'runs')], metric='loss', baseline=None, out=tmp_path / 'all')
    assert found.verdicts[0].verdict != 'no verdict'
    (tmp_path / 'runs' / 'gpt2ish' / wide[2].folder.name / 'summary.json').unlink()
    found = compare_runs([str(tmp_path / 'runs')], metric='loss', baseline=None, out=tmp_path / 'some')
    (verdict,) = found.verdicts
    assert verdict.verdict == 'no verdict' and 'stopped early on seed 2' in verdict.sentence
    assert any('it was killed' in w for w in found.findings['warnings'])
    assert len(found.runs['gpt2ish,embed_dim=64']) == 2


def test_documents_that_chose_a_learning_rate_judge_no_finished_runs(baseline, wide, tmp_path):
    comparison = tmp_path / 'tuned'
    for run in (*baseline, *wide):
        width = run.last_stage['hyperparameters']['embed_dim']
        place = comparison / 'runs' / f'gpt2ish-{width}' / f'seed-{run.seed}'
        shutil.copytree(run.folder, place, ignore=shutil.ignore_patterns('checkpoints'))
    runs = [str(comparison / 'runs')]
    whole = compare_runs(runs, metric='loss', baseline=None, out=tmp_path / 'whole')
    (comparison / 'comparison.json').write_text(json.dumps({'asked': {'tune': 'lr'}, 'seeds': [3]}))
    part = compare_runs(runs, metric='loss', baseline=None, out=tmp_path / 'part')
    used = for_tuning(baseline[0].documents['domain'], baseline[0].documents['hash']).sum()
    documents = [found.findings['held_out']['documents'] for found in (whole, part)]
    assert documents[0] - documents[1] == used > 0
    assert f'{used} of the {documents[0]} held-out documents' in ' '.join(part.findings['warnings'])
    (table,) = rank([run for members in whole.runs.values() for run in members], 'loss')
    assert table['documents'] == documents[1]  # of the leaderboard too


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


def test_seeds_may_differ_in_tokens_experiments_are_told_where_they_do(trained, baseline, tmp_path):
    def said(runs, out):
        found = compare_runs([str(r.folder) for r in runs], metric='loss', baseline=None, out=tmp_path / out)
        return [w for w in found.findings['warnings'] if 'not trained on the same number of tokens' in w]

    def runs(label, steps, *flags):
        padded = ['--packing', 'pad', '--steps', str(steps), *flags]
        return [trained(f'{label}-{steps}', 'gpt2ish', seed, *padded) for seed in (0, 1)]

    short = runs('padded', 8)
    assert len({r.cost['tokens'] for r in short}) == 2
    assert not said([*short, *runs('padded-wide', 8, '--embed-dim', '64')], 'same')
    (note,) = said([*short, *runs('padded-wide', 9, '--embed-dim', '64')], 'longer')
    assert ' to ' in note
