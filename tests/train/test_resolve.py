import dataclasses

import pytest

from lmplay.base.runner_list import find_runner
from lmplay.errors import ExperimentError, PlanError, UserError
from lmplay.tokenizers import BytesTokenizer, get_tokenizer
from lmplay.train.plan import parse_plan
from lmplay.train.readiness import check_stages
from lmplay.train.resolve import Settings, resolve
from tests.helpers import EXPERIMENTS

BYTES = BytesTokenizer()
DATA = {'dataset': 'embedded', 'steps': 1}


def resolved(stages, *, tokenizer=BYTES, plan=None, **settings):
    """The stages of a plan, as `lmp_trainer --exp test_runner` would have them."""
    stages = {name: DATA | keys for name, keys in stages.items()}
    plan = parse_plan({'stages': stages} | (plan or {}), where='my.json')
    return resolve(plan, Settings(**{'exp': 'test_runner'} | settings), tokenizer)


# ---- precedence


def test_model_parameters_model_version_plan_stage_command_line():
    """The model's own width is 768, its version's 64; each row sets it in one more place."""
    layers = [
        ({}, {}, {}),
        ({'model': {'embed_dim': 32}}, {}, {}),
        ({'model': {'embed_dim': 32}}, {'embed_dim': 16}, {}),
        ({'model': {'embed_dim': 32}}, {'embed_dim': 16}, {'embed_dim': 8}),
    ]
    widths = []
    for plan, stage, command_line in layers:
        (found,) = resolved({'s': {'model': stage}}, plan=plan, model=command_line)
        widths.append(found.skeleton.hyperparameters['embed_dim'])
        assert found.runner.parameters['ff_dropout'] == 0.1  # the model's own default
    assert widths == [64, 32, 16, 8]


def test_stage_keys_defaults_version_plan_command_line():
    """gpt2_moe's version sets lr and clip of its study."""
    (version,) = resolved({'s': {}}, exp='gpt2_moe')
    (plan,) = resolved({'s': {'lr': 0.1, 'warmup': 3}}, exp='gpt2_moe')
    (command_line,) = resolved({'s': {'lr': 0.1}}, exp='gpt2_moe', overrides={'lr': 0.2, 'tokens': 9})
    (default,) = resolved({'s': {}})
    assert [s.settings.lr for s in (default, version, plan, command_line)] == [6e-4, 5e-5, 0.1, 0.2]
    assert [s.settings.warmup for s in (version, plan)] == [0.1, 3]
    assert (command_line.settings.tokens, command_line.settings.steps) == (9, None)


def test_the_plans_tokenizer_is_the_models_unless_it_is_told_another():
    (plan,) = resolved({'s': {}})
    (none,) = resolved({'s': {}}, tokenizer=None)
    (command_line,) = resolved({'s': {}}, model={'tokenizer': 'gpt2'})
    assert [s.skeleton.tokenizer.n_vocab for s in (plan, none, command_line)] == [257, 50257, 50257]


def test_a_model_with_a_tokenizer_of_its_own():
    (same,) = resolved({'s': {}}, exp=f'{EXPERIMENTS}:mean')
    assert same.skeleton.tokenizer.n_vocab == 257 and 'tokenizer' not in same.runner.given
    with pytest.raises(PlanError, match="my.json: the plan's tokenizer is gpt2.* always uses bytes"):
        resolved({'s': {}}, exp=f'{EXPERIMENTS}:mean', tokenizer=get_tokenizer('gpt2'))


def test_what_the_plan_sets_otherwise_than_the_version_is_known():
    own = {'num_blocks': 3, 'embed_dim': 64, 'ff_dropout': 0.3}  # the version has 2 blocks of 64
    (found,) = resolved({'s': {'model': own}})
    assert found.overridden == {'num_blocks': (2, 3)}
    (asked,) = resolved({'s': {'model': own}}, model={'num_blocks': 5})
    assert asked.overridden == {}


# ---- stages


@pytest.mark.parametrize(
    'keys, continues',
    [
        ({}, True),
        ({'lr': 0.1, 'optimizer': 'sgd', 'packing': 'pad'}, True),
        ({'exp': 'test_runner'}, True),
        ({'exp': 'some_test'}, False),
        ({'model': {'num_blocks': 3}}, False),
        ({'model': {'ff_dropout': 0.1}}, False),  # set, if to the value that it has
        ({'model': {}}, True),
        ({'init_from': 'scratch'}, False),
        ({'init_from': 'stage:a'}, False),
    ],
)
def test_a_stage_continues_the_model_before_unless_it_says_something_else(keys, continues):
    first, second = resolved({'a': {}, 'b': keys})
    assert not first.continues and second.continues is continues


def test_stages_with_the_same_parameters_are_one_model():
    same, other = {'model': {'num_blocks': 3}}, {'model': {'num_blocks': 4}}
    assert [s.continues for s in resolved({'a': same, 'b': same, 'c': other, 'd': other})] == [
        False,
        True,
        False,
        True,
    ]
    back = resolved({'a': same, 'b': {}})
    assert not back[1].continues  # the version's own size again


