"""What a later stage needs is told before the first step, by training and by --dry-run alike."""

import json
import re
import shutil

import pytest

from lmplay.base.runner_list import find_entry
from lmplay.train.__main__ import main
from tests.helpers import EXPERIMENTS, ROOT, train_records

TINY = [
    '--num-blocks',
    '1',
    '--embed-dim',
    '16',
    '--num-heads',
    '2',
    '--max-len',
    '32',
    '--tokenizer',
    'bytes',
]
IMPORTING = '''
from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner
from tests.train.experiments import Mean


class Importing(Mean):
    """Takes over what it is given, without asking whether it fits."""

    def import_pretrained(self, source):
        self.load_state_dict(source.state_dict())
        return [f'{{self.embed.weight.sum().item()}}']  # no number on the meta device


@expose_runner('{name}')
def runner(*args, **kwargs):
    return BasicModelRunner(Importing, *args, **kwargs)
'''


@pytest.fixture
def run(tiny_plan, tmp_path, capsys):
    """Trains two stages, the second as given; returns (exit code, what was said, was a step taken)."""

    def train(second, *flags, exp=None, **plan):
        file = tiny_plan({'one': {'steps': 1}, 'two': {'steps': 1} | second}, **plan)
        options = [
            '--training-plan',
            str(file),
            '--run-dir',
            str(tmp_path / 'run'),
            '--device',
            'cpu',
            '--quiet',
        ]
        code = main([*options, *(['--exp', exp] if exp else TINY), *flags])
        return code, capsys.readouterr().err, bool(train_records(tmp_path / 'run'))

    return train


def datasets(tmp_path) -> dict:
    return {
        'mine': {'loader': 'json', 'path': str(tmp_path / 'mine.jsonl')},
        'no_column': {'loader': 'json', 'path': str(tmp_path / 'mine.jsonl'), 'text': 'body'},
        'no_prompt': {'loader': 'json', 'path': str(tmp_path / 'mine.jsonl'), 'prompt': 'question'},
        'no_file': {'loader': 'csv', 'path': str(tmp_path / 'missing.csv')},
        'no_match': {'loader': 'text', 'path': str(tmp_path / 'nothing-*.txt')},
        'damaged': {'loader': 'json', 'path': str(tmp_path / 'damaged.jsonl')},
        'no_validation': {
            'loader': 'json',
            'path': str(tmp_path / 'mine.jsonl'),
            'validation': str(tmp_path / 'missing.jsonl'),
        },
    }


@pytest.mark.parametrize('flags', [[], ['--dry-run']])
@pytest.mark.parametrize(
    'second, told',
    [
        ({'dataset': 'no_file'}, "no file '.*missing.csv'"),
        ({'dataset': 'no_match'}, "no file matches '.*nothing-"),
        ({'dataset': 'no_column'}, "no column 'body'"),
        ({'dataset': 'no_prompt'}, "no column 'question'"),
        ({'dataset': 'damaged'}, 'line 60: not valid JSON'),
        ({'dataset': 'no_validation'}, "no file '.*missing.jsonl'"),
        ({'dataset': None, 'mix': {'mine': 1, 'no_file': 1}}, "no file '.*missing.csv'"),
        ({'init_from': 'runs/nope'}, "No checkpoint at 'runs/nope'"),
        ({'init_from': 'pretrained:nobody', 'exp': 'some_test'}, 'import_pretrained'),
        ({'row_length': 999}, 'longer than the model'),
        ({'model': {'num_heads': 3}}, 'num_heads'),
        ({'model': {'num_blocks': 3}, 'init_from': 'stage:one'}, 'architectures differ'),
        ({'exp': 'some_test'}, 'cannot start from'),
    ],
)
def test_what_a_later_stage_lacks_is_told_before_the_first_step(run, tmp_path, second, told, flags):
    rows = [json.dumps({'text': f'Ada saw {i} trees.'}) for i in range(59)]
    (tmp_path / 'mine.jsonl').write_text('\n'.join(rows))
    (tmp_path / 'damaged.jsonl').write_text('\n'.join([*rows, '{"text": ']))
    code, error, trained = run(second, *flags, exp='test_runner', datasets=datasets(tmp_path))
    assert (code, trained) == (2, False) and not (tmp_path / 'run').exists()
    assert re.search(told, error) and 'Stage "two"' in error and error.strip().count('\n') == 0, error


@pytest.mark.parametrize('flags', [[], ['--dry-run']])
def test_weights_of_another_shape_on_disk_are_tried_too(run, tiny_plan, tmp_path, flags):
    options = [
        '--training-plan',
        str(tiny_plan()),
        '--run-dir',
        str(tmp_path / 'other'),
        *TINY,
        '--device',
        'cpu',
    ]
    assert main([*options, '--quiet', '--embed-dim', '24']) == 0
    code, error, trained = run({'init_from': str(tmp_path / 'other')}, *flags)
    assert (code, trained) == (2, False) and 'a different architecture' in error and 'Stage "two"' in error
    assert run({'init_from': str(tmp_path / 'other')}, *flags, '--embed-dim', '24')[0] == 0


@pytest.mark.parametrize('flags', [[], ['--dry-run']])
def test_an_import_of_ones_own_is_tried_with_weights(run, tmp_path, flags):
    """Whatever it raises: here what torch says of shapes."""
    (tmp_path / 'importing').mkdir()
    (tmp_path / 'importing/versions.py').write_text(IMPORTING.format(name=f'importing{len(flags)}'))
    exp = str(tmp_path / 'importing/versions.py')
    find_entry(exp)  # a plan alone may not name a file of code
    mean = f'{EXPERIMENTS}:mean'
    code, error, trained = run({'exp': exp, 'model': {'embed_dim': 24}}, *flags, exp=mean)
    assert (code, trained) == (2, False)
    assert 'import_pretrained raised RuntimeError' in error and 'size mismatch' in error
    assert run({'exp': exp}, *flags, exp=mean)[0] == 0


