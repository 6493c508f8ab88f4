import pytest
import torch
from torch import nn

from lmplay.base.runner_list import find_runner
from lmplay.errors import ExperimentError
from lmplay.modules import DULinear, LRAdd, ULinear, UnifiedEmbedding, ValueNorm, fold

SMALL = dict(num_blocks=2, embed_dim=32, num_heads=2, max_len=24, tokenizer='bytes')
PARTS = {
    'unified': {UnifiedEmbedding, ULinear, ValueNorm},
    'unified_embedding': {UnifiedEmbedding},
    'unified_ulinear': {ULinear},
    'unified_ulinear_all': {ULinear},
    'unified_dulinear': {DULinear},
    'unified_lradd': {LRAdd},
    'unified_value_norm': {ValueNorm},
    'unified_small': {UnifiedEmbedding, ULinear, ValueNorm},
    'unified_test': {UnifiedEmbedding, DULinear, LRAdd, ValueNorm},
}
PLAIN = dict(embedding='plain', linear='plain', residual='plain', value_norm=False)


def build(name, **parameters):
    torch.manual_seed(0)
    return find_runner(name).function(**SMALL | parameters).build().eval()


def text():
    return torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', PARTS)
def test_each_version_is_made_of_its_parts(name):
    model = build(name)
    assert {type(m) for m in model.modules()} & set().union(*PARTS.values()) == PARTS[name]
    if parts := PARTS[name] & {ULinear, DULinear}:
        linears = [
            l
            for b in model.blocks
            for l in (getattr(b.attn.qkv, 'qkv', b.attn.qkv), b.attn.proj, b.ff[0], b.ff[2])
        ]
        assert {type(l) for l in linears} == parts
    assert type(model.fc) is nn.Linear  # so that head and loss are computed together


def test_without_its_parts_it_is_gpt2ish_bit_for_bit():
    ours, theirs = build('unified', **PLAIN), build('gpt2ish')
    assert torch.equal(ours(text()), theirs(text()))


@pytest.mark.parametrize('name', ['unified_ulinear', 'unified_ulinear_all'])
def test_ulinear_starts_as_gpt2ish(name):
    ours, theirs = build(name), build('gpt2ish')
    for module in ours.modules():
        if isinstance(module, ULinear):
            torch.testing.assert_close(module.effective()[0], module.weight)
    assert ours(text()).std().item() == pytest.approx(theirs(text()).std().item(), rel=0.1)


@pytest.mark.parametrize('name', ['unified_embedding', 'unified_ulinear_all', 'unified_dulinear'])
def test_folded_its_weights_are_gpt2ishs(name):
    """What was only for training goes; the baseline's code then runs the model."""
    model, baseline = build(name), build('gpt2ish')
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    before = model(text())
    fold(model)
    torch.testing.assert_close(model(text()), before, atol=1e-4, rtol=1e-3)
    baseline.load_state_dict(model.state_dict())
    assert torch.equal(baseline(text()), model(text()))


@pytest.mark.parametrize('name', PARTS)
def test_cached_and_full_passes_agree_and_everything_learns(name):
    model, x = build(name), text()
    full, cache = model(x), []
    for start, end in ((0, 7), (7, 8), (8, 20)):
        logits, cache = model(x[:, start:end], cache)
        torch.testing.assert_close(logits[:, 0], full[:, end - 1], rtol=1e-4, atol=1e-4)
    (full * torch.linspace(-1, 1, full.numel()).view_as(full)).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize('option', ['embedding', 'linear', 'residual'])
def test_unknown_parts_are_refused(option):
    with pytest.raises(ExperimentError, match=f"Unknown {option} 'plian'.*Did you mean 'plain'"):
        build('unified', **{option: 'plian'})
