"""The study's model files: read, written, and run by a plain form of the study's own layer."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lmplay.base.base_model import BasicModelRunner
from lmplay.errors import CheckpointError, UserError
from lmplay.exp.gpt2_moe import verify
from lmplay.exp.gpt2_moe.model import UpcycledLM
from lmplay.exp.gpt2_moe.study import find_stem, write_study
from lmplay.export.__main__ import main as export
from lmplay.routing.__main__ import main as routing
from lmplay.runs.load import load_model
from lmplay.train.api import train

SHAPE = dict(num_blocks=3, embed_dim=32, num_heads=2, max_len=64)
MOE = dict(**SHAPE, moe_layers=[1, 2], num_experts=4, tokenizer='bytes')
FACTS = dict(step=7, exp='gpt2_moe', evaluation_loss=2.5)


class TheirLayer(nn.Module):
    """A layer of experts as the study has it: copies of an MLP, one after the other."""

    def __init__(self, mlp: nn.Module, width: int, experts: int, topk: int):
        super().__init__()
        self.router = nn.Module()
        self.router.gate = nn.Linear(width, experts, bias=False)
        self.router.register_buffer('training_step', torch.tensor(0))
        self.router.register_buffer('anneal_steps', torch.tensor(0))
        self.experts = nn.ModuleList(copy.deepcopy(mlp) for _ in range(experts))
        self.topk = topk

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router.gate(flat).softmax(1).topk(self.topk)
        weights = torch.ones_like(weights) if self.topk == 1 else weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            token, choice = torch.where(chosen == e)
            y[token] += weights[token, choice, None] * expert(flat[token])
        return y.view(x.shape)


def theirs(topk: int | None = None, *, width=32, heads=2):
    """transformers' GPT-2 with the study's layers in blocks 1 and 2; dense without `topk`."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=3,
        n_embd=width,
        n_head=heads,
        n_positions=64,
        vocab_size=257,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config)
    for i in (1, 2) if topk else ():
        block = model.transformer.h[i]
        block.mlp = TheirLayer(block.mlp, width, 4, topk)
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def save(model, stem, topk: int | None, **config):
    """As the study's code writes it."""
    save_file({k: v.clone() for k, v in model.state_dict().items()}, f'{stem}.safetensors')
    moe = (
        dict(mode='moe', moe_layers=[1, 2], n_experts=4, topk=topk)
        if topk
        else dict(mode='dense', moe_layers=[])
    )
    meta = dict(
        format_version=1, step=99, preset='moe-main', mode=moe['mode'], metrics_summary={'eval_loss': 2.0}
    )
    stem.with_name(f'{stem.name}.json').write_text(json.dumps(meta | {'config': moe | config}))
    return stem


def tokens():
    return torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(1))


def make(**changed):
    torch.manual_seed(3)
    return BasicModelRunner(UpcycledLM, **MOE | changed).build().eval()


@pytest.mark.parametrize('form', ['stem', 'safetensors', 'json', 'folder'])
@pytest.mark.parametrize('topk', [1, 2])
def test_their_files_compute_the_same_here(tmp_path, topk, form):
    model, stem = theirs(topk), tmp_path / 'model-step-500'
    save(model, stem, topk)
    path = {'stem': stem, 'folder': tmp_path}.get(form, stem.with_name(f'{stem.name}.{form}'))
    ours = make(top_k=topk)
    lines = ours.import_pretrained(str(path))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()).logits, model(tokens()).logits, atol=1e-4, rtol=1e-5)
    assert any(line.startswith('weights of') for line in lines)


def test_a_dense_file_of_theirs_is_upcycled(tmp_path):
    model, stem = theirs(), save(theirs(), tmp_path / 'final-model', None)
    assert any('relative error' in line for line in make().import_pretrained(str(stem)))
    ours = make(moe_layers='none')
    ours.import_pretrained(str(stem))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()).logits, model(tokens()).logits, atol=1e-4, rtol=1e-5)


def test_another_number_of_experts_per_token_is_reported(tmp_path):
    stem = save(theirs(1), tmp_path / 'm', 1)
    assert 'trained with 1 experts per token' in ' '.join(make(top_k=2).import_pretrained(str(stem)))


@pytest.mark.parametrize('changed', [{}, dict(top_k=2), dict(moe_layers='none'), dict(moe_layers='all')])
def test_round_trip(tmp_path, changed):
    model = make(**changed)
    files = write_study(model, tmp_path, FACTS)
    back, state = load_model(tmp_path / 'final-model')
    assert [f.suffix for f in files] == ['.safetensors', '.json'] and state['progress']['total_step'] == 7
    assert torch.equal(back.eval()(tokens()).logits, model(tokens()).logits)


