"""Expert dispatch against an oracle that walks tokens one by one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.modules import GatedFeedForward, experts
from lmplay.modules.experts import SWIGLU, experts_mlp, sort_by_expert

no_grouped_product = pytest.mark.skipif(
    experts.grouped_mm is None, reason='this torch has no grouped product'
)
FORMS = ['segments', pytest.param('grouped', marks=no_grouped_product)]


def oracle(x_ND, ids_NK, weights_NK, w1, b1, w2, b2, gelu):
    rows = []
    for x, ids, weights in zip(x_ND, ids_NK.tolist(), weights_NK):
        y = torch.zeros_like(x)
        for e, weight in zip(ids, weights):
            h = x @ w1[e] + (0 if b1 is None else b1[e])
            if gelu == SWIGLU:
                a = F.silu(h[: len(h) // 2]) * h[len(h) // 2 :]
            else:
                a = F.gelu(h, approximate=gelu)
            y = y + weight * (a @ w2[e] + (0 if b2 is None else b2[e]))
        rows.append(y)
    return torch.stack(rows)


def case(*, N=7, D=8, F=16, E=4, K=2, dtype=torch.float32, ids=None, bias=True, seed=0, gated=False):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    x = randn(N, D)
    parameters = [
        randn(E, D, 2 * F if gated else F, scale=0.3),
        randn(E, 2 * F if gated else F) if bias else None,
        randn(E, F, D, scale=0.3),
        randn(E, D) if bias else None,
    ]
    if ids is None:
        ids = torch.stack([torch.randperm(E, generator=g)[:K] for _ in range(N)])
    weights = torch.rand(ids.shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return x, ids, weights, parameters


def run(x, ids, weights, parameters, gelu='none'):
    w1, b1, w2, b2 = parameters
    return experts_mlp(
        x, expert_ids_NK=ids, weights_NK=weights, w1_EDF=w1, b1_EF=b1, w2_EFD=w2, b2_ED=b2, gelu=gelu
    )


def gradients(y, tensors):
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(
        y.dtype
    )
    return torch.autograd.grad(y, [t for t in tensors if t is not None], direction)


def check(x, ids, weights, parameters, *, gelu='none', atol=1e-5, rtol=1e-5):
    """Output and all gradients against the oracle in float64."""
    exact = [t if t is None else t.detach().double().requires_grad_() for t in (x, weights, *parameters)]
    y = run(x, ids, weights, parameters, gelu)
    expected = oracle(exact[0], ids, exact[1], *exact[2:], gelu)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), expected, atol=atol, rtol=rtol)
    for got, wanted in zip(gradients(y, [x, weights, *parameters]), gradients(expected, exact), strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=rtol)


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Takes one form, whatever the device would choose."""
    monkeypatch.setattr(experts, 'grouped_serves', lambda *_: request.param == 'grouped')
    return request.param


@pytest.mark.parametrize('gelu', ['none', 'tanh'])
@pytest.mark.parametrize('bias', [True, False])
def test_matches_the_oracle(form, gelu, bias):
    check(*case(bias=bias), gelu=gelu)


@pytest.mark.parametrize('bias', [True, False])
def test_gated_experts_match_the_oracle(form, bias):
    check(*case(bias=bias, gated=True), gelu=SWIGLU)
    check(*case(E=6, ids=torch.tensor([[3], [3], [1]]), N=3, bias=bias, gated=True), gelu=SWIGLU)
    rough = case(N=33, dtype=torch.bfloat16, bias=bias, gated=True)
    check(*rough, gelu=SWIGLU, atol=0.15, rtol=0.05)


def test_gated_experts_in_float64_and_of_odd_widths():
    x, ids, weights, parameters = case(N=5, D=3, F=5, dtype=torch.float64, gated=True)
    assert torch.autograd.gradcheck(
        lambda x, weights, *p: run(x, ids, weights, p, SWIGLU), (x, weights, *parameters)
    )


def test_frozen_gated_experts(form):
    x, ids, weights, parameters = case(gated=True, bias=False)
    full = gradients(run(x, ids, weights, parameters, SWIGLU), [x, weights])
    frozen = [p if p is None else p.detach() for p in parameters]
    for got, wanted in zip(gradients(run(x, ids, weights, frozen, SWIGLU), [x, weights]), full):
        torch.testing.assert_close(got, wanted)


def test_gated_experts_are_swiglu():
    """One expert for all tokens computes what GatedFeedForward does."""
    torch.manual_seed(0)
    mlp = GatedFeedForward(8, ff_dim=16)
    w1 = torch.cat((mlp.gate.weight.T, mlp.up.weight.T), 1)[None]
    x = torch.randn(5, 8)
    parameters = (w1, None, mlp.down.weight.T[None], None)
    y = run(x, torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1), parameters, SWIGLU)
    torch.testing.assert_close(y, mlp(x))


def test_experts_without_tokens(form):
    check(*case(E=6, ids=torch.tensor([[3], [3], [1]]), N=3))
    check(*case(E=6, ids=torch.tensor([[5], [0]]), N=2))


def test_one_token(form):
    check(*case(N=1))


def test_every_expert_chosen(form):
    check(*case(K=4, E=4))


def test_one_expert(form):
    check(*case(K=1, E=1))


def test_same_expert_twice(form):
    check(*case(N=3, ids=torch.tensor([[1, 1], [0, 2], [2, 2]])))


def test_bfloat16(form):
    check(*case(N=33, dtype=torch.bfloat16), atol=0.15, rtol=0.05)


