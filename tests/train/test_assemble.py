"""How a stage's trainer is put together, seen from a run's directory and what it says."""

import json

import pytest

from lmplay.train.__main__ import main
from lmplay.train.cost import CPU_TOKENS
from tests.helpers import EXPERIMENTS, events, losses, progress, summary


@pytest.mark.parametrize(
    'exp, message',
    [
        ('two_faced', 'TwoFaced.forward(x) and TwoFaced.fc(TwoFaced.features(x)) are not the same'),
        ('capped', 'Capped.forward(x) and Capped.fc(Capped.features(x)) are not the same'),
        ('futile', 'Futile has no parameters: there is nothing to train'),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused_before_it_trains(train, capsys, exp, message):
    code, run = train(exp=exp)
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count('\n') == 1
    assert not run.exists()


def test_a_model_that_is_not_causal_trains_and_is_told_so_once(train, capsys):
    code, run = train(exp='bidirectional', quiet=False)
    error = capsys.readouterr().err
    assert code == 0 and error.count('declares itself non-causal') == 1
    assert json.loads((run / 'stages.json').read_text())['s']['causal'] is False


def test_a_warmup_longer_than_the_stage_is_told_before_it_trains_and_by_the_dry_run(train, capsys):
    stage = {'steps': 3, 'warmup': 40}
    code, run = train(exp='mean', stage=stage, flags=['--dry-run'])
    assert code == 0 and 'warm-up of 40 steps takes the whole stage of 3' in capsys.readouterr().out
    code, run = train(exp='mean', stage=stage)
    (told,) = events(run, 'schedule')
    assert code == 0 and told['step'] == 0 and 'warm-up of 40 steps' in told['message']


def test_a_causal_model_is_not_told_so(train, capsys):
    _, run = train(exp='mean', quiet=False)
    assert 'non-causal' not in capsys.readouterr().err
    assert json.loads((run / 'stages.json').read_text())['s']['causal'] is True


def test_parameters_that_the_plan_sets_otherwise_than_the_version_are_told(tiny_plan, tmp_path, capsys):
    shape = dict(num_blocks=1, embed_dim=16, max_len=32, tokenizer='bytes')
    options = ['--exp', 'test_runner', '--training-plan', str(tiny_plan(model=shape)), '--device', 'cpu']
    assert main([*options, '--run-dir', str(tmp_path / 'a'), '--steps', '1']) == 0
    said = 'the plan sets num_blocks 1 (2 in test_runner), embed_dim 16 (64 in test_runner), max_len 32 (128'
    assert said in capsys.readouterr().err
    asked = [f'--set={k}={v}' for k, v in shape.items()]  # on the command line, and so known
    assert main([*options, '--run-dir', str(tmp_path / 'b'), '--steps', '1', *asked]) == 0
    assert 'the plan sets' not in capsys.readouterr().err


@pytest.mark.parametrize('batch_size, length, expected', [(8, 32, 8), (4, 32, 4)])
def test_auto_begins_with_what_a_cpu_caches(train, batch_size, length, expected):
    stage = {'mini_batch_size': 'auto', 'batch_size': batch_size, 'row_length': length, 'steps': 2}
    _, run = train(exp='mean', stage=stage)
    assert progress(run)['mini_batch_size'] == expected == min(batch_size, CPU_TOKENS // length)


def test_auto_is_less_than_a_batch_where_sequences_are_long(train):
    stage = {'mini_batch_size': 'auto', 'batch_size': 8, 'row_length': 2048, 'steps': 1}
    _, run = train(exp='mean', stage=stage, max_len=2048)
    assert progress(run)['mini_batch_size'] == CPU_TOKENS // 2048 == 2


def test_a_mini_batch_is_no_larger_than_a_batch(train):
    _, run = train(exp='mean', stage={'mini_batch_size': 50, 'batch_size': 4})
    assert progress(run)['mini_batch_size'] == 4


def test_compiled_or_not_it_learns_the_same(train):
    _, eager = train('eager', exp='mean', stage={'steps': 2})
    _, compiled = train('compiled', exp='mean', stage={'steps': 2}, flags=['--compile-model'])
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)


def test_what_a_checkpoint_says_of_its_run(train):
    _, run = train(exp='mean', embed_dim=8)
    state = json.loads((run / 'checkpoints/last/state.json').read_text())
    assert state['exp'] == 'mean' and state['exp_file'] == f'{EXPERIMENTS}:mean'
    assert state['parameters'] == {'embed_dim': 8}
    assert state['hyperparameters'] == {'embed_dim': 8, 'max_len': 32}
    assert state['tokenizer'] == {'name': 'bytes', 'fingerprint': 'bytes-1'}
    assert (state['model'], state['seed'], state['stage']) == ('mean', 0, 's')


def test_what_a_stage_trains_is_in_stages_json(train):
    _, run = train(exp='mean', stage={'steps': 12, 'batch_size': 4})
    facts = json.loads((run / 'stages.json').read_text())['s']
    assert (facts['exp'], facts['row_length'], facts['samples'], facts['steps']) == ('mean', 32, 48, 12)
    assert set(facts['fingerprints']) == {'data', 'tokenizer', 'evaluation', 'text'}
    _, timed = train('timed', exp='mean', stage={'steps': None, 'seconds': 0.05})
    facts = json.loads((timed / 'stages.json').read_text())['s']
    assert facts['samples'] is None and facts['steps'] is None and summary(timed)['steps'] > 0


def test_a_warm_start_is_recorded_with_its_stage(train):
    _, first = train('first', exp='mean')
    _, second = train('second', exp='mean', flags=['--initial-model', first])
    (event,) = events(second, 'warm_start')
    assert (event['stage'], event['step']) == ('s', 0)
    assert event['message'].startswith(f'weights from {first}')