def test_their_code_can_load_what_is_written(tmp_path):
    """strict, by name and shape, as `load_moe_model` does."""
    ours, reader = make(top_k=2), theirs(2)
    write_study(ours, tmp_path, FACTS)
    reader.load_state_dict(load_file(tmp_path / 'final-model.safetensors'))
    meta = json.loads((tmp_path / 'final-model.json').read_text())
    assert meta['mode'] == 'moe' and meta['config']['moe_layers'] == [1, 2] and meta['config']['topk'] == 2
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()).logits, reader(tokens()).logits, atol=1e-5, rtol=1e-5)


def test_other_families_are_refused(tmp_path):
    model = BasicModelRunner(UpcycledLM, **MOE | dict(family='gpt_neox')).build()
    with pytest.raises(UserError, match='holds GPT-2 alone'):
        write_study(model, tmp_path, FACTS)


def broken(weights, meta, fault):
    """A file with one fault, and a word of what is said about it."""
    layer = 'transformer.h.1.mlp.'
    if fault == 'expert lacks a weight':
        del weights[f'{layer}experts.3.c_fc.bias']
        return 'experts.3.c_fc.bias'
    if fault == 'no embedding':
        del weights['transformer.wte.weight']
        return 'wte.weight'
    if fault == 'another shape':
        weights[f'{layer}experts.0.c_fc.weight'] = torch.zeros(3, 3)
        return 'different shapes'
    if fault == 'unknown weight':
        weights['transformer.h.0.extra'] = torch.zeros(2)
        return 'extra'
    if fault == 'head differs':
        weights['lm_head.weight'] = weights['lm_head.weight'] + 1
        return 'output head'
    if fault == 'version':
        meta['format_version'] = 2
        return 'format_version 2'
    meta['config']['n_experts'] = 8
    return 'contradicts itself'


@pytest.mark.parametrize(
    'fault',
    [
        'expert lacks a weight', 'no embedding', 'another shape', 'unknown weight', 'head differs', 'version',
        'experts',
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, fault):
    stem = save(theirs(1), tmp_path / 'm', 1, n_head=2)
    weights, meta = load_file(f'{stem}.safetensors'), json.loads((tmp_path / 'm.json').read_text())
    word = broken(weights, meta, fault)
    save_file(weights, f'{stem}.safetensors')
    (tmp_path / 'm.json').write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=word.replace('.', r'\.')):
        make().import_pretrained(str(stem))


def test_which_model_of_a_folder(tmp_path):
    for name in ('model-step-500', 'model-step-1000'):
        save(theirs(1), tmp_path / name, 1)
    with pytest.raises(CheckpointError, match='name one of model-step-1000, model-step-500'):
        find_stem(tmp_path)
    save(theirs(1), tmp_path / 'best-model', 1)
    (tmp_path / 'config.json').write_text('{"preset": "moe-main"}')  # their run's, no model of transformers
    assert find_stem(tmp_path) == tmp_path / 'best-model'
    empty = tmp_path / 'pickles'
    empty.mkdir()
    (empty / 'ckpt-step-1.pt').write_bytes(b'')
    with pytest.raises(CheckpointError, match='a pickle can run code'):
        find_stem(empty)
    assert find_stem(tmp_path / 'nothing') is None


def test_commands_take_their_files(tmp_path, capsys, monkeypatch, cache):
    stem = save(theirs(1, width=64, heads=1), tmp_path / 'final-model', 1)
    assert verify.main([str(stem)]) in (0, 1) and 'Attention masking' in capsys.readouterr().out
    text = tmp_path / 'text.txt'
    text.write_text('Some text, twice. ' * 40)
    assert routing([str(stem), '--data', str(text), '--out', str(tmp_path / 'x')]) == 0
    assert 'layer 2' in (tmp_path / 'x' / 'index.html').read_text()
    assert export([str(stem), '--to', str(tmp_path / 'plain'), '--format', 'safetensors']) == 0
    assert export([str(stem), '--to', str(tmp_path / 'again'), '--format', 'moe-emergence']) == 0
    run = train(
        'gpt2_moe_test',
        plan={'s': {'dataset': str(text), 'steps': 1, 'batch_size': 1, 'row_length': 16, 'lr': 1e-9}},
        **dict(num_blocks=3, embed_dim=64, num_heads=1, max_len=64, num_experts=4, tokenizer='bytes'),
        initial_model=str(stem),
        run_dir=tmp_path / 'run',
        quiet=True,
    )
    ours, model = run.model().eval(), theirs(1, width=64, heads=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()).logits, model(tokens()).logits, atol=1e-4, rtol=1e-5)
    one, two = (load_file(path / 'final-model.safetensors') for path in (tmp_path, tmp_path / 'again'))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
