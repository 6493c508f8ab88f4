"""Each layer equals a plain form written from its formula, and the plain layer that it folds into."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmplay.modules import DULinear, ULinear, UnifiedEmbedding, fold

EVERY = dict(imbias=True, ambias=True, iambias=True)


def shaken(layer: nn.Module) -> nn.Module:
    """With random parameters: at their start ones and zeros would hide a mistake."""
    torch.manual_seed(0)
    for p in layer.double().parameters():
        nn.init.normal_(p)
    return layer


def assert_same_with_gradients(layer, ours, theirs):
    """Equal outputs, and equal gradients of all parameters."""
    results = []
    for compute in (ours, theirs):
        y = compute()
        weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
        results.append((y, *torch.autograd.grad((y * weight).sum(), list(layer.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
        assert a.any()


def plain_ulinear(layer, x):
    """Output by output, input by input."""
    p = dict(layer.named_parameters())

    def entry(name, i, otherwise):
        return p[name][i] + p[f'{name}_bias'][0] if name in p else otherwise

    rows = []
    for o in range(layer.weight.shape[0]):
        row = []
        for i in range(layer.weight.shape[1]):
            w = layer.weight[o, i] * entry('mbias', o, 1) + entry('ambias', o, 0)
            row.append(w * entry('imbias', i, 1) + entry('iambias', i, 0))
        rows.append(x @ torch.stack(row) + entry('bias', o, 0))
    return torch.stack(rows, dim=-1)


@pytest.mark.parametrize(
    'options', [{}, EVERY, dict(ambias=True), dict(bias=False), EVERY | dict(bias=False)]
)
def test_ulinear(options):
    layer = shaken(ULinear(5, 3, **options))
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    assert_same_with_gradients(layer, lambda: layer(x), lambda: plain_ulinear(layer, x))


@pytest.mark.parametrize('bias', [True, False])
def test_dulinear(bias):
    layer = shaken(DULinear(5, 3, bias, exp_mul=2.0))
    x = torch.randn(2, 4, 5, dtype=torch.float64)

    def linear(part, v):
        return part.weight @ v + part.bias

    def plain():
        h = linear(layer.network, layer.expansion)
        mid = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        y = (x * (linear(layer.mbias, mid) + layer.mbias_bias)) @ layer.weight.t()
        return y + linear(layer.bias, mid) + layer.bias_bias if bias else y

    assert layer.expansion.shape == (10,) and layer.network.out_features == 3
    assert_same_with_gradients(layer, lambda: layer(x), plain)


def test_they_start_as_linear_layers_do():
    torch.manual_seed(0)
    u, du, x = ULinear(64, 32, **EVERY), DULinear(64, 32), torch.randn(100, 64)
    torch.testing.assert_close(u(x), F.linear(x, u.weight, u.bias))
    near = F.linear(x, du.weight)
    assert (du(x) - near).std() < 0.5 * near.std()


@pytest.mark.parametrize('shape', [(2, 7), (5,), (1, 1), (0, 3)])
def test_unified_embedding(shape):
    layer = shaken(UnifiedEmbedding(11, 4, front_embed_mul=3.0))
    x = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(0))
    one, two = layer.integration1, layer.integration2

    def plain():
        h = one(layer.front.weight[x])
        return two(h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))

    assert layer.front.weight.shape == (11, 12)
    if x.numel():
        assert_same_with_gradients(layer, lambda: layer(x), plain)
    assert layer(x).shape == (*shape, 4)


def test_folding_leaves_plain_layers_that_compute_the_same():
    model = nn.Sequential(
        UnifiedEmbedding(11, 4, front_embed_mul=3.0),
        nn.Sequential(ULinear(4, 6, **EVERY), nn.GELU(), DULinear(6, 5, exp_mul=1.0)),
        DULinear(5, 2, False),
        ULinear(2, 2, False),
    )
    x = torch.tensor([[0, 3, 3, 10]])
    before = shaken(model)(x)
    assert fold(model) is model
    torch.testing.assert_close(model(x), before)
    assert [type(m) for m in model.modules() if not isinstance(m, nn.Sequential)] == [
        nn.Embedding,
        nn.Linear,
        nn.GELU,
        nn.Linear,
        nn.Linear,
        nn.Linear,
    ]
    assert model[2].bias is None and all(p.requires_grad for p in model.parameters())
