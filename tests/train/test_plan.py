import json
import math
from pathlib import Path

import pytest

from lmplay.errors import DataError, PlanError, UserError
from lmplay.train.optimizer import learning_rate
from lmplay.train.plan import (
    SETTABLE,
    Stage,
    load_plan,
    parse_plan,
    shipped_plans,
    stage_help,
    stage_table,
    stage_value,
    write_stage_table,
)

ONE = {'dataset': 'embedded', 'epochs': 1}


def test_the_three_forms_mean_the_same():
    short = parse_plan(
        {'a': {'dataset': 'wikipedia', 'epochs': 1}, 'b': {'dataset': 'wikitext', 'epochs': 2}}
    )
    full = parse_plan(
        {'stages': {'a': {'dataset': 'wikipedia', 'epochs': 1}, 'b': {'dataset': 'wikitext', 'epochs': 2}}}
    )
    original = parse_plan(
        {
            'datasets': {},
            'steps': [
                {'step_name': 'a', 'datasets': ['wikipedia'], 'epochs': 1.0},
                {'step_name': 'b', 'datasets': 'wikitext', 'epochs': 2},
            ],
        }
    )
    for plan in (full, original):
        assert [plan.stage(i) for i in range(2)] == [short.stage(i) for i in range(2)]


def test_the_originals_datasets_and_mixtures():
    plan = parse_plan(
        {
            'seed': 3,
            'datasets': {
                'wiki_en': {'ds_loader': 'wiki', 'args': ['en']},
                'ts': {
                    'ds_loader': 'hf',
                    'args': ['tinystories', 'roneneldan/TinyStories'],
                    'kwargs': {'truth_column': 'text'},
                },
            },
            'steps': [
                {
                    'step_name': 'both',
                    'datasets': ['wiki_en', 'ts'],
                    'epochs': 0.5,
                    'interleve_stopping_strategy': 'all_exhausted',
                }
            ],
        }
    )
    stage = plan.stage(0)
    assert (plan.seed, stage.mix, stage.exhaust, stage.epochs) == (
        3,
        {'wiki_en': 1.0, 'ts': 1.0},
        'all_exhausted',
        0.5,
    )


def test_precedence_defaults_version_plan_command_line():
    plan = parse_plan({'s': ONE | {'lr': 0.1}})
    version = {'lr': 0.5, 'clip': 2.0, 'schedule': 'linear'}
    stage = plan.stage(0, version, {'schedule': 'constant', 'steps': 7})
    assert (stage.lr, stage.clip, stage.schedule, stage.optimizer) == (0.1, 2.0, 'constant', 'adamw')
    assert (stage.steps, stage.epochs) == (7, None)


