"""What the versions train with, against naive forms of what the moe-emergence study's code does."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.base.base_model import StepContext
from lmplay.base.runner_list import find_runner, list_experiments
from lmplay.exp.gpt2_moe.model import UpcycledLM
from lmplay.exp.gpt2_moe.moe_layer import MoELayer
from lmplay.train.optimizer import learning_rate, make_optimizer
from lmplay.train.plan import Stage

TINY = dict(
    num_blocks=2, embed_dim=32, num_heads=2, max_len=32, moe_layers='last 1', num_experts=4, tokenizer='bytes'
)
PRETRAINED = ('gpt2_dense', 'gpt2_moe', 'gpt2_moe_nolb', 'gpt2_moe_top2', 'pythia_moe', 'llama_moe')


def stage(name, **keys) -> Stage:
    training = find_runner(name).function().training
    return Stage(**training | dict(dataset='embedded') | keys)


@pytest.mark.parametrize('name', PRETRAINED)
def test_adamw_is_torchs_own_over_every_parameter(name):
    """torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01), three steps."""
    torch.manual_seed(0)
    ours = UpcycledLM(**TINY)
    theirs = UpcycledLM(**TINY)
    theirs.load_state_dict(ours.state_dict())
    optimizers = make_optimizer(ours, stage(name)), torch.optim.AdamW(theirs.parameters(), 5e-5)
    for group in optimizers[1].param_groups:
        group['weight_decay'] = 0.01
    for step in range(3):
        for model, optimizer in zip((ours, theirs), optimizers):
            g = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=g)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_what_the_versions_set_a_stage_overrides():
    kept = stage('gpt2_moe', decay_all=False, betas=(0.9, 0.95), warmup_from_zero=False)
    decays = {g['weight_decay'] for g in make_optimizer(UpcycledLM(**TINY), kept).param_groups}
    assert decays == {0.0, 0.01} and learning_rate(kept, 0, 100) > 0


@settings(max_examples=40, deadline=None)
@given(total=st.integers(2, 20_000), at=st.floats(0, 1))
def test_schedule_is_that_of_transformers(total, at):
    from transformers.optimization import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=5e-5)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(total * 0.1), total)
    step = int(at * total)
    assert learning_rate(stage('gpt2_moe'), step, total) == pytest.approx(
        5e-5 * schedule.lr_lambdas[0](step), rel=1e-9, abs=1e-18
    )


@settings(max_examples=40, deadline=None)
@given(total=st.integers(1, 10_001), at=st.floats(0, 1))
def test_noise_falls_over_whole_steps(total, at):
    model, step = UpcycledLM(**TINY), int(at * total)
    model.before_step(StepContext('s', step, total, 0))
    annealed = int(total * 0.25)
    expected = 0.1 * (1 - step / annealed) if step < annealed else 0.0
    assert float(model.moe_layers[1].noise) == pytest.approx(expected, abs=1e-7)


def naive_mixture(layer: MoELayer, x: torch.Tensor) -> torch.Tensor:
    """Expert after expert, each with its own dropout, as over copies of transformers' MLP."""
    routing, y = layer.route(x, noisy=False), torch.zeros_like(x)
    for e in range(len(layer.w1)):
        tokens, choice = torch.where(routing.expert_ids_NK == e)
        h = F.gelu(x[tokens] @ layer.w1[e] + layer.b1[e], approximate='tanh')
        out = F.dropout(h @ layer.w2[e] + layer.b2[e], layer.dropout.p)
        y[tokens] += routing.weights_NK[tokens, choice, None] * out
    return y


@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_dropout_is_inside_each_expert(top_k):
    """Mean and variance over masks are those of independent masks, per expert output."""
    torch.manual_seed(0)
    layer = UpcycledLM(**TINY | dict(top_k=top_k, noise_std=0.0, ff_dropout=0.5)).moe_layers[1].train()
    with torch.no_grad():
        layer.w1 *= 20
        layer.w2 *= 20
        x = torch.randn(4, 32)
        ours = torch.stack([layer(x[None])[0] for _ in range(3000)])
        theirs = torch.stack([naive_mixture(layer, x) for _ in range(3000)])
    scale = theirs.var(0).mean()
    assert ((ours.var(0) - theirs.var(0)).abs().mean() / scale) < 0.06
    assert ((ours.mean(0) - theirs.mean(0)).abs().mean() / scale.sqrt()) < 0.05


def test_dropped_mixture_has_the_gradients_of_the_naive_one():
    """With a dropout too small to drop anything, both are the same function."""
    torch.manual_seed(0)
    layer = UpcycledLM(**TINY | dict(top_k=2, noise_std=0.0, ff_dropout=1e-7)).moe_layers[1].train()
    x = torch.randn(16, 32)
    found = []
    for y in (lambda: layer(x[None])[0], lambda: naive_mixture(layer, x)):
        layer.zero_grad()
        y().square().sum().backward()
        found.append({name: p.grad.clone() for name, p in layer.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-6)


def test_no_version_with_pretrained_weights_trains_otherwise():
    for entry in list_experiments():
        training = find_runner(entry.name).function().training if not entry.error else {}
        if str(training.get('init_from')).startswith('pretrained:') and 'moe' in entry.name:
            assert training['betas'] == (0.9, 0.999), entry.name
            assert training['decay_all'] and training['warmup_from_zero'], entry.name
