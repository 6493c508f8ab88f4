import json
import math

import pytest

from lmplay.errors import DataError, PlanError, UserError
from lmplay.train.optimizer import learning_rate
from lmplay.train.plan import Stage, load_plan, parse_plan, shipped_plans

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
        ({'s': ONE | {'epochs': -1}}, 'epochs: .*greater than 0; given: -1'),
        ({'s': ONE | {'tokens': 5}}, 'one of epochs, tokens, steps, seconds; given: epochs and tokens'),
        ({'s': ONE | {'seconds': 5}}, 'given: epochs and seconds'),
        ({'s': {'dataset': 'embedded', 'seconds': 0}}, 'seconds: .*greater than 0; given: 0'),
        ({'s': {'dataset': 'embedded', 'seconds': 1e308}}, 'seconds: .*less than or equal to 1000000000'),
        ({'s': ONE | {'optimizer': 'adamww'}}, "Unknown optimizer 'adamww'.*Did you mean 'adamw'"),
        ({'s': {'dataset': 'embeded', 'epochs': 1}}, "Unknown dataset 'embeded'.*Did you mean 'embedded'"),
        ({'s': ONE | {'init_from': 'stage:x'}}, "Unknown earlier stage 'x'"),
        ({'s': ONE | {'lr': 'fast'}}, 'lr: .*given: "fast"'),
        ({'s': ONE | {'mini_batch_size': 0}}, 'positive whole number'),
        ({'s': ONE | {'lr': float('inf')}}, 'lr: .*finite number'),
        ({'s': {'dataset': 'embedded', 'epochs': float('inf')}}, 'epochs: .*finite number'),
        ({'s': {'mix': {'embedded': float('inf')}}}, 'mix.embedded: .*finite number'),
        ({'s': ONE | {'betas': [2, 3]}}, r'betas.0: .*less than 1; given: 2'),
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
        ('{"a": ', 'no JSON.*line 1'),
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
