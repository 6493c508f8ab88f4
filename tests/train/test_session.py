"""Runs from their first stage to text generated from them; stages in order; models without a cache."""

import gc
import json

import numpy as np
import pytest
import torch

from lmplay.generate.__main__ import main as generate
from lmplay.runs.load import load_model
from lmplay.runs.recorder import read_metrics
from lmplay.train.trainer import Trainer
from tests.helpers import (
    EXPERIMENTS,
    assert_equal,
    assert_same_run,
    events,
    losses,
    progress,
    stop_at,
    summary,
    train_records,
    weights,
)

NO_CACHE = pytest.mark.parametrize('exp', ['mean', 'logits_alone'])


# ---- models without a cache


@NO_CACHE
def test_a_model_without_a_cache_trains_and_generates(train, command, exp):
    """One whose forward takes none, and one whose forward takes one and returns logits alone."""
    code, run = train(exp=exp, stage={'steps': 80, 'lr': 0.03})
    seen = losses(run)
    assert code == 0 and seen[-1] < seen[0] - 1.0
    assert len(summary(run)['texts']) == 2 and summary(run)['sample']
    long = ['--max-new-tokens', '50', '--temperature', '0']  # past max_len
    done = command('generate', run, '--exp', f'{EXPERIMENTS}:{exp}', '--prompt', 'Ada saw ', *long)
    assert done.returncode == 0 and done.stdout.startswith('Ada saw '), done.stderr
    assert done.stderr.count('has no key/value cache') == done.stderr.count('slower') == 1
    several = command(
        'generate',
        run,
        '--exp',
        f'{EXPERIMENTS}:{exp}',
        '--prompt',
        'Ada saw ',
        '--prompt',
        'a',
        '--json',
        *long,
    )
    assert several.returncode == 0, several.stderr
    texts = [json.loads(line)['text'] for line in several.stdout.splitlines()]
    assert done.stdout == f'Ada saw {texts[0]}\n' and several.stderr.count('slower') == 1


@NO_CACHE
def test_a_model_without_a_cache_resumes(train, exp):
    _, whole = train('whole', exp=exp)
    with stop_at(5):
        assert train('parts', exp=exp)[0] == 130
    code, parts = train('parts', exp=exp)
    assert code == 0
    assert_same_run(whole, parts)


def test_what_is_trained_is_what_is_evaluated_and_loaded(train):
    """The loss that was recorded is that of the model that a checkpoint gives back."""
    _, run = train(exp='mean', stage={'lr': 0.03})
    model, _ = load_model(run / 'checkpoints/last')
    recorded = np.load(run / 'held_out-s.npz')
    last = [r for r in read_metrics(run) if r['kind'] == 'validation'][-1]
    assert recorded['loss'].sum() / recorded['tokens'].sum() == pytest.approx(last['loss'])
    assert_equal(model.state_dict(), weights(run))


# ---- stages


TWO = {'a': {'steps': 6}, 'b': {'steps': 4, 'lr': 0.01}}


def test_stages_follow_each_other(train):
    code, run = train(exp='mean', stages=TWO)
    assert code == 0
    records = train_records(run)
    assert [(r['stage'], r['step']) for r in records] == [('a', n) for n in range(1, 7)] + [
        ('b', n) for n in range(7, 11)
    ]
    assert progress(run)['stage'] == 1 and progress(run)['step'] == 4
    assert set(json.loads((run / 'stages.json').read_text())) == {'a', 'b'}
    for stage, at in (('a', 6), ('b', 10)):
        assert progress(run, f'stage-{stage}')['total_step'] == at
        assert (run / f'held_out-{stage}.npz').is_file()


def test_a_stage_that_starts_from_an_earlier_one_begins_with_its_weights(train):
    stages = {'a': {'steps': 6}, 'b': {'steps': 6}, 'c': {'steps': 1, 'lr': 1e-12, 'init_from': 'stage:a'}}
    _, run = train(exp='mean', stages=stages)
    a, b, c = (weights(run, f'stage-{name}') for name in 'abc')
    for name in a:
        torch.testing.assert_close(c[name], a[name])
    assert any(not torch.allclose(b[name], a[name]) for name in a)
    (event,) = events(run, 'warm_start')
    assert event['stage'] == 'c' and event['message'].endswith('stage-a')