@pytest.mark.parametrize(
    'raw, message',
    [
        ({}, 'at least one stage'),
        ([], 'is a JSON object'),
        ({'stages': {}}, 'at least one stage'),
        ({'s': {}}, 'either "dataset" or "mix"'),
        ({'s': ONE | {'mix': {'embedded': 1}}}, 'not both'),
        ({'s': {'dataset': 'embedded', 'epoch': 1}}, "Unknown key 'epoch'.*Did you mean 'epochs'"),
        ({'stagse': {}, 'datasets': {}}, '"stages" is missing'),
        ({'stages': {'s': ONE}, 'sead': 1}, "Did you mean 'seed'"),
        (
            {'s': ONE | {'epochs': -1}},
            'my.json, stage "s": epochs must be a number above 0 and at most 1e.12; given: -1',
        ),
        ({'s': ONE | {'tokens': 5}}, 'one of epochs, tokens, steps, seconds; given: epochs and tokens'),
        ({'s': ONE | {'seconds': 5}}, 'given: epochs and seconds'),
        (
            {'s': {'dataset': 'embedded', 'seconds': 0}},
            'seconds must be a number above 0 and at most 1e.09; given: 0',
        ),
        ({'s': {'dataset': 'embedded', 'seconds': 1e308}}, 'seconds must be .*at most 1e.09; given: 1e.308'),
        (
            {'s': ONE | {'optimizer': 'adamww'}},
            'optimizer must be adamw, adam, .*rmsprop or muon; given: "adamww". Did you mean \'adamw\'',
        ),
        ({'s': {'dataset': 'embeded', 'epochs': 1}}, "Unknown dataset 'embeded'.*Did you mean 'embedded'"),
        ({'s': ONE | {'init_from': 'stage:x'}}, "Unknown earlier stage 'x'"),
        ({'s': ONE | {'lr': 'fast'}}, 'lr must be a number above 0; given: "fast"'),
        ({'s': ONE | {'lr': True}}, 'lr must be a number above 0; given: true'),
        (
            {'s': ONE | {'steps': 1.5, 'epochs': None}},
            'steps must be a whole number above 0 and at most 1e.12; given: 1.5',
        ),
        ({'s': ONE | {'drop_last': 'maybe'}}, 'drop_last must be true or false; given: "maybe"'),
        ({'s': ONE | {'final_lr': 2}}, 'final_lr must be a number from 0 to 1; given: 2'),
        ({'s': ONE | {'model': [1]}}, r'model must be an object; given: \[1\]'),
        ({'s': ONE | {'init_from': 3}}, 'init_from must be a string; given: 3'),
        ({'s': ONE | {'mini_batch_size': 0}}, 'a whole number from 1 to 1e.12 or "auto"; given: 0'),
        ({'s': ONE | {'mini_batch_size': True}}, 'a whole number from 1 to 1e.12 or "auto"; given: true'),
        ({'s': ONE | {'lr': float('inf')}}, 'lr must be a number above 0; given: Infinity'),
        ({'s': {'dataset': 'embedded', 'epochs': float('inf')}}, 'epochs must be .*given: Infinity'),
        ({'s': {'mix': {'embedded': float('inf')}}}, 'mix must be an object of numbers; given: .*Infinity'),
        (
            {'s': ONE | {'betas': [2, 3]}},
            r'betas must be 2 numbers of at least 0 and below 1; given: \[2, 3\]',
        ),
        ({'s': ONE | {'score_padding': True}}, 'needs "packing": "pad"'),
        ({'s': {'mix': {'embedded': 0}}}, 'weight above 0'),
        ({'s': 3}, 'must be an object'),
        ({'a/b': ONE}, 'slashes'),
        ({'a' * 300: ONE}, 'long'),
        ({'stages': {'s': ONE}, 'seed': -1}, '"seed" must be at least 0'),
        ({'stages': {'s': ONE}, 'description': 5}, '"description" must be a string'),
        ({'stages': {'s': ONE}, 'validation_fraction': 1}, 'below 1'),
        ({'stages': {'s': ONE}, 'seed': 'x'}, '"seed" must be a whole number'),
        ({'steps': [{'epochs': 1}]}, r'steps\[0\] needs "datasets"'),
    ],
)
def test_a_mistake_is_named_with_its_place(raw, message):
    with pytest.raises(PlanError, match=message):
        parse_plan(raw, where='my.json')


def test_a_mistake_in_a_dataset_is_named():
    with pytest.raises((PlanError, DataError), match="Did you mean 'path'"):
        parse_plan(
            {
                'datasets': {'mine': {'loader': 'json', 'pth': 'x'}},
                'stages': {'s': {'dataset': 'mine', 'epochs': 1}},
            }
        )


def test_files_that_are_no_plan(tmp_path):
    for content, message in (
        ('', 'is empty'),
        ('[' * 100_000, 'nested too deeply'),
        ('{"a": ', 'is not valid JSON: .*line 1'),
        ('{"a": 1, "a": 2}', 'twice'),
    ):
        (tmp_path / 'p.json').write_text(content)
        with pytest.raises(PlanError, match=message):
            load_plan(str(tmp_path / 'p.json'))
    (tmp_path / 'p.json').write_bytes(b'\xff\xfe{')
    with pytest.raises(PlanError, match="Can't read"):
        load_plan(str(tmp_path / 'p.json'))
    with pytest.raises(PlanError, match="Can't read"):
        load_plan(str(tmp_path / 'none.json'))
    with pytest.raises(PlanError, match="Did you mean 'quickstart'"):
        load_plan('quickstrat')


