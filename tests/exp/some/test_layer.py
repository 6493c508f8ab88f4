import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmplay.errors import CheckpointError, ExperimentError
from lmplay.exp.some.layer import SoMELayer

OPTIONS = dict(
    embed_dim=16,
    num_experts=6,
    d_ffn=24,
    top_k=3,
    init='default',
    expert_seed=0,
    layer=0,
    train_temperature=1.0,
    eval_temperature=0.5,
    include_padding=False,
    alpha=0.015,
    beta=0.001,
    delta=0.001,
    theta_percentile=0.05,
    warmup_steps=400,
    ema_decay=0.995,
    decay_fix=False,
)


def make(**options):
    torch.manual_seed(0)
    return SoMELayer(**OPTIONS | options)


def naive(layer, x, temperature):
    """Step by step as in the publication: a module per expert, a loop over tokens."""
    w1, b1, w2, b2 = (t.to(x.dtype) for t in (layer.w1, layer.b1, layer.w2, layer.b2))
    experts = []
    for e in range(len(w1)):
        expert = nn.Sequential(nn.Linear(*w1[e].shape), nn.GELU(), nn.Linear(*w2[e].shape)).to(x.dtype)
        for linear, weight, bias in ((expert[0], w1[e], b1[e]), (expert[2], w2[e], b2[e])):
            linear.weight.data, linear.bias.data = weight.t(), bias
        experts.append(expert.requires_grad_(False))
    rows = []
    for token in x.flatten(0, 1):
        query = layer.query(token)
        query = query / query.norm()
        scores = torch.stack([query @ key for key in layer.keys.vectors])
        top = scores.topk(layer.top_k)
        gates = F.softmax(top.values / temperature, dim=0)
        rows.append(sum(g * experts[i](token) for g, i in zip(gates, top.indices.tolist())))
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('init', ['default', 'sparse', 'sparse_scaled', 'orthogonal'])
def test_equals_the_naive_layer_with_gradients(init, training):
    layer = make(init=init).double().train(training)
    x = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 7, 16, dtype=torch.float64)
    results = []
    for compute in (lambda: layer(x)[0], lambda: naive(layer, x, 1.0 if training else 0.5)):
        layer.zero_grad()
        x.grad = None
        y = compute()
        (y * weight).sum().backward()
        results.append((y.detach(), x.grad, layer.query.weight.grad, layer.query.bias.grad))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
        assert expected.any()


def test_the_mlp_router_is_two_linear_layers_with_gelu():
    layer = make(router='mlp', router_mlp_mult=2.0, usage_by='gate_mass').double()
    first, _, second = layer.query
    assert first.weight.shape == (32, 16) and second.weight.shape == (16, 32)
    assert not first.bias.any() and not second.bias.any()
    assert torch.cat([first.weight.flatten(), second.weight.flatten()]).std().item() == pytest.approx(
        0.02, rel=0.1
    )
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    query = F.gelu(x.flatten(0, 1) @ first.weight.t()) @ second.weight.t()
    choice = layer.route(x.flatten(0, 1))
    torch.testing.assert_close(choice.queries_ND, query / query.norm(dim=1, keepdim=True))
    torch.testing.assert_close(layer(x)[0], naive(layer, x, 1.0))
    mass = torch.zeros(6, dtype=torch.float64)
    for gates, chosen in zip(choice.gates_NK, choice.expert_ids_NK):
        for gate, expert in zip(gates, chosen):
            mass[expert] += gate
    torch.testing.assert_close(layer.keys.mass_E, mass)
    assert 'query.0.weight' in layer.state_dict()


def test_experts_are_neither_trained_nor_saved():
    layer = make()
    assert {name for name, _ in layer.named_parameters()} == {'query.weight', 'query.bias'}
    assert set(layer.state_dict()) == {
        'query.weight',
        'query.bias',
        'expert_digest',
        'keys.vectors',
        'keys.usage',
        'keys.pull',
        'keys.updates',
    }
    assert layer.frozen_parameters() == 6 * (16 * 24 + 24 + 24 * 16 + 16)


def test_experts_are_held_in_the_precision_of_the_products_without_loss():
    layer = make()
    made = layer.w1.clone()
    x = torch.randn(2, 5, 16)
    assert layer.w1.dtype == torch.bfloat16
    first, _ = layer(x)
    assert layer.w1.dtype == torch.float32 and first.dtype == torch.float32
    with torch.autocast('cpu', dtype=torch.bfloat16):
        under, _ = layer(x)
    assert layer.w1.dtype == torch.bfloat16 and torch.equal(layer.w1, made)
    assert torch.equal(layer(x)[0], first)
    torch.testing.assert_close(under.float(), first, rtol=0.1, atol=0.02)


def test_only_training_collects_and_padding_is_left_out():
    layer, x = make(), torch.randn(2, 5, 16)
    layer.eval()(x)
    assert not layer.keys.counts_KE.any()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    _, load = layer.train()(x, mask)
    assert layer.keys.counts_KE.sum() == 7 * 3 and layer.keys.pairs_EE.diagonal().sum() == 7 * 3
    assert load.sum().item() == pytest.approx(1)
    published = make(include_padding=True)
    published(x, mask)
    assert published.keys.counts_KE.sum() == 10 * 3


def test_load_is_the_fraction_of_assignments():
    layer, x = make(), torch.randn(3, 4, 16)
    _, load = layer(x)
    torch.testing.assert_close(load, layer.keys.counts_KE.sum(0) / (12 * 3))


def test_a_checkpoint_of_other_experts_is_refused():
    layer = make()
    layer.load_state_dict(make(layer=0).state_dict())
    for other in (dict(expert_seed=1), dict(init='sparse'), dict(d_ffn=32)):
        with pytest.raises(CheckpointError, match='expert_seed'):
            layer.load_state_dict(make(**other).state_dict())


def test_impossible_options_are_refused():
    with pytest.raises(ExperimentError, match='top_k must be between 1 and num_experts .6.; given: 7'):
        make(top_k=7)
    with pytest.raises(ExperimentError, match="Unknown router 'mpl'.*Did you mean 'mlp'"):
        make(router='mpl')
    with pytest.raises(ExperimentError, match='at least one unit of 16; given: 0.01'):
        make(router='mlp', router_mlp_mult=0.01)
    with pytest.raises(ExperimentError, match='eval_temperature must be above 0; given: 0'):
        make(eval_temperature=0)
