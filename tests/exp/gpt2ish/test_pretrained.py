"""Weights of GPT-2: the same logits as transformers computes, there and back, and what is refused."""

import json

import pytest
import torch

from lmplay.base.runner_list import find_runner
from lmplay.errors import CheckpointError
from lmplay.train.__main__ import main

SHAPE = dict(num_blocks=2, embed_dim=32, num_heads=4, max_len=48, tokenizer='bytes')
LIKE_GPT2 = SHAPE | dict(gelu='tanh', tie_head=True)


def write_gpt2(folder, **changed):
    """A small random GPT-2, as transformers itself writes it; the model."""
    import transformers

    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=257)
    config = transformers.GPT2Config(**sizes | dict(bos_token_id=None, eos_token_id=None) | changed)
    model = transformers.GPT2LMHeadModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)  # far from its initialisation: every weight matters
    model.save_pretrained(folder)
    return model.eval()


def make(**parameters):
    torch.manual_seed(1)
    return find_runner('gpt2ish').function(**parameters).build().eval()


def tokens():
    return torch.randint(0, 257, (2, 48), generator=torch.Generator().manual_seed(1))


CASES = {
    'GPT-2': ({}, {}),
    'exact GELU': (dict(activation_function='gelu'), dict(gelu='none')),
    'untied': (dict(tie_word_embeddings=False), dict(tie_head=False)),
    'epsilon': (dict(layer_norm_epsilon=0.01), dict(norm_eps=0.01)),
}


@pytest.mark.parametrize('case', CASES)
def test_logits_equal_those_of_transformers(case, tmp_path):
    """Positions beyond max_len are left out; an untied head's bias is 0."""
    theirs, ours = CASES[case]
    original, model = write_gpt2(tmp_path, **theirs), make(**LIKE_GPT2 | ours)
    assert model.import_pretrained(str(tmp_path))[0] == f'weights of {tmp_path}'
    with torch.no_grad():
        expected = original(tokens()).logits
        assert ((model(tokens()) - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-5
    back = model.as_transformers()
    assert (back is None) == (case == 'untied')
    if back is not None:
        with torch.no_grad():
            assert (
                (back.eval()(tokens()).logits - expected).abs() / expected.abs().clamp(min=1)
            ).max() < 1e-5
        assert back.config.embd_pdrop == model.dropout.p


@pytest.mark.parametrize(
    'theirs, ours, said',
    [
        ({}, dict(tie_head=False), r'tie_head is True, this model has False \(--tie-head true\)'),
        ({}, dict(gelu='none'), r"gelu is 'tanh', this model has 'none' \(--gelu tanh\)"),
        (dict(activation_function='relu'), {}, "gelu is 'relu', this model has 'tanh'"),
        (dict(n_positions=32), {}, r'it has 32 positions, this model 48 \(--max-len 32\)'),
        (dict(n_layer=3), {}, r'num_blocks is 3, this model has 2'),
        (dict(vocab_size=300), {}, 'vocab_size is 300, this model can only have 257'),
        (dict(n_inner=64), {}, 'n_inner is 64, this model can only have 128'),
    ],
)
def test_what_would_compute_something_else_is_refused(theirs, ours, said, tmp_path):
    write_gpt2(tmp_path, **theirs)
    model = make(**LIKE_GPT2 | ours)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=said):
        model.import_pretrained(str(tmp_path))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())


def test_a_stage_starts_from_a_folder(tiny_plan, tmp_path):
    write_gpt2(tmp_path / 'gpt2')
    plan = tiny_plan(model=LIKE_GPT2 | dict(max_len=32))
    command = [
        '--exp',
        'gpt2ish',
        '--training-plan',
        str(plan),
        '--run-dir',
        str(tmp_path / 'run'),
        '--quiet',
    ]
    assert main([*command, '--initial-model', str(tmp_path / 'gpt2'), '--device', 'cpu']) == 0
    assert json.loads((tmp_path / 'run' / 'summary.json').read_text())['steps'] == 4
