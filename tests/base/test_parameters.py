"""Model parameters are typed by their declared defaults, wherever they come from."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lmplay.base.base_model import BasicModelRunner, LMBase
from lmplay.base.parameters import (
    heads_for,
    model_parameters,
    read_parameters,
    read_value,
    read_yaml,
    split_items,
    typed,
    typed_parameters,
)
from lmplay.errors import ExperimentError
from lmplay.tokenizers import BytesTokenizer


class Base(LMBase):
    def __init__(self, *, max_len=8, num_experts=8, version='base', **hyperparameters):
        super().__init__(version, max_len=max_len)


class Model(Base):
    def __init__(
        self,
        use_mix=True,
        norm_eps=1e-5,
        moe_layers='last 4',
        d_ffn=None,
        betas=(0.9, 0.95),
        layers=None,
        tokenizer='bytes',
        schedule={'kind': 'linear'},  # noqa: B006
        **others,
    ):
        super().__init__(**others)
        self.tokenizer = BytesTokenizer()
        self.got = dict(use_mix=use_mix, norm_eps=norm_eps)


DECLARED = model_parameters(Model, until=LMBase)


def test_declared_parameters_include_those_of_the_base_classes_but_no_version():
    assert DECLARED == {
        'use_mix': True,
        'norm_eps': 1e-5,
        'moe_layers': 'last 4',
        'd_ffn': None,
        'betas': (0.9, 0.95),
        'layers': None,
        'tokenizer': 'bytes',
        'schedule': {'kind': 'linear'},
        'max_len': 8,
        'num_experts': 8,
    }


@pytest.mark.parametrize(
    'name, text, value',
    [
        ('use_mix', 'false', False),
        ('use_mix', 'on', True),
        ('num_experts', '4', 4),
        ('num_experts', '4.0', 4),
        ('norm_eps', '1e-6', 1e-6),
        ('norm_eps', '1', 1.0),
        ('moe_layers', 'none', 'none'),
        ('moe_layers', 'null', 'null'),
        ('moe_layers', '[2, 3]', [2, 3]),
        ('moe_layers', '3', '3'),
        ('tokenizer', '123', '123'),
        ('tokenizer', '1e3', '1e3'),
        ('tokenizer', '', ''),
        ('tokenizer', '"123"', '123'),
        ('d_ffn', '12', 12),
        ('d_ffn', '1e-5', 1e-5),
        ('d_ffn', 'null', None),
        ('d_ffn', 'none', None),
        ('d_ffn', 'wide', 'wide'),
        ('layers', '[1, 2e-3]', [1, 2e-3]),
        ('betas', '[0.8, 0.9]', (0.8, 0.9)),
        ('schedule', '{kind: cosine}', {'kind': 'cosine'}),
        ('version', '2', '2'),
    ],
)
def test_text_becomes_a_value_of_the_defaults_type(name, text, value):
    (got,) = read_parameters([(name, text)], DECLARED, 'Model').values()
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    'name, value, expected',
    [
        ('num_experts', 4.0, 4),
        ('num_experts', '4', 4),
        ('norm_eps', '1e-5', 1e-5),  # as YAML 1.1 reads it
        ('norm_eps', 1, 1.0),
        ('use_mix', 'false', False),
        ('moe_layers', [2, 3], [2, 3]),
        ('moe_layers', '[2, 3]', '[2, 3]'),  # a string of JSON is one
        ('d_ffn', '12', '12'),
        ('betas', [0.8, 0.9], (0.8, 0.9)),
    ],
)
def test_values_of_plans_and_configs_are_typed_too(name, value, expected):
    got = typed(name, value, DECLARED[name])
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('use_mix', 'flase', 'use_mix must be true or false, like its default true; given: "flase".'),
        ('use_mix', '1', 'use_mix must be true or false, like its default true; given: 1.'),
        ('use_mix', 'null', 'use_mix must be true or false, like its default true; given: null.'),
        ('num_experts', '4.5', 'num_experts must be a whole number, like its default 8; given: 4.5.'),
        ('num_experts', '.inf', 'num_experts must be a whole number, like its default 8; given: Infinity.'),
        ('num_experts', 'true', 'num_experts must be a whole number, like its default 8; given: true.'),
        ('num_experts', 'none', 'num_experts must be a whole number, like its default 8; given: "none".'),
        ('num_experts', '', 'num_experts must be a whole number, like its default 8; given: null.'),
        ('norm_eps', 'small', 'norm_eps must be a number, like its default 1e-05; given: "small".'),
        ('betas', '0.9', 'betas must be a list, like its default [0.9, 0.95]; given: 0.9.'),
        ('schedule', '[1]', 'schedule must be a mapping, like its default {"kind": "linear"}; given: [1].'),
        ('max_len', '0', 'max_len must be a whole number of at least 1; given: 0.'),
        ('num_expert', '4', "Unknown model parameter 'num_expert' in Model. Did you mean 'num_experts'?"),
    ],
)
def test_other_text_is_refused_in_one_sentence(name, text, message):
    with pytest.raises(ExperimentError) as error:
        read_parameters([(name, text)], DECLARED, 'Model')
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'name, value',
    [
        ('use_mix', False),
        ('num_experts', 4),
        ('norm_eps', 1e-7),
        ('moe_layers', 'none'),
        ('moe_layers', [2, 3]),
        ('tokenizer', '123'),
        ('d_ffn', None),
        ('d_ffn', 'wide'),
        ('betas', (0.8, 0.9)),
        ('schedule', {'kind': 'cosine'}),
    ],
)
def test_a_value_as_json_reads_as_itself(name, value):
    assert read_parameters([(name, json.dumps(value))], DECLARED, 'Model') == {name: value}


def test_a_string_takes_no_number_of_a_plan():
    with pytest.raises(
        ExperimentError, match='tokenizer must be a string, like its default "bytes"; given: 12'
    ):
        typed('tokenizer', 12, 'bytes')
    with pytest.raises(ExperimentError, match='given: null'):
        typed('tokenizer', None, 'bytes')
    tokenizer = BytesTokenizer()
    assert typed('tokenizer', tokenizer, 'bytes') is tokenizer


def test_a_runner_types_what_it_is_given_and_what_its_version_overrides():
    runner = BasicModelRunner(Model, overrides=dict(norm_eps=1), num_experts=4.0, use_mix='no')
    assert runner.given == {'norm_eps': 1.0, 'num_experts': 4, 'use_mix': False}
    assert isinstance(runner.given['norm_eps'], float)
    assert runner.build('meta').got == {'use_mix': False, 'norm_eps': 1.0}
    with pytest.raises(ExperimentError, match='num_experts must be a whole number'):
        BasicModelRunner(Model, overrides=dict(num_experts=4.5))
    with pytest.raises(ExperimentError, match="Did you mean 'norm_eps'"):
        BasicModelRunner(Model, overrides=dict(norm_epz=1))


def test_numbers_as_people_write_them_are_numbers_in_yaml():
    assert read_yaml('a: 6e-4\nb: [1E5, 1e-5]\nc: 1.5e3\nd: "1e5"\ne: 1e\nf: 12') == {
        'a': 6e-4,
        'b': [1e5, 1e-5],
        'c': 1500.0,
        'd': '1e5',
        'e': '1e',
        'f': 12,
    }


@pytest.mark.parametrize(
    'text, items',
    [
        ('exp', ['exp']),
        ('exp,lr=1e-3,a=2', ['exp', 'lr=1e-3', 'a=2']),
        ('exp,moe_layers=[2,3],a=2', ['exp', 'moe_layers=[2,3]', 'a=2']),
        ('exp,a={x: [1,2], y: 3},b=(1,2)', ['exp', 'a={x: [1,2], y: 3}', 'b=(1,2)']),
        ('exp,a="x,y",b=\'1,2\'', ['exp', 'a="x,y"', "b='1,2'"]),
        ('exp,a="[",b=1', ['exp', 'a="["', 'b=1']),
        ('exp,a=]', ['exp', 'a=]']),
        ("exp,a=don't,b=1", ['exp', "a=don't", 'b=1']),
        ('exp,a=[2,3', ['exp', 'a=[2', '3']),
    ],
)
def test_commas_inside_brackets_and_quotes_do_not_split(text, items):
    assert split_items(text) == items


class Heads(LMBase):
    def __init__(self, num_heads=12, embed_dim=768, version='heads'):
        super().__init__(version, max_len=8)


@pytest.mark.parametrize(
    'overrides, asked, heads',
    [
        ({}, {}, 12),
        ({}, {'embed_dim': 128}, 2),
        ({}, {'embed_dim': 768}, 12),
        ({'embed_dim': 1280, 'num_heads': 20}, {}, 20),
        ({'embed_dim': 1280}, {}, 20),
        ({'embed_dim': 288, 'num_heads': 6}, {'embed_dim': 512}, 8),
        ({'embed_dim': 288, 'num_heads': 6}, {'embed_dim': 288}, 6),
        (
            {'embed_dim': 288, 'num_heads': 6},
            {'embed_dim': 512, 'num_heads': 5},
            5,
        ),  # for the model to refuse
        ({'num_heads': 3}, {'embed_dim': 512}, 8),
        ({}, {'num_heads': 5}, 5),
    ],
)
def test_heads_that_are_not_given_follow_the_width(overrides, asked, heads):
    assert BasicModelRunner(Heads, overrides=overrides, **asked).parameters['num_heads'] == heads


@given(st.integers(1, 4096))
def test_heads_divide_any_width_and_are_of_gpt2s_size_where_that_divides(width):
    size, rest = divmod(width, heads_for(width))
    assert rest == 0 and size >= min(32, width)
    assert size == 64 or width % 64


ODD = [
    '[' * 1000,
    '9' * 5000,
    '&a [*a]',
    'a: &a [1]\nb: *a',
    '!!timestamp 2001-13-45',
    '!!binary aGk=',
    '!!set {a}',
]
ODD += [
    '!!int x',
    '!!float x',
    '? [a]\n: b',
    '{',
    '!!python/object/apply:os.getcwd []',
    '!!omap [a]',
    '\0',
    '!!null',
]


@pytest.mark.parametrize('text', ODD, ids=lambda text: text[:12])
def test_yaml_holds_plain_values_or_is_refused(text):
    """Whatever PyYAML raises; references could stand for any amount of data."""
    try:
        json.dumps(read_yaml(text))
    except yaml.YAMLError:
        assert read_value(text) == text  # on the command line it is text then


def test_dates_in_yaml_are_text():
    assert read_yaml('[2001-13-45, 2001-01-01]') == ['2001-13-45', '2001-01-01']


@pytest.mark.parametrize(
    'name, value', [('max_len', 10**11), ('num_blocks', 10**9), ('x', 10**400), ('x', 2**60)]
)
def test_sizes_that_no_machine_could_hold_are_refused(name, value):
    with pytest.raises(ExperimentError, match='at most'):
        typed_parameters({name: value}, {name: None}, 'M')