def test_moments_are_carried_over_where_model_and_optimizer_stay_the_same(train):
    """AdamW counts its steps; a stage that only changes the rate goes on counting."""

    def counted(**second):
        _, run = train(str(second), exp='mean', stages={'a': {'steps': 6}, 'b': {'steps': 4} | second})
        moments = torch.load(run / 'checkpoints/last/optimizer.pt', weights_only=True)['optimizer']
        return {int(of_one.get('step', -1)) for of_one in moments['state'].values()}

    assert counted(lr=0.01) == {10}
    assert counted(init_from='scratch') == {4}
    assert counted(optimizer='rmsprop') == {4}


def test_a_run_stopped_in_its_second_stage_resumes_there(train):
    _, whole = train('whole', stages=TWO)
    with stop_at(2):
        assert train('parts', stages=TWO)[0] == 130
        assert progress(whole.parent / 'parts')['stage'] == 0
        assert train('parts', stages=TWO)[0] == 130  # the second stage has a step 2 as well
    parts = whole.parent / 'parts'
    assert (progress(parts)['stage'], progress(parts)['step']) == (1, 3)
    assert train('parts', stages=TWO)[0] == 0
    assert_same_run(whole, parts)


def test_a_signal_in_the_last_step_of_a_stage_is_heeded(train):
    """The stage ends as it would have; the next one does not begin."""
    with stop_at(5):
        code, run = train(stages=TWO)
    assert code == 130 and {r['stage'] for r in train_records(run)} == {'a'}
    assert progress(run)['step'] == 6 and (run / 'held_out-a.npz').is_file()
    code, run = train(stages=TWO)
    _, whole = train('whole', stages=TWO)
    assert code == 0
    assert_same_run(whole, run)


def test_a_run_is_resumed_with_another_batch_size(train):
    """It trains on as many sequences as the stage has, wherever its steps end."""
    stage = {'steps': None, 'tokens': 40 * 32}
    with stop_at(2):
        train(stage=stage | {'batch_size': 4})
    code, run = train(stage=stage | {'batch_size': 7})
    assert code == 0 and progress(run)['samples'] == train_records(run)[-1]['samples'] == 40


def test_a_resumed_run_tells_which_settings_are_others_now(train):
    with stop_at(4):
        train(stage={'lr': 0.01})
    assert train(stage={'lr': 0.02})[0] == 0
    (event,) = events(train()[1], 'settings')[:1]
    assert event['message'] == 'Stage "s" continues with changed settings: lr from 0.01 to 0.02.'


def test_what_a_run_was_told_is_in_its_directory(train):
    _, run = train(exp='mean', stage={'lr': 0.03}, flags=['--seed', '5'])
    settings = json.loads((run / 'settings.json').read_text())
    assert settings['seed'] == 5 and settings['exp'] == f'{EXPERIMENTS}:mean'
    assert [(s['name'], s['lr'], s['steps']) for s in settings['stages']] == [('s', 0.03, 12)]
    assert json.loads((run / 'plan.json').read_text())['stages']['s']['lr'] == 0.03
    assert json.loads((run / 'environment.json').read_text())['packages']['torch']


def test_check_grads_tells_what_gets_none(train, capsys):
    train(exp='mean', flags=['--check-grads'], quiet=False)
    assert 'Every trainable parameter gets a gradient.' in capsys.readouterr().err


def test_text_of_a_run_is_that_of_the_generator(train, capsys):
    """The prompt of summary.json continues with the seed of the run as the command continues it."""
    _, run = train(exp='mean', stage={'steps': 40, 'lr': 0.03})
    first = summary(run)['texts'][0]
    options = ['--prompt', first['prompt'], '--max-new-tokens', '64', '--temperature', '0.8', '--top-k', '50']
    capsys.readouterr()
    assert generate([str(run / 'checkpoints/last'), *options, '--json']) == 0
    assert json.loads(capsys.readouterr().out)['text'] == first['sample']


def test_a_stage_that_is_over_is_freed(train, monkeypatch):
    """Its model, gradients and moments take no memory while the next one trains."""
    alive = []

    def fit(trainer):
        gc.collect()
        alive.append(sum(type(o) is Trainer for o in gc.get_objects()))
        return whole_fit(trainer)

    whole_fit = Trainer.fit
    monkeypatch.setattr(Trainer, 'fit', fit)
    stages = {'one': {}, 'two': {'init_from': 'scratch'}, 'three': {'init_from': 'stage:one'}}
    code, _ = train(stages={name: stage | {'steps': 1} for name, stage in stages.items()})
    assert code == 0 and len(alive) == 3 and len(set(alive)) == 1
