import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmplay.modules import matmul


@pytest.fixture(params=[True, False])
def detour(request, monkeypatch):
    if request.param and not hasattr(torch.ops.mkldnn, '_linear_pointwise'):
        pytest.skip('this torch has no oneDNN')
    monkeypatch.setattr(matmul, 'available', lambda: request.param)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'shape, outputs',
    [((4, 40, 128), 256), ((1, 1, 16), 8), ((600, 64), 96), ((1, 1, 512), 1024), ((3, 0, 512), 1024)],
)
def test_output_and_gradients_equal_the_plain_linear(detour, bias, shape, outputs):
    torch.manual_seed(0)
    ours, plain = (nn.Linear(shape[-1], outputs, bias=bias) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    model = nn.Sequential(ours)
    matmul.speed_up_linears(model)
    x = torch.randn(*shape, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y, y2 = model(x), plain(x2)
    torch.testing.assert_close(y, y2, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), y2, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (y2 * weight).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, atol=1e-4, rtol=1e-4)
    for a, b in zip(ours.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-4)
    assert list(model.state_dict()) == ['0.weight', *(['0.bias'] if bias else [])]


def test_other_precisions_go_their_own_way(detour):
    model = nn.Sequential(nn.Linear(64, 64))
    matmul.speed_up_linears(model)
    x = torch.randn(512, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    double = model.double()
    assert torch.equal(double(x.double()), F.linear(x.double(), model[0].weight, model[0].bias))


def test_the_product_serves_transposed_operands(detour):
    g, w, x = torch.randn(300, 700), torch.randn(700, 130), torch.randn(300, 130)
    torch.testing.assert_close(matmul.matmul(g, w.t()), g @ w, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(matmul.matmul(g.t(), x.t()), g.t() @ x, atol=1e-3, rtol=1e-4)


def test_compiles_without_a_graph_break(detour):
    model = nn.Sequential(nn.Linear(128, 128))
    matmul.speed_up_linears(model)
    x = torch.randn(600, 128)
    torch.testing.assert_close(
        torch.compile(model, fullgraph=True, backend='aot_eager')(x),
        F.linear(x, model[0].weight, model[0].bias),
        atol=1e-5,
        rtol=1e-5,
    )
