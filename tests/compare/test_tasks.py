"""Task scores of lmp_eval in comparisons, paired by seed and item."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lmplay.compare.judge import judge
from lmplay.compare.report import page, tables
from lmplay.compare.tasks import compare_tasks, sign_flip_p
from lmplay.evaluation.results import FOLDER, write_result
from lmplay.runs.finished import FinishedRun

ITEMS = 200


def run_of(folder, seed, chance, *, fingerprint='f', groups=None, run='seal', task='cloze'):
    """A finished run that is right in each item with that probability, the same items hard for all."""
    hard, luck = random.Random(7), random.Random(str(folder.relative_to(folder.parent.parent)))
    sums = [float(luck.random() < chance + 0.3 * (hard.random() - 0.5)) for _ in range(ITEMS)]
    metric = {'value': sum(sums) / ITEMS, 'sums': sums}
    content = {'task': task, 'fingerprint': fingerprint, 'items': ITEMS, 'metrics': {'acc': metric}}
    items = [{'doc_id': i} for i in range(ITEMS)]
    write_result(folder / FOLDER, content | {'groups': groups, 'run': run}, items)
    summary = {'seed': seed, 'checksum': 'seal'}
    return FinishedRun(folder, {}, {}, stages={}, summary=summary, environment={}, documents={}, records=[])


def runs_of(tmp_path, chances, **options):
    return {
        label: [run_of(tmp_path / label / str(seed), seed, chance, **options) for seed in range(5)]
        for label, chance in chances.items()
    }


def test_a_better_experiment_is_told_from_an_equal_one(tmp_path):
    found = compare_tasks(runs_of(tmp_path, {'base': 0.4, 'better': 0.8, 'equal': 0.4}))
    (row,) = found['rows']
    assert (row['task'], row['metric'], row['items']) == ('cloze', 'acc', ITEMS)
    better, equal = row['experiments']['better'], row['experiments']['equal']
    assert 0 < better['low'] < better['difference'] < better['high']
    assert equal['low'] < 0 < equal['high']
    assert better['score'] - row['experiments']['base']['score'] == pytest.approx(better['difference'])
    for seed in better['by_seed'].values():
        assert seed['better'] > seed['worse'] and seed['p'] < 0.001
    assert found['left_out'] == [] and json.dumps(found)


def test_what_was_not_asked_alike_is_left_out_and_said(tmp_path):
    runs = runs_of(tmp_path, {'base': 0.4})
    runs |= runs_of(tmp_path, {'other': 0.5}, fingerprint='g')
    runs |= runs_of(tmp_path, {'stale': 0.5}, run='seal of before')
    (tmp_path / 'base' / '0' / FOLDER / 'damaged.json').write_text('{')
    found = compare_tasks(runs)
    assert found['rows'] == []
    damaged, *stale, asked = found['left_out']
    assert 'damaged.json' in damaged and 'other items' in asked
    assert len(stale) == 5 and all('before it was finished' in why for why in stale)
    assert compare_tasks({label: members for label, members in runs.items() if label == 'base'})['rows'] == []


def test_one_seed_has_no_interval_but_the_test_of_its_items(tmp_path):
    runs = {label: members[:1] for label, members in runs_of(tmp_path, {'base': 0.3, 'better': 0.8}).items()}
    ((row,), entry) = (f := compare_tasks(runs))['rows'], f['rows'][0]['experiments']['better']
    assert row['items'] == ITEMS and entry['low'] is None and entry['by_seed']['0']['p'] < 0.01


@pytest.mark.parametrize('right, wrong', [(0, 0), (1, 0), (0, 1), (1, 1), (5, 0), (9, 3), (7, 7), (30, 10)])
def test_the_test_is_mcnemars_where_items_are_right_or_wrong(right, wrong):
    from scipy.stats import binomtest

    gains = np.array([1.0] * right + [-1.0] * wrong + [0.0] * 20)
    expected = binomtest(right, right + wrong).pvalue if right + wrong else 1.0
    assert sign_flip_p(gains, np.arange(len(gains))) == pytest.approx(expected, abs=0.01)


def test_items_of_a_group_count_as_one():
    """What is gained in an item and lost in its twin is no gain."""
    gains = np.array([1.0, -1.0] * 30)
    assert sign_flip_p(gains, np.repeat(np.arange(30), 2)) == 1.0
    twice = np.repeat([1.0] * 6 + [-1.0], 2)
    assert sign_flip_p(twice, np.arange(14)) < sign_flip_p(twice, np.repeat(np.arange(7), 2))


def test_the_page_shows_a_table(trained, tmp_path):
    wide = trained('wide', 'gpt2ish', 0, '--embed-dim', '64')
    runs = {'base': [trained('baseline', 'gpt2ish', 0)], 'a<b': [wide]}
    for number, (label, (run,)) in enumerate(runs.items()):
        run_of(tmp_path / str(number) / '0', 0, 0.5, run=run.summary['checksum'])
        runs[label] = [replace(run, folder=tmp_path / str(number) / '0')]
    findings = judge(runs) | {'title': 'base, a<b', 'plan': 'p', 'budget': None, 'tuning': None}
    about = dict(pictures={}, routing={}, tolerance=0.05, metric='loss', xrays={}, axis='tokens')
    about |= dict(sources={}, kept={}, out=tmp_path)
    text = page('report.html.j2', f=findings, **about)
    section = text[text.index('id="tasks"') : text.index('id="cost"')]
    assert 'Task scores' in section and 'acc, higher is better' in section and 'a&lt;b' in section
    assert '<a href="#tasks">' in text
    assert [row['experiment'] for row in tables(findings, runs)['tasks.csv']] == list(runs)
    for members in runs.values():  # without scores there is no such section
        shutil.rmtree(members[0].folder)
    without = findings | {'tasks': compare_tasks(runs)}
    assert 'id="tasks"' not in page('report.html.j2', f=without, **about)
    assert 'tasks.csv' not in tables(without, runs)
