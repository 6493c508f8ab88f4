"""Finished runs ranked."""

import csv
import math
import shutil
from dataclasses import replace

from lmplay.compare.__main__ import main
from lmplay.compare.leaderboard import rank


def test_leaderboard(baseline, wide, tmp_path, capsys):
    assert (
        main(['--leaderboard', *(str(r.folder) for r in (*baseline, wide[0])), '--out', str(tmp_path)]) == 0
    )
    out = capsys.readouterr().out
    assert 'gpt2ish,embed_dim=64' in out.split('gpt2ish,embed_dim=32')[0], out
    with open(tmp_path / 'leaderboard.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [r['seeds'] for r in rows] == ['1', '3'] and (tmp_path / 'leaderboard.html').stat().st_size > 0
    assert 'is not a verdict' in out


def test_an_experiment_of_which_a_seed_diverged_is_ranked_last(baseline, wide):
    documents = wide[1].documents | {'loss': wide[1].documents['loss'] * float('nan')}
    (table,) = rank([*baseline, wide[0], replace(wide[1], documents=documents)], 'loss')
    assert [(row['seeds'], row['sd'] is None) for row in table['rows']] == [(3, False), (2, True)]
    assert math.isnan(table['rows'][1]['loss'])


def test_a_run_that_was_killed_is_mentioned(baseline, tmp_path, capsys):
    for run in baseline:
        shutil.copytree(run.folder, tmp_path / 'runs' / run.folder.name)
    killed = tmp_path / 'runs' / baseline[1].folder.name
    (killed / 'summary.json').unlink()
    assert main(['--leaderboard', str(tmp_path / 'runs'), '--out', str(tmp_path / 'out')]) == 0
    told = f"'{killed}' is not finished: it was killed, or is still training"
    assert f'Left out: {told}' in capsys.readouterr().out
    assert 'is not finished: it was killed' in (tmp_path / 'out' / 'leaderboard.html').read_text()


def test_runs_share_a_table_only_where_they_may_be_compared(trained, baseline):
    shorter = trained('shorter', 'gpt2ish', 0, '--row-length', '16')
    blind = replace(baseline[0], stages={'only': baseline[0].last_stage | {'causal': False}})
    tables = rank([*baseline, shorter, blind], 'loss')
    assert [len(t['rows']) for t in tables] == [1, 1, 1] and tables[0]['rows'][0]['seeds'] == 3
    assert [t['causal'] for t in tables].count(False) == 1
    assert sorted(len(t['rows']) for t in rank([*baseline, shorter, blind], 'bits_per_byte')) == [1, 2]


def test_a_run_that_scored_nothing_is_ranked_last(baseline, wide):
    """The mean of nothing is not 0."""
    documents = {k: v if k in ('hash', 'domain') else v * 0 for k, v in wide[0].documents.items()}
    for metric in ('loss', 'bits_per_byte'):
        (table,) = rank([replace(wide[0], documents=documents), *baseline], metric)
        assert [math.isnan(row[metric]) for row in table['rows']] == [False, True]
