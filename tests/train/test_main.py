"""lmp_trainer as a user runs it, bad input included: one sentence, exit code 2, nothing half-written."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lmplay.errors import UserError
from lmplay.runs.recorder import read_metrics
from lmplay.train.__main__ import dump_config, main, parse, plan_of
from lmplay.train.plan import SETTABLE

TINY = [
    '--device',
    'cpu',
    '--num-blocks',
    '1',
    '--embed-dim',
    '16',
    '--num-heads',
    '2',
    '--max-len',
    '32',
    '--set',
    'tokenizer=bytes',
    '--quiet',
]


def refused(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('lmp_trainer: ') and error.count('\n') == 1, error
    return error


def test_help_imports_neither_torch_nor_pydantic_and_reads_no_experiment():
    code = (
        'import sys; from lmplay.train.__main__ import main\ntry: main(["--help"])\nexcept SystemExit: pass\n'
        'assert not {"torch", "numpy", "pydantic", "datasets", "transformers"} & sys.modules.keys()\n'
        'assert not [m for m in sys.modules if m.startswith("lmplay.exp")]'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    for key in SETTABLE:
        assert f'--{key.replace("_", "-")}' in out.stdout
    shown = ' '.join(out.stdout.split())
    assert 'learning rate (a number above 0; default: 0.0006)' in shown
    assert '--drop-last, --no-drop-last' in shown and 'default: [0.9, 0.95]' in shown


def test_list_for_machines(capsys):
    assert main(['--exp', 'list', '--json']) == 0
    rows = {r['name']: r for r in json.loads(capsys.readouterr().out)}
    assert rows['gpt2ish_med']['parameters']['num_blocks'] == 24 and rows['gpt2ish']['error'] is None


def test_the_list_fits_a_screen_and_says_all_on_request(command, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '120')
    lines = command('train', '--exp', 'list').stdout.splitlines()  # without what tests have registered
    assert 20 < len(lines) < 45 and max(map(len, lines)) <= 120
    assert not any('embed_dim' in line for line in lines)
    assert main(['--exp', 'list', '--verbose']) == 0
    out = capsys.readouterr().out
    assert 'embed_dim=768' in out and max(map(len, out.splitlines())) <= 120


def test_what_is_trained_where_nothing_is_named():
    """A first run takes minutes; an experiment that is named is trained as it is."""
    for flags, name in (
        ([], 'quickstart'),
        (['--seed', '1'], 'quickstart'),
        (['--exp', 'gpt2_moe'], 'default'),
    ):
        assert plan_of(parse(flags)).name == name
    assert parse(['--num-blocks', '2']).model == {'num_blocks': 2}


def test_describe(capsys):
    assert main(['--exp', 'gpt2ish', '--describe', '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (
        figures['total_parameters']
        == figures['trainable_parameters']
        == figures['active_parameters']
        == 120_560_209
    )
    assert figures['forward_flops_per_token'] * 3 / 1e6 == pytest.approx(543.01, abs=0.01)
    assert figures['memory_bytes']['optimizer'] == 2 * 4 * 120_560_209
    assert (
        main(['--exp', 'gpt2ish', '--describe', '--num-blocks', '2', '--embed-dim=128', '--num-heads', '4'])
        == 0
    )
    out = capsys.readouterr().out
    assert 'num_blocks' in out and 'parameters, trainable' in out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--exp', 'gpt2sh'], "Unknown experiment 'gpt2sh'. Did you mean 'gpt2ish'?"),
        (
            ['--vaidation-interval', '3'],
            "Unknown option '--vaidation-interval'. Did you mean '--validation-interval'?",
        ),
        (['--num-block', '3'], "Did you mean '--num-blocks'?"),
        (['--num-blocks'], "'--num-blocks' needs a value"),
        (['--set', 'embed_dim'], 'KEY=VALUE'),
        (['--set', 'embeddim=3'], "Did you mean 'embed_dim'?"),
        (['--training-plan', 'quickstrt'], "Did you mean 'quickstart'?"),
        (
            ['--optimizer', 'adamm'],
            '--optimizer must be adamw, .* or muon; given: "adamm". Did you mean .adam.',
        ),
        (['--schedule', 'cosin'], "Did you mean 'cosine'?"),
        (['--lr', '-1'], '--lr must be a number above 0; given: "-1".'),
        (['--epochs', '-1'], '--epochs must be a number above 0 and at most 1e.12; given: "-1".'),
        (['--steps', '1.5'], '--steps must be a whole number above 0 and at most 1e.12; given: "1.5".'),
        (['--mini-batch-size', 'many'], 'a whole number from 1 to 1e.12 or "auto"; given: "many"'),
        (['--betas', '0.9', '1'], '--betas must be 2 numbers of at least 0 and below 1; given: "0.9 1"'),
        (['--score-padding'], '"score_padding" needs "packing": "pad"'),
        (['--init-from', 'stage:later'], "Unknown earlier stage 'later'"),
        (['--gelu', '--quiet'], "'--gelu' needs a value"),
        (['--num-blocks', '2.5'], 'num_blocks must be a whole number, like its default 6; given: 2.5'),
        (['--norm-eps', 'small'], 'norm_eps must be a number, like its default 1e-05; given: "small"'),
        (['--device', 'gpu'], "Unknown device 'gpu'"),
        (['--device', 'cpux'], "Did you mean 'cpu'"),
        (['--report-to', 'tensorbord'], "Did you mean 'tensorboard'?"),
        (['--use-config', '/none.yaml'], "Can't read the config"),
        (
            ['--embed-dim', '50', '--num-heads', '4'],
            'multiple of num_heads; given: embed_dim 50, num_heads 4',
        ),
        (['--initial-model', '/none'], "No checkpoint at '/none'"),
        (['--row-length', '9999'], 'longer than the model'),
    ],
)
def test_bad_input_is_one_sentence(capsys, tmp_path, tiny_plan, arguments, message):

    plan = [] if '--training-plan' in arguments else ['--training-plan', tiny_plan()]
    error = refused(capsys, '--run-dir', tmp_path / 'run', *plan, '--quiet', *arguments)
    assert re.search(message, error) or message in error, error
    assert not (tmp_path / 'run').exists()


def test_rows_longer_than_the_model(capsys, tmp_path, tiny_plan):
    error = refused(
        capsys, '--run-dir', tmp_path / 'run', '--training-plan', tiny_plan({'s': {'row_length': 64}}), *TINY
    )
    assert "sequences of 64 tokens are longer than the model's max_len of 32" in error


@pytest.mark.parametrize('start', ['previous', 'stage:first'])
def test_a_later_stage_that_could_not_start_is_told_before_the_first_trains(
    capsys, tmp_path, tiny_plan, start
):
    plan = tiny_plan({'first': {'steps': 1}, 'second': {'steps': 1, 'init_from': start, 'exp': 'some_test'}})
    error = refused(capsys, '--run-dir', tmp_path / 'run', '--training-plan', plan, *TINY)
    assert 'cannot start from' in error and not (tmp_path / 'run').exists()


def test_a_warm_start_is_told_once_and_of_its_own_stage(command, tiny_plan, tmp_path):
    plan = tiny_plan({'first': {'steps': 1}, 'second': {'steps': 1, 'init_from': 'stage:first'}})
    out = command(
        'train', '--training-plan', plan, '--run-dir', tmp_path / 'run', *(f for f in TINY if f != '--quiet')
    )
    assert out.returncode == 0, out.stderr
    events = [r for r in read_metrics(tmp_path / 'run') if r.get('event') == 'warm_start']
    assert [(e['stage'], out.stderr.count(e['message'])) for e in events] == [('second', 1)]


def test_a_start_that_failed_takes_back_no_more_than_it_made(capsys, tmp_path, tiny_plan, monkeypatch):
    bad = ['--training-plan', tiny_plan({'s': {'row_length': 64}}), *TINY]
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.txt').write_text('precious')
    for run_dir in ('mine', 'none/../mine', 'mine/none/..'):
        refused(capsys, '--run-dir', f'{tmp_path}/{run_dir}', *bad)
        assert (tmp_path / 'mine/thesis.txt').read_text() == 'precious'

    def opened(*_, **__):  # late, and meanwhile somebody puts a file there
        (tmp_path / 'run/notes.txt').write_text('mine')
        raise UserError('no')

    monkeypatch.setattr('lmplay.train.readiness.open_data', opened)
    refused(capsys, '--run-dir', tmp_path / 'run', '--training-plan', tiny_plan(), *TINY)
    assert [f.name for f in (tmp_path / 'run').iterdir()] == ['notes.txt']


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_step_stops_at_once(tmp_path, tiny_plan, monkeypatch, number, code):
    def slow(*_, **__):
        os.kill(os.getpid(), number)
        for _ in range(1000):
            time.sleep(0.01)
        raise AssertionError('it went on')

    monkeypatch.setattr('lmplay.train.readiness.open_data', slow)
    assert main(['--run-dir', str(tmp_path / 'run'), '--training-plan', str(tiny_plan()), *TINY]) == code


def test_a_name_that_no_directory_can_have(capsys, tiny_plan, tmp_path):
    assert 'File name too long' in refused(
        capsys, '--run-dir', tmp_path / ('a' * 300), '--training-plan', tiny_plan(), *TINY
    )


def test_no_validation_rows(capsys, tmp_path, tiny_plan):
    error = refused(
        capsys, '--run-dir', tmp_path / 'run', '--training-plan', tiny_plan(validation_fraction=0), *TINY
    )
    assert 'has no held-out documents' in error


@pytest.mark.parametrize('packing', ['pack', 'pad'])
def test_documents_of_one_token_train_and_equal_ones_cannot_be_split(capsys, tmp_path, tiny_plan, packing):
    file = tmp_path / 'ones.jsonl'
    file.write_text('\n'.join(json.dumps({'text': chr(65 + i)}) for i in range(40)))
    stage = {'dataset': str(file), 'steps': 1, 'packing': packing}
    assert (
        main(['--training-plan', str(tiny_plan({'s': stage})), '--run-dir', str(tmp_path / 'run'), *TINY])
        == 0
    )
    file.write_text('\n'.join(json.dumps({'text': 'x'}) for _ in range(40)))
    assert 'all documents are identical' in refused(
        capsys, '--training-plan', tiny_plan({'s': stage}), '--run-dir', tmp_path / 'equal', *TINY
    )


def test_a_run_directory_that_cannot_be_written(capsys, tiny_plan):
    assert "Can't write the run directory" in refused(
        capsys, '--run-dir', '/proc/run', '--training-plan', tiny_plan(), *TINY
    )


def config(tmp_path, text: str) -> list[str]:
    (tmp_path / 'c.yaml').write_text(text)
    return ['--use-config', str(tmp_path / 'c.yaml')]


def test_config_round_trip(tmp_path):
    flags = ['--exp', 'test_runner', '--lr', '0.003', '--num-blocks', '3', '--set', 'ff_dropout=0.2', '--amp']
    flags += ['--mini-batch-size', 'auto', '--betas', '0.8,0.9', '--no-include-prompts', '--clip', 'none']
    text = dump_config(parse(flags))
    assert yaml.safe_load(text) == {
        'exp': 'test_runner',
        'lr': 0.003,
        'mini_batch_size': 'auto',
        'betas': [0.8, 0.9],
        'include_prompts': False,
        'clip': 'none',
        'amp': True,
        'model': {'num_blocks': 3, 'ff_dropout': 0.2},
    }
    assert dump_config(parse(config(tmp_path, text))) == text
    assert parse([*config(tmp_path, text), '--lr', '1', '--num-blocks', '9']).stage['lr'] == 1
    assert parse([*config(tmp_path, text), '--num-blocks', '9']).model == {'num_blocks': 9, 'ff_dropout': 0.2}


@pytest.mark.parametrize(
    'text, message',
    [
        ('learning_rate: 3', "Unknown option 'learning_rate'"),
        ('model: [1]', 'model must map'),
        ('model: {3: 4}', 'model must map'),
        ('model: {num_blocks: 2.5}', 'num_blocks must be a whole number, like its default 6; given: 2.5'),
        ('model: {tokenizer: 123}', 'tokenizer must be a string, like its default "gpt2"; given: 123'),
        ('model: {num_block: 2}', "Did you mean 'num_blocks'"),
        ('amp: maybe', 'amp must be true or false'),
        ('exp: 5', 'exp must be a string'),
        ('keep: [1]', 'keep must be a whole number'),
        ('keep: 1.5', 'keep must be a whole number'),
        ('report_to: tensorboard', 'report_to must be a list'),
        ('lr: fast', 'c.yaml\', lr must be a number above 0; given: "fast"'),
        ('drop_last: 3', "c.yaml', drop_last must be true or false; given: 3"),
        ('packing: pat', "c.yaml', packing must be pack or pad; given: \"pat\". Did you mean 'pad'?"),
        ('dataset: [a]', 'dataset must be a string'),
        ('[', "Can't read the config"),
        ('3', 'must be a YAML mapping'),
    ],
)
def test_a_config_is_checked_as_flags_are(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        parse(config(tmp_path, text))
    assert message in str(error.value) and '\n' not in str(error.value)


def test_a_config_that_never_ends_is_not_read(capsys):
    assert main(['--use-config', '/dev/zero']) == 2
    assert "Can't read the config '/dev/zero'" in capsys.readouterr().err


def test_numbers_as_people_write_them(tmp_path):
    args = parse(['--set', 'ff_dropout=1e-1', '--set', 'tokenizer=bytes', '--norm-eps=1e-6'])
    assert args.model == {'ff_dropout': 0.1, 'tokenizer': 'bytes', 'norm_eps': 1e-6}
    args = parse(config(tmp_path, 'lr: 3e-4\nmodel: {norm_eps: 1e-5, num_blocks: 4.0}'))
    assert args.stage == {'lr': 3e-4} and args.model == {'norm_eps': 1e-5, 'num_blocks': 4}
    assert isinstance(args.model['norm_eps'], float) and isinstance(args.model['num_blocks'], int)


@pytest.mark.parametrize(
    'flags, stage',
    [
        ([], {}),
        (['--final-lr', '0.1', '--drop-last'], {'final_lr': 0.1, 'drop_last': True}),
        (['--betas', '0.9', '0.99', '--steps', '3'], {'betas': (0.9, 0.99), 'steps': 3}),
        (['--betas=0.9,0.99'], {'betas': (0.9, 0.99)}),
        (['--mini-batch-size', '2'], {'mini_batch_size': 2}),
        (['--no-include-prompts', '--score-padding'], {'include_prompts': False, 'score_padding': True}),
        (
            ['--long-documents', 'cut', '--exhaust', 'all_exhausted', '--init-from', 'scratch'],
            {'long_documents': 'cut', 'exhaust': 'all_exhausted', 'init_from': 'scratch'},
        ),
    ],
)
def test_every_stage_key_is_a_flag(flags, stage):
    assert parse(flags).stage == stage


def test_model_flags_are_those_of_the_plans_experiment(tmp_path, tiny_plan):
    plan = str(tiny_plan(exp='some_test'))
    assert parse(['--training-plan', plan, '--num-experts', '4']).model == {'num_experts': 4}
    with pytest.raises(UserError, match="Did you mean '--num-experts'"):
        parse(['--training-plan', plan, '--num-expert', '4'])


def test_an_experiment_that_contradicts_the_plans_first_stage_is_refused(capsys, tmp_path, tiny_plan):
    plan = str(tiny_plan({'one': {'steps': 1, 'exp': 'test_runner'}, 'two': {'steps': 1, 'exp': 'gpt2ish'}}))
    options = ['--training-plan', plan, '--run-dir', str(tmp_path / 'run')]
    error = refused(capsys, *options, '--exp', 's_gpt2ish', '--dry-run')
    assert '--exp names s_gpt2ish, and stage "one" of plan' in error and 'names test_runner' in error
    sizes = ['--embed-dim', '16', '--num-heads', '2', '--num-blocks', '1', '--max-len', '32']
    plan = str(tiny_plan({'one': {'steps': 1, 'exp': 'some_test'}}))
    for exp in ([], ['--exp', 'some_test']):  # nothing given, or the same; its parameters are flags
        options = [*exp, '--training-plan', plan, '--run-dir', str(tmp_path / 'run'), *sizes]
        assert main([*options, '--num-experts', '4', '--device', 'cpu', '--quiet']) == 0
    assert json.loads((tmp_path / 'run/summary.json').read_text())['exp'] == 'some_test'


def test_the_list_prints_text_as_it_is(tmp_path, monkeypatch):
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd/versions.py').write_text(
        'from lmplay.base.base_model import BasicModelRunner\n'
        'from lmplay.base.runner_list import expose_runner\n'
        '@expose_runner("odd", description="[bold]with \\x1b[31m[/nonsense]")\n'
        'def runner(**kwargs):\n    return BasicModelRunner(print)\n'
    )
    info = tmp_path / 'odd-1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: odd\nVersion: 1\n')
    (info / 'entry_points.txt').write_text('[lmplay.experiments]\nodd = odd.versions\n')
    out = subprocess.run(
        [sys.executable, '-m', 'lmplay.train', '--exp', 'list'],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert out.returncode == 0, out.stderr
    assert '[bold]with' in out.stdout and '[/nonsense]' in out.stdout and '\x1b' not in out.stdout


def test_a_run_from_first_to_last(command, tiny_plan, tmp_path):
    plan = tiny_plan({'one': {'steps': 6}, 'two': {'steps': 3, 'packing': 'pad', 'include_prompts': False}})
    out = command(
        'train',
        '--training-plan',
        plan,
        '--run-dir',
        'run',
        '--report-to',
        'tensorboard',
        '--check-grads',
        *[a for a in TINY if a != '--quiet'],
    )
    assert out.returncode == 0, out.stderr
    run = tmp_path / 'run'
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['steps'] == 9 and summary['validation_loss'] > 0 and summary['sample']
    assert set(summary['evaluation']['domains']) == {'a', 'b'}
    for name in (
        'metrics.jsonl',
        'train_stats.csv',
        'validate_stats.csv',
        'samples.jsonl',
        'settings.json',
        'plan.json',
        'environment.json',
        'curves.png',
        'held_out-one.npz',
        'held_out-two.npz',
    ):
        assert (run / name).stat().st_size > 0, name
    assert (run / 'train_stats.csv').read_text().splitlines()[0] == 'iter,accuracy,loss,tokens'
    assert list((run / 'tensorboard').iterdir())
    for link in ('last', 'best', 'stage-one', 'stage-two'):
        assert (run / 'checkpoints' / link / 'state.json').is_file()
    assert (
        'Every trainable parameter gets a gradient' in out.stderr
        and 'Finished' in out.stderr
        and 'curves.png' in out.stderr
    )
    assert 'prompt' in out.stderr and 'prediction' in out.stderr


def test_dry_run_and_save_datasets_train_nothing(command, tiny_plan, tmp_path):
    plan = tiny_plan({'one': {'steps': 6}})
    out = command('train', '--training-plan', plan, '--run-dir', 'run', '--dry-run', *TINY)
    assert out.returncode == 0 and 'Nothing was trained' in out.stdout and '24 x 32' in out.stdout, out.stderr
    out = command(
        'train',
        '--training-plan',
        plan,
        '--run-dir',
        'run',
        '--save-datasets',
        *[a for a in TINY if a != '--quiet'],
    )
    assert out.returncode == 0 and 'Tokens are in' in out.stderr
    assert not (tmp_path / 'run').exists()


def test_initial_model_and_reset_history(tiny_plan, tmp_path, capsys):
    plan = str(tiny_plan())
    base = ['--training-plan', plan, *TINY]
    assert main([*base, '--run-dir', str(tmp_path / 'a')]) == 0
    first = json.loads((tmp_path / 'a/summary.json').read_text())
    # a run that begins with those weights begins near where the first ended
    assert (
        main(
            [
                *base,
                '--run-dir',
                str(tmp_path / 'b'),
                '--initial-model',
                str(tmp_path / 'a'),
                '--lr',
                '1e-9',
                '--ignore-optimizer',
            ]
        )
        == 0
    )
    second = json.loads((tmp_path / 'b/summary.json').read_text())
    assert second['validation_loss'] == pytest.approx(first['best_validation_loss'], rel=1e-5)
    assert main([*base, '--run-dir', str(tmp_path / 'a'), '--reset-history', '--lr', '1e-9']) == 0
    third = json.loads((tmp_path / 'a/summary.json').read_text())
    assert third['steps'] == 4 and third['validation_loss'] == pytest.approx(
        first['validation_loss'], rel=1e-5
    )
    assert len((tmp_path / 'a/train_stats.csv').read_text().splitlines()) == 5
    other = [a for a in base if a not in ('16',)]
    other.insert(other.index('--embed-dim') + 1, '24')
    assert 'different architecture' in refused(capsys, *other, '--run-dir', tmp_path / 'a')


def test_a_run_that_cannot_be_resumed_is_left_as_it_is(tiny_plan, tmp_path, capsys):
    plan, run = str(tiny_plan()), tmp_path / 'run'
    base = [*TINY, '--run-dir', str(run), '--training-plan']
    assert main([*base, plan, '--save-interval', '1']) == 0
    for optimizer in ('muon', 'sgd', 'rmsprop', 'adagrad'):
        assert 'of another optimizer' in refused(
            capsys, *base, plan, '--optimizer', optimizer, '--steps', '9'
        )
    renamed = tmp_path / 'renamed.json'
    content = json.loads(Path(plan).read_text())
    renamed.write_text(
        json.dumps(content | {'stages': {f'{name}2': stage for name, stage in content['stages'].items()}})
    )
    assert 'has reached stage 1' in refused(capsys, *base, renamed)
    metrics = (run / 'metrics.jsonl').read_bytes()
    kept = (run / 'checkpoints').rename(tmp_path / 'elsewhere')  # to save space, say
    assert 'No checkpoint at' in refused(capsys, *base, plan, '--initial-model', tmp_path)
    assert (run / 'metrics.jsonl').read_bytes() == metrics and not list(run.glob('history-*'))
    assert main([*base, plan]) == 0
    assert (run / 'history-1/metrics.jsonl').read_bytes() == metrics
    shutil.rmtree(run / 'checkpoints')
    kept.rename(run / 'checkpoints')


def test_nothing_is_written_beside_other_peoples_files(capsys, tiny_plan, tmp_path):
    before = {'samples.jsonl': 'mine\n', 'settings.json': '{}', 'notes.txt': 'x'}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    plan = tiny_plan()
    held = {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}
    told = refused(capsys, '--training-plan', plan, '--run-dir', tmp_path, *TINY)
    assert "is no run's directory" in told
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()} == held


def test_frozen_weights_stay(tiny_plan, tmp_path, capsys):
    assert 'No parameter of the model is trainable' in refused(
        capsys, '--training-plan', tiny_plan(), '--run-dir', tmp_path / 'r', '--default-freeze', *TINY
    )


def test_a_run_goes_on_only_as_what_it_was(tiny_plan, tmp_path, capsys):
    base = ['--training-plan', str(tiny_plan()), *TINY, '--run-dir', str(tmp_path / 'run')]
    assert main([*base, '--steps', '2']) == 0
    assert 'num_heads was 2 and is 4' in refused(capsys, *[a if a != '2' else '4' for a in base])
    assert 'started with seed 0; given: 3' in refused(capsys, *base, '--seed', '3')
    assert main([*base, '--lr', '0.01']) == 0
    events = [
        r['message']
        for r in map(json.loads, (tmp_path / 'run/metrics.jsonl').read_text().splitlines())
        if r['kind'] == 'event'
    ]
    assert any('continues with changed settings' in m and 'lr from 0.0006 to 0.01' in m for m in events)


BROKEN = """
from torch import nn
from lmplay.base.base_model import BasicModelRunner, LMBase
from lmplay.base.runner_list import expose_runner
from lmplay.tokenizers import BytesTokenizer
class Broken(LMBase):
    def __init__(self, max_len=32):
        super().__init__('broken', max_len=max_len)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 257)
    def forward(self, x, cache=None):
        {body}