def test_an_experiment_is_that_of_the_stage_before_unless_named():
    stages = resolved({'a': {}, 'b': {'exp': 'some_test'}, 'c': {}})
    assert [s.exp for s in stages] == ['test_runner', 'some_test', 'some_test']
    assert [s.continues for s in stages] == [False, False, True]
    assert [s.entry_name for s in resolved({'a': {}}, exp=f'{EXPERIMENTS}:mean')] == ['mean']


def test_where_weights_come_from():
    """A version's own start, and --initial-model, are the first stage's alone."""
    stages = resolved({'a': {}, 'b': {}}, exp='gpt2_moe')
    assert [s.init_from for s in stages] == ['pretrained:gpt2', 'previous']
    assert [s.init_from for s in resolved({'a': {}, 'b': {}}, exp='gpt2_moe', initial_model='runs/x')] == [
        'runs/x',
        'previous',
    ]
    (scratch,) = resolved({'a': {'init_from': 'scratch'}}, exp='gpt2_moe')
    assert scratch.init_from == 'scratch'


def test_a_stage_knows_its_datasets_and_what_is_held_out():
    mine = {'loader': 'text', 'path': 'x.txt'}
    plan = {'datasets': {'mine': mine}, 'validation_fraction': 0.3}
    (found,) = resolved({'s': {'dataset': None, 'mix': {'mine': 1, 'embedded': 2}}}, plan=plan)
    assert found.datasets == {'mine': mine, 'embedded': None} and found.validation_fraction == 0.3


def test_it_is_decided_for_good():
    (found,) = resolved({'s': {}})
    for name in ('init_from', 'settings', 'continues'):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(found, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 3


def test_what_follows_from_a_stage_alone():
    (found,) = resolved({'s': {'row_length': 24}})
    assert found.skeleton.is_like(found.runner.build('meta')) and found.skeleton is found.skeleton
    assert found.row_length == 24
    assert found.flops_per_token == found.skeleton.training_flops_per_token(24)
    assert resolved({'s': {}})[0].row_length == found.skeleton.max_len


# ---- what a plan sets and a model lacks


def test_what_a_model_lacks_is_left_out_and_told():
    plan = {'model': {'ff_dropout': 0.0, 'embed_dim': 8}}
    (found,) = resolved({'s': {}}, exp=f'{EXPERIMENTS}:mean', plan=plan, tokenizer=None)
    assert found.lacking == {'ff_dropout': 0.0} and found.runner.given == {'embed_dim': 8}
    assert found.notes == [
        'Stage "s": the plan sets ff_dropout 0.0, which the model of mean lacks; left out.'
    ]
    (own,) = resolved({'s': {'model': {'ff_dropout': 0.5}}}, plan=plan)
    assert own.lacking == {} and own.runner.given['ff_dropout'] == 0.5


def test_a_stage_that_names_its_experiment_must_know_its_parameters():
    stage = {'exp': f'{EXPERIMENTS}:mean'}
    find_runner(stage['exp'])  # a plan alone runs no code
    for plan, keys in (({'model': {'ff_dropout': 0.0}}, {}), ({}, {'model': {'ff_dropout': 0.0}})):
        with pytest.raises(ExperimentError, match="Unknown model parameter 'ff_dropout'"):
            resolved({'s': stage | keys}, plan=plan, tokenizer=None)


def test_the_command_line_must_know_the_parameters():
    with pytest.raises(ExperimentError, match="Unknown model parameter 'ff_dropout'"):
        resolved({'s': {}}, exp=f'{EXPERIMENTS}:mean', tokenizer=None, model={'ff_dropout': 0.0})


@pytest.mark.parametrize('slip', ['num_block', 'num_heds', 'embed_dimm', 'max_leng'])
def test_a_slip_in_a_name_is_no_parameter_of_another_model(slip):
    with pytest.raises(ExperimentError, match=f"Unknown model parameter '{slip}'.*Did you mean"):
        resolved({'s': {}}, plan={'model': {slip: 2}})


# ---- what could not be trained


def test_a_mistake_in_a_later_stage_is_named_with_it():
    with pytest.raises(ExperimentError, match='Stage "b": Unknown model parameter \'num_block\''):
        resolved({'a': {}, 'b': {'model': {'num_block': 3}}})


def test_stages_are_checked_before_the_first_trains():
    check_stages(resolved({'a': {}, 'b': {}, 'c': {'init_from': 'stage:a'}}))
    with pytest.raises(
        PlanError, match='Stage "b": sequences of 999 tokens are longer than .*max_len of 128'
    ):
        check_stages(resolved({'a': {}, 'b': {'row_length': 999}}))
    with pytest.raises(UserError, match='Stage "b": .*multiple of num_heads'):
        check_stages(resolved({'a': {}, 'b': {'model': {'num_heads': 3}}}))


@pytest.mark.parametrize('start', ['previous', 'stage:a'])
def test_a_stage_that_could_not_start_from_another_is_refused(start):
    other = {'init_from': start, 'exp': 'some_test'}
    with pytest.raises(ExperimentError, match='Stage "b": experiment \'some_test\' cannot start from'):
        check_stages(resolved({'a': {}, 'b': other}))
    larger = {'init_from': start, 'model': {'num_blocks': 3}}
    with pytest.raises(ExperimentError, match='Stage "b": .*the architectures differ'):
        check_stages(resolved({'a': {}, 'b': larger}))
    check_stages(resolved({'a': {}, 'b': {'init_from': start, 'model': {'ff_dropout': 0.5}}}))
