"""EXP,KEY=VALUE and --set: model parameters and stage keys, typed as everywhere else."""

import subprocess
import sys

import pytest

from lmplay.base.runner_list import find_entry
from lmplay.compare.prepare import parse_spec
from lmplay.errors import UserError


def test_values_are_those_of_the_models_defaults_and_the_stages_keys():
    spec = parse_spec(
        'gpt2_moe,moe_layers=[2,3],num-experts=4.0,lr=3e-4,betas=[0.8,0.9],final-lr=0.1,drop_last=true',
        ['clip=none', 'z_coef=1'],
    )
    assert spec.model == {'moe_layers': [2, 3], 'num_experts': 4, 'z_coef': 1.0}
    assert spec.stage == {'lr': 3e-4, 'betas': (0.8, 0.9), 'final_lr': 0.1, 'drop_last': True, 'clip': None}
    assert isinstance(spec.model['num_experts'], int) and isinstance(spec.model['z_coef'], float)
    assert spec.exp == 'gpt2_moe' and spec.label.startswith('gpt2_moe,moe_layers=[2,3],num-experts=4.0,')


def test_what_is_an_experiments_own_wins_over_set():
    assert parse_spec('gpt2ish,lr=1,num_blocks=2', ['lr=2', 'num_blocks=3']).stage == {'lr': 1.0}
    assert parse_spec('gpt2ish,lr=1,num_blocks=2', ['lr=2', 'num_blocks=3']).model == {'num_blocks': 2}


@pytest.mark.parametrize('spelled', ['{}', '{}:gpt2ish_med'])
def test_a_path_is_called_by_its_name(spelled):
    entry = find_entry('gpt2ish_med')
    spec = parse_spec(spelled.format(entry.file) + ',lr=1', [])
    assert spec.label == f'{"gpt2ish_med" if ":" in spelled else "gpt2ish"},lr=1'


@pytest.mark.parametrize(
    'text, common, message',
    [
        ('gpt2ish,lr=fast', [], '\'lr=fast\': lr must be a number above 0; given: "fast".'),
        ('gpt2ish', ['schedule=cosin'], 'given: "cosin". Did you mean \'cosine\'?'),
        ('gpt2ish,num_blocks=2.5', [], 'num_blocks must be a whole number, like its default 6; given: 2.5.'),
        ('gpt2ish', ['norm_eps=x'], 'norm_eps must be a number, like its default 1e-05; given: "x".'),
        (
            'some,decay_fix=flase',
            [],
            'decay_fix must be true or false, like its default false; given: "flase".',
        ),
        ('gpt2ish,bach_size=2', [], "Did you mean 'batch_size'?"),
        ('gpt2ish,dataset=x', [], "Unknown model parameter or training option 'dataset'"),
        ('gpt2ish,', [], "'gpt2ish,': after the experiment come KEY=VALUE pairs; given: ''."),
        ('gpt2ish,betas=[0.9,0.95', [], 'betas must be 2 numbers'),
        ('gpt2ish,steps=3', [], '--budget'),
    ],
)
def test_mistakes_are_one_sentence(text, common, message):
    with pytest.raises(UserError) as error:
        parse_spec(text, common)
    assert message in str(error.value) and '\n' not in str(error.value)


def test_no_command_line_module_is_imported():
    code = (
        'import sys, lmplay.compare.prepare\n'
        'assert not [m for m in sys.modules if m.startswith("lmplay") and m.endswith("__main__")]'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