@pytest.mark.parametrize('name', sorted(shipped_plans()))
def test_shipped_plans_load_and_say_what_they_cost(name):
    plan = load_plan(name)
    assert plan.cost and plan.description
    for i in range(len(plan.stages)):
        plan.stage(i)


def test_the_promised_plans_are_shipped():
    assert {'quickstart', 'default', 'tinystories', 'wikipedia', 'wikitext', 'pretrain_then_finetune'} <= set(
        shipped_plans()
    )


def test_the_seeds_plan_loads(tmp_path):
    (tmp_path / 'my_plan.json').write_text(
        json.dumps(
            {
                'stage1_pretrain': {'dataset': 'wikipedia', 'epochs': 1},
                'stage2_finetune': {'dataset': 'wikitext', 'epochs': 1},
            }
        )
    )
    assert list(load_plan(str(tmp_path / 'my_plan.json')).stages) == ['stage1_pretrain', 'stage2_finetune']


def rates(**keys):
    stage = Stage(dataset='embedded', lr=1.0, **keys)
    return [learning_rate(stage, i, 100) for i in range(100)]


def test_schedules_are_what_they_are_called():
    assert rates(schedule='constant', warmup=0) == [1.0] * 100
    warm = rates(schedule='constant', warmup=0.1)
    assert warm[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)]) and warm[10:] == [1.0] * 90
    assert rates(schedule='constant', warmup=10) == warm
    cosine = rates(schedule='cosine', warmup=0)
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(100)])
    linear = rates(schedule='linear', warmup=0, final_lr=0.2)
    assert linear == pytest.approx([0.2 + 0.8 * (1 - i / 100) for i in range(100)])
    wsd = rates(schedule='wsd', warmup=5)
    assert wsd[5:80] == [1.0] * 75 and wsd[90] == pytest.approx(0.5) and wsd[99] == pytest.approx(0.05)


def test_errors_are_the_users():
    assert issubclass(PlanError, UserError) and issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    'key, text, value',
    [
        ('lr', '3e-4', 3e-4),
        ('batch_size', '8', 8),
        ('batch_size', 8.0, 8),
        ('mini_batch_size', 'auto', 'auto'),
        ('mini_batch_size', '2', 2),
        ('betas', '0.8,0.9', (0.8, 0.9)),
        ('betas', '[0.8, 0.9]', (0.8, 0.9)),
        ('betas', '0.8 0.9', (0.8, 0.9)),
        ('betas', [0.8, 0.9], (0.8, 0.9)),
        ('drop_last', 'true', True),
        ('init_from', '123', '123'),
        ('clip', 'none', None),
        ('row_length', 'null', None),
        ('score_padding', True, True),  # whatever the packing of a stage is
    ],
)
def test_a_key_by_itself_is_typed_as_in_a_plan(key, text, value):
    assert stage_value(key, text, f'--{key}') == value
    assert type(stage_value(key, text, f'--{key}')) is type(value)


@pytest.mark.parametrize(
    'key, text, message',
    [
        ('lr', '-1', '--lr must be a number above 0; given: "-1".'),
        ('lr', 'none', '--lr must be a number above 0; given: "none".'),
        ('steps', '2.5', '--steps must be a whole number above 0 and at most 1e+12; given: "2.5".'),
        ('schedule', 'cosin', 'given: "cosin". Did you mean \'cosine\'?'),
        ('betas', '0.9', '--betas must be 2 numbers of at least 0 and below 1; given: "0.9".'),
        ('packing', 'pat', '--packing must be pack or pad; given: "pat".'),
    ],
)
def test_a_key_by_itself_is_checked_as_in_a_plan(key, text, message):
    with pytest.raises(PlanError) as error:
        stage_value(key, text, f'--{key}')
    assert message in str(error.value)