@expose_runner('{name}')
def runner(**kwargs):
    return BasicModelRunner(Broken, **kwargs)
"""


@pytest.mark.parametrize(
    'body, message',
    [
        ('return None', '(2, 8, 257); given: NoneType'),
        ('return self.embed(x), 1', '(2, 8, 257); given: tuple'),
        (
            'return self.embed(x)[..., :8] if cache is None else (self.embed(x)[:, -1:], cache)',
            '(2, 8, 257); given: (2, 8, 8)',
        ),
        (
            'return self.embed(x) if cache is None else (self.embed(x), cache)',
            '(2, 1, 257); given: (2, 8, 257)',
        ),
    ],
)
def test_a_model_that_breaks_the_contract_is_told_before_it_trains(
    tiny_plan, tmp_path, capsys, body, message
):
    file = tmp_path / 'versions.py'
    file.write_text(BROKEN.format(body=body, name=f'broken_{tmp_path.name}'))
    error = refused(
        capsys,
        '--exp',
        file,
        '--training-plan',
        tiny_plan(),
        '--run-dir',
        tmp_path / 'run',
        '--device',
        'cpu',
        '--quiet',
    )
    assert message in error
    assert not (tmp_path / 'run').exists()


def test_a_run_that_diverged_gets_its_summary(tiny_plan, tmp_path):
    assert main(
        [
            '--training-plan',
            str(tiny_plan()),
            *TINY,
            '--run-dir',
            str(tmp_path / 'run'),
            '--lr',
            '1e30',
            '--warmup',
            '0',
        ]
    ) in (0, 1)


def test_a_dataset_on_the_command_line_replaces_the_plans(tiny_plan, tmp_path, corpus):
    other = tmp_path / 'other.txt'
    other.write_text('\n'.join(f'Line {i} of another text.' for i in range(300)))
    assert (
        main(
            [
                '--training-plan',
                str(tiny_plan()),
                *TINY,
                '--run-dir',
                str(tmp_path / 'run'),
                '--dataset',
                str(other),
            ]
        )
        == 0
    )
    assert (
        'her text' in (tmp_path / 'run/samples.jsonl').read_text()
    )  # of "another text", wherever the row was cut
    assert 'Validation loss' in (tmp_path / 'run/summary.txt').read_text()
