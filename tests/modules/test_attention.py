"""The written-out form of attention against the formula in float64, position by position."""

import pytest
import torch
import torch.nn.functional as F

from lmplay.modules.attention import PLAIN, CausalSelfAttention, DocumentMask, attend
from lmplay.modules.rotary import Rotary


def by_the_formula(q, k, v):
    y = torch.zeros_like(v)
    for t in range(q.shape[2]):
        weights = torch.softmax(
            torch.einsum('bhk,bhsk->bhs', q[:, :, t], k[:, :, : t + 1]) / q.shape[-1] ** 0.5, -1
        )
        y[:, :, t] = torch.einsum('bhs,bhsk->bhk', weights, v[:, :, : t + 1])
    return y


@pytest.mark.parametrize('T', [1, 2, 17])
def test_in_bf16_it_is_as_exact_as_the_fused_form(T):
    torch.manual_seed(T)
    exact = [torch.randn(2, 3, T, 8, dtype=torch.bfloat16).double().requires_grad_() for _ in range(3)]
    grad = torch.randn(2, 3, T, 8, dtype=torch.bfloat16).double()
    wanted = by_the_formula(*exact)
    wanted_grads = torch.autograd.grad(wanted, exact, grad)
    errors = {}
    forms = {
        'ours': lambda *qkv: attend(*qkv, dropout=0.0),
        'fused': lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True),
    }
    for name, form in forms.items():
        rough = [t.detach().bfloat16().requires_grad_() for t in exact]
        y = form(*rough)
        found = [y, *torch.autograd.grad(y, rough, grad.bfloat16())]
        errors[name] = [
            (a.double() - b).norm() / b.norm().clamp(min=1e-6) for a, b in zip(found, [wanted, *wanted_grads])
        ]
    for ours, fused in zip(errors['ours'], errors['fused']):
        assert (
            ours < 2 * fused + 2**-8
        )  # a unit in the last place: of two positions there is little to average over


def test_no_position_sees_what_follows():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 12, 4, dtype=torch.bfloat16) for _ in range(3))
    before = attend(q, k, v, dropout=0.0)
    k[:, :, 7:], v[:, :, 7:] = 5.0, -3.0
    assert torch.equal(attend(q, k, v, dropout=0.0)[:, :, :7], before[:, :, :7])


def test_dropout_drops_and_keeps_the_mean():
    torch.manual_seed(0)
    zeros, ones = (
        torch.zeros(64, 1, 32, 4, dtype=torch.bfloat16),
        torch.ones(64, 1, 32, 4, dtype=torch.bfloat16),
    )
    y = attend(zeros, zeros, ones, dropout=0.25)[:, :, -1, 0].float()
    assert y.std() > 0.02 and y.mean() == pytest.approx(1.0, abs=0.05)


def test_long_rows_take_the_fused_form(monkeypatch):
    taken = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *a, **k: taken.append(a[0].shape[-2]) or fused(*a, **k)
    )
    layer = CausalSelfAttention(num_heads=1, embed_dim=8).bfloat16()
    for T in (PLAIN, PLAIN + 1):
        layer(torch.randn(1, T, 8, dtype=torch.bfloat16))
    assert taken == [PLAIN + 1]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_lengths_that_vary_compile_into_one_graph(dtype):
    """A condition that stays symbolic would break the graph at every attention."""
    compiled = torch.compile(
        lambda q, k, v: attend(q, k, v, dropout=0.0), backend='eager', dynamic=True, fullgraph=True
    )
    for T in (5, 9, 14):
        q, k, v = (torch.randn(2, 2, T, 8, dtype=dtype) for _ in range(3))
        torch.testing.assert_close(compiled(q, k, v), attend(q, k, v, dropout=0.0))


@pytest.mark.parametrize('parts', [{}, {'num_kv_heads': 1}], ids=['heads', 'grouped'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_documents_of_a_sequence_are_computed_as_each_alone(dtype, parts):
    """With positions that only tell distances; a document begins with the token that ends the one before."""
    torch.manual_seed(0)
    rotary = Rotary(16, 8)
    layer = CausalSelfAttention(num_heads=2, embed_dim=16, rotary=rotary, **parts).to(dtype)
    x = torch.tensor([[1, 2, 3, 0, 4, 5, 0, 0, 6, 7, 8, 9, 1], [0, *[1] * 11, 0]])
    values = torch.randn(*x.shape, 16).to(dtype)
    with DocumentMask(layer, 0).over(x):
        together = layer(values)
    for row, tokens, inputs in zip(together, x, values):
        borders = [0, *(i for i in range(1, len(tokens)) if tokens[i] == 0), len(tokens)]
        for begin, end in zip(borders, borders[1:]):
            alone = layer(inputs[None, begin:end])[0]
            torch.testing.assert_close(
                row[begin:end],
                alone,
                **({'atol': 1e-6, 'rtol': 0} if dtype.itemsize == 8 else {'atol': 0.02, 'rtol': 0.02}),
            )
    assert layer.visible is None and not torch.equal(together, layer(values))