@pytest.mark.parametrize(
    'key, allowed, refused',
    [
        ('lr', 1e-9, 0),
        ('final_lr', 0, -1e-9),
        ('final_lr', 1, 1.001),
        ('row_length', 2, 1),
        ('batch_size', 1, 0),
        ('tokens', 10**15, 10**15 + 1),
        ('mini_batch_size', 1, 0),
        ('clip', 0, float('nan')),
        ('betas', [0, 0.5], [0.5, 1]),
        ('betas', [0, 0.5], [False, 0.5]),
        ('drop_last', True, 2),
    ],
)
def test_the_range_that_a_key_declares_is_the_one_that_is_checked(key, allowed, refused):
    stage_value(key, allowed, key)
    with pytest.raises(PlanError, match=f'{key} must be '):
        stage_value(key, refused, key)


def test_every_key_has_its_help_in_one_line():
    for key in SETTABLE:
        text = stage_help(key)
        assert len(text) > 20 and '\n' not in text and 'None' not in text, key
    assert stage_help('lr') == 'learning rate (a number above 0; default: 0.0006)'
    assert stage_help('steps').endswith('(a whole number above 0 and at most 1e+12)')


def test_the_table_of_stage_keys_in_the_docs_is_up_to_date(tmp_path):
    docs = Path(__file__).resolve().parents[2] / 'docs' / 'plans.md'
    copy = tmp_path / 'plans.md'
    copy.write_text(docs.read_text(encoding='utf-8'), encoding='utf-8')
    write_stage_table(copy)
    assert stage_table() in copy.read_text(encoding='utf-8')
    assert copy.read_text(encoding='utf-8') == docs.read_text(encoding='utf-8'), (
        'docs/plans.md is stale; rewrite its table: python -m lmplay.train.plan docs/plans.md'
    )


def test_a_stage_named_after_its_dataset_is_renamed_with_it():
    plan = parse_plan(
        {
            'tinystories': {'dataset': 'tinystories'},
            'wikitext': {'mix': {'wikitext': 1, 'embedded': 2}},
            'tune': {'dataset': 'tinystories', 'init_from': 'stage:tinystories'},
            'wikipedia': {'dataset': 'wikipedia', 'init_from': 'stage:tune'},
        }
    )
    plan.use_dataset('data/my stories (2).jsonl')
    assert list(plan.stages) == ['my_stories_2', 'my_stories_2_2', 'tune', 'my_stories_2_3']
    assert {stage['dataset'] for stage in plan.stages.values()} == {'data/my stories (2).jsonl'}
    assert [s.get('init_from') for s in plan.stages.values()] == [
        None,
        None,
        'stage:my_stories_2',
        'stage:tune',
    ]
    assert plan.raw['stages'] == plan.stages and not any('mix' in s for s in plan.stages.values())


@pytest.mark.parametrize(
    'dataset, name',
    [
        ('mine.jsonl', 'mine'),
        ('/data/a.b/mine.txt', 'mine'),
        ('data/*.jsonl', 'dataset'),
        ('owner/corpus-v1.5', 'corpus-v1.5'),
        ('wikitext', 'wikitext'),
        ('tinystories', 'tinystories'),
        ('ganz ähnlich.txt', 'ganz_ähnlich'),
    ],
)
def test_names_of_stages_after_a_dataset(dataset, name):
    plan = parse_plan({'tinystories': {'dataset': 'tinystories'}})
    plan.use_dataset(dataset)
    assert list(plan.stages) == [name]


def test_a_start_from_a_stage_that_comes_later_is_refused_on_the_command_line_too():
    plan = parse_plan({'a': ONE, 'b': ONE})
    assert plan.stage(1, None, {'init_from': 'stage:a'}).init_from == 'stage:a'
    with pytest.raises(PlanError, match='stage "a": init_from: Unknown earlier stage \'a\''):
        plan.stage(0, None, {'init_from': 'stage:a'})
