"""Which runs are seeds of one experiment, and what may be compared."""

import shutil
from dataclasses import replace

import pytest

from lmplay.compare.grouping import (
    check_causal,
    check_comparable,
    differing_settings,
    find_runs,
    fingerprints_of,
    group,
)
from lmplay.errors import UserError


def test_what_can_not_be_compared_is_refused(trained, baseline):
    prints = fingerprints_of({'a': baseline})['a']
    for name, what in (
        ('data', 'training data'),
        ('tokenizer', 'tokenizer'),
        ('evaluation', 'held-out tokens'),
    ):
        with pytest.raises(UserError, match=what):
            check_comparable({'a': prints, 'b': prints | {name: 'other'}}, 'loss')
        check_comparable({'a': prints, 'b': prints | {name: 'other'}}, 'bits_per_byte')
    with pytest.raises(UserError, match='not across texts'):
        check_comparable({'a': prints, 'b': prints | {'text': 'other'}}, 'bits_per_byte')
    shorter = trained('shorter', 'gpt2ish', 0, '--row-length', '16')
    assert shorter.fingerprints['text'] == baseline[0].fingerprints['text']
    with pytest.raises(UserError, match='--metric bits_per_byte'):
        check_comparable(fingerprints_of({'a': baseline[:1], 'b': [shorter]}), 'loss')
    with pytest.raises(UserError, match='among themselves'):
        fingerprints_of({'a': [*baseline, shorter]})


def test_runs_are_grouped_by_their_settings(trained, baseline, wide):
    groups = group([*wide, *baseline[::-1], trained('same', 'same', 0)])
    assert list(groups) == ['gpt2ish,embed_dim=64', 'gpt2ish,embed_dim=32', 'same']
    assert [r.seed for r in groups['gpt2ish,embed_dim=32']] == [0, 1, 2]
    assert not differing_settings(
        {'a': groups['gpt2ish,embed_dim=32'][:1], 'b': groups['gpt2ish,embed_dim=32'][1:]}
    )


def test_causal_models_are_not_compared_with_others(baseline):
    blind = [replace(r, stages={'only': r.last_stage | {'causal': False}}) for r in baseline]
    check_causal({'a': baseline, 'b': baseline})
    check_causal({'a': blind, 'b': blind})
    with pytest.raises(UserError, match='b is not causal'):
        check_causal({'a': baseline, 'b': blind})


def test_runs_are_found_below_a_folder_but_for_trials(baseline, tmp_path):
    own = tmp_path / 'runs' / 'x' / 'seed-0'
    for place in (own, tmp_path / 'tuning' / 'y' / 'seed-1'):
        shutil.copytree(baseline[0].folder, place, ignore=shutil.ignore_patterns('checkpoints'))
    assert [run.folder for run in find_runs([tmp_path, own])] == [own]
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no finished run'):
        find_runs([tmp_path / 'empty'])