def test_a_resumed_run_does_not_ask_for_what_its_past_needed(run, tiny_plan, tmp_path):
    """The weights that its first stage started from may be gone."""
    options = [
        '--training-plan',
        str(tiny_plan()),
        '--run-dir',
        str(tmp_path / 'first'),
        *TINY,
        '--device',
        'cpu',
    ]
    assert main([*options, '--quiet']) == 0
    start = ['--initial-model', str(tmp_path / 'first')]
    assert run({}, *start)[0] == 0
    shutil.rmtree(tmp_path / 'first')
    assert run({'steps': 2}, *start)[0] == 0


def test_the_example_of_the_page_trains_from_first_to_last(tmp_path, corpus, capsys):
    """docs/plans.md: gpt2ish, then gpt2_moe upcycled from it, here narrower and shorter."""
    page = (ROOT / 'docs' / 'plans.md').read_text(encoding='utf-8')
    (example,) = [p for p in map(json.loads, re.findall(r'```json\n(.*?)```', page, re.S)) if 'stages' in p]
    example['datasets']['mine'] |= {'path': str(corpus), 'text': 'text'}
    example['model'] = {'embed_dim': 16, 'num_heads': 2, 'max_len': 32, 'tokenizer': 'bytes'}
    pretrain, upcycle = example['stages'].values()
    pretrain |= {'mix': None, 'dataset': 'mine'}  # no network
    del pretrain['tokens'], upcycle['epochs']
    short = {'steps': 2, 'batch_size': 2, 'mini_batch_size': 2, 'row_length': 32, 'validation_bytes': 500}
    for stage in (pretrain, upcycle):
        stage |= short
    (tmp_path / 'plan.json').write_text(json.dumps(example))
    options = ['--training-plan', str(tmp_path / 'plan.json'), '--run-dir', str(tmp_path / 'run')]
    assert main([*options, '--device', 'cpu', '--dry-run']) == 0
    assert main([*options, '--device', 'cpu', '--quiet']) == 0
    assert [r['stage'] for r in train_records(tmp_path / 'run')] == ['pretrain'] * 2 + ['upcycle'] * 2
    upcycle['model'] = {'num_blocks': 12}  # what the page showed once
    (tmp_path / 'plan.json').write_text(json.dumps(example))
    capsys.readouterr()
    assert main([*options[:3], str(tmp_path / 'twelve'), '--device', 'cpu', '--dry-run']) == 2
    assert 'does not fit' in capsys.readouterr().err


LEAKS = """
from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner
from tests.train.experiments import Mean


class Leaks(Mean):
    def forward(self, x, cache=None):
        return super().forward(x.roll(-1, 1))


@expose_runner('NAME')
def runner(*args, **kwargs):
    return BasicModelRunner(Leaks, *args, **kwargs)
"""


@pytest.mark.parametrize('flags', [[], ['--dry-run']])
@pytest.mark.parametrize('at', [0, 1])
def test_a_model_that_sees_the_future_is_told_before_the_first_step(tiny_plan, tmp_path, capsys, at, flags):
    file = tmp_path / 'leaks.py'
    file.write_text(LEAKS.replace('NAME', f'leaks_{at}_{len(flags)}'))
    find_entry(str(file))  # a plan alone may not name a file of code
    stages = {'one': {'steps': 1}, 'two': {'steps': 1, 'init_from': 'scratch'}}
    list(stages.values())[at]['exp'] = str(file)
    if not at:
        stages.pop('two')
    plan = tiny_plan(stages)
    options = ['--training-plan', str(plan), '--run-dir', str(tmp_path / 'run'), '--device', 'cpu', '--quiet']
    assert main([*options, *flags]) == 2
    error = capsys.readouterr().err
    assert 'it sees the future' in error and not (tmp_path / 'run').exists()
    assert not at or 'Stage "two"' in error


def many(tmp_path) -> str:
    file = tmp_path / 'many.jsonl'
    file.write_text(
        ''.join(json.dumps({'text': f'Ada saw {i} trees, {i * i} leaves.'}) + '\n' for i in range(900))
    )
    return str(file)


@pytest.mark.parametrize('flags', [[], ['--dry-run']])
def test_held_out_text_that_was_trained_on_before_is_refused(run, tmp_path, flags):
    """Of fewer documents a larger share is held out, which the stage before has trained on."""
    known = {'all': {'loader': 'json', 'path': many(tmp_path)}}
    known['some'] = known['all'] | {'limit': 60}
    known['mine'] = known['all']
    code, error, trained = run({'dataset': 'some'}, *flags, datasets=known, exp='test_runner')
    assert (code, trained) == (2, False)
    assert re.search(r'Stage "two": \d+ of 1\d held-out documents are trained on in stage "one"', error), (
        error
    )


@pytest.mark.parametrize('flags', [[], ['--dry-run']])
def test_held_out_text_that_is_training_text_too_is_refused(run, tmp_path, flags):
    path = many(tmp_path)
    known = {'mine': {'loader': 'json', 'path': path}}
    known['own'] = known['mine'] | {'validation': path}
    code, error, trained = run({'dataset': 'own'}, *flags, datasets=known, exp='test_runner')
    assert (code, trained) == (2, False)
    assert re.search(r'Stage "two": 20 of 20 held-out documents are trained on in the same stage', error), (
        error
    )