def test_no_tokens(form):
    x, _, _, parameters = case(N=2)
    y = run(x[:0], torch.zeros(0, 2, dtype=torch.int64), torch.ones(0, 2), parameters)
    assert y.shape == (0, 8)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_assignment(data):
    E = data.draw(st.integers(1, 9), 'E')
    K = data.draw(st.integers(1, min(E, 4)), 'K')
    N = data.draw(st.integers(1, 20), 'N')
    ids = torch.tensor(
        data.draw(
            st.lists(st.lists(st.integers(0, E - 1), min_size=K, max_size=K), min_size=N, max_size=N), 'ids'
        )
    )
    gated = data.draw(st.booleans(), 'gated')
    made = case(N=N, E=E, K=K, ids=ids, seed=data.draw(st.integers(0, 99), 'seed'), gated=gated)
    gelu = SWIGLU if gated else 'none'
    check(*made, gelu=gelu)
    if experts.grouped_mm is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experts, 'grouped_serves', lambda *_: True)
            check(*made, gelu=gelu)


def test_float64_and_odd_widths():
    x, ids, weights, parameters = case(N=5, D=3, F=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, weights, *p: run(x, ids, weights, p), (x, weights, *parameters))
    check(*case(D=3, F=5))


def test_sorting_is_stable_and_complete():
    ids = torch.tensor([[2, 0], [0, 3], [2, 2]])
    d = sort_by_expert(ids, 5)
    assert d.order_M.tolist() == [1, 2, 0, 4, 5, 3] and d.experts_M.tolist() == [0, 0, 2, 2, 2, 3]
    assert d.offsets_E.tolist() == [2, 2, 5, 6, 6] and d.offsets_E.dtype == torch.int32
    assert d.order_M[d.inverse_M].tolist() == list(range(6))


def test_frozen_experts(form):
    """Inputs and gate weights get the same gradients, experts none.

    Of the size of the assignments only h and y are kept.
    """
    x, ids, weights, parameters = case(N=64, D=16, F=64, E=8, K=4)
    full = gradients(run(x, ids, weights, parameters), [x, weights])
    frozen = [p.detach() for p in parameters]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = run(x, ids, weights, frozen)
    for got, wanted in zip(gradients(y, [x, weights]), full):
        torch.testing.assert_close(got, wanted)
    own = {p.data_ptr() for p in frozen}
    floats = [t for t in kept if t.is_floating_point() and t.data_ptr() not in own]
    assert sum(t.numel() for t in floats) <= 64 * 4 * (64 + 16) + weights.numel()  # h, y and the gate weights


def test_weights_are_not_copied():
    """The frozen stacks come out of the forward pass as they went in, by address."""
    x, ids, weights, parameters = case(dtype=torch.bfloat16)
    frozen = [p.detach() for p in parameters]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        run(x, ids, weights, frozen)
    assert {frozen[0].data_ptr(), frozen[2].data_ptr()} <= set(kept)


def test_autocast(form):
    x, ids, weights, parameters = case(N=20)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = run(x, ids, weights, parameters)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), run(x, ids, weights, parameters), atol=0.2, rtol=0.05)
    assert all(g.dtype == torch.float32 for g in gradients(y, [x, weights, *parameters]))


@no_grouped_product
def test_an_expert_without_tokens_gets_no_gradient_whatever_the_kernel_left(monkeypatch):
    """On some devices the grouped product does not write the gradients of empty groups."""
    product = experts.grouped_mm

    def careless(a, b, *, offs):
        y = product(a, b, offs=offs)
        if y.ndim == 3:
            y[torch.diff(offs, prepend=offs.new_zeros(1)) == 0] = float('nan')
        return y

    monkeypatch.setattr(experts, 'grouped_serves', lambda *_: True)
    monkeypatch.setattr(experts, 'grouped_mm', careless)
    ids = torch.tensor([[0, 3], [3, 0], [0, 3]])
    x, ids, weights, parameters = case(N=3, E=5, ids=ids, dtype=torch.bfloat16)
    for gradient in gradients(run(x, ids, weights, parameters), parameters):
        assert gradient.isfinite().all() and not gradient[[1, 2, 4]].any() and gradient[[0, 3]].any()


@pytest.mark.parametrize(
    'capability, serves', [((8, 0), 0), ((8, 9), 0), ((9, 0), 1), ((10, 3), 1), ((12, 0), 0)]
)
def test_the_grouped_product_serves_where_it_has_a_kernel(monkeypatch, capability, serves):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    monkeypatch.setattr(experts, 'grouped_mm', lambda *_: None)

    class OnCuda(torch.Tensor):
        is_cuda = True

    x = torch.zeros(4, 8, dtype=torch.bfloat16).as_subclass(OnCuda)
    assert experts.grouped_serves(x, 8, 16) == bool(serves)


@no_grouped_product
def test_no_synchronisation_on_the_grouped_path():
    """On the meta device reading a value is an error, so a pass through it reads none."""
    x, ids, weights, parameters = case(dtype=torch.bfloat16)
    x, ids, weights, *parameters = (
        t.detach().to('meta').requires_grad_(t.is_floating_point()) for t in (x, ids, weights, *parameters)
    )
    y = run(x, ids, weights, parameters)
    torch.autograd.grad(y, [x, weights, *parameters], torch.empty_like(y))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_compiles_without_a_break(form, dtype):
    if form == 'grouped' and dtype != torch.bfloat16:
        pytest.skip('torch traces its grouped product in bf16 only')
    x, ids, weights, parameters = case(N=16, dtype=dtype)
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend='aot_eager')
    gated = case(N=16, dtype=dtype, gated=True)
    torch.testing.assert_close(compiled(*gated, SWIGLU), run(*gated, SWIGLU))
    y, expected = compiled(x, ids, weights, parameters), run(x, ids, weights, parameters)
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(
        gradients(y, [x, weights, *parameters]), gradients(expected, [x, weights, *parameters])
    ):
        torch.testing.assert_close(got, wanted)
