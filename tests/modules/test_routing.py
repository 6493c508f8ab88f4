"""Routing and its losses against their definitions, token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.modules.routing import (
    distribution_entropy,
    expert_load,
    load_balance_loss,
    masked_mean,
    route,
    router_entropy,
    z_loss,
)


def logits(N=12, E=5, seed=0, scale=1.0):
    return (
        torch.randn(N, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    ).requires_grad_()


def test_one_choice_weighs_one_and_passes_the_probability_gradient():
    l_NE = logits()
    r = route(l_NE, top_k=1)
    assert r.weights_NK.detach().eq(1).all() and r.expert_ids_NK[:, 0].equal(l_NE.argmax(-1))
    direction = torch.randn(12, 1, dtype=torch.float64)
    (got,) = torch.autograd.grad((r.weights_NK * direction).sum(), l_NE)
    (wanted,) = torch.autograd.grad((l_NE.softmax(-1).amax(-1, keepdim=True) * direction).sum(), l_NE)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize('k', [2, 5])
def test_several_choices_weigh_their_probabilities_scaled_to_one(k):
    l_NE = logits()
    r = route(l_NE, top_k=k)
    for n in range(12):
        p = l_NE[n].softmax(-1)
        best = sorted(range(5), key=lambda e: -p[e].item())[:k]
        assert r.expert_ids_NK[n].tolist() == best
        torch.testing.assert_close(r.weights_NK[n], p[best] / p[best].sum())


def test_noise_moves_the_choice_and_not_the_clean_logits():
    l_NE = logits(N=4000)
    torch.manual_seed(0)
    r = route(l_NE, top_k=1, noise_std=torch.tensor(0.5))
    assert r.logits_NE is l_NE
    moved = (r.probs_NE.log() - l_NE.log_softmax(-1)).detach()
    moved = moved - moved.mean(1, keepdim=True)  # what a softmax leaves of N(0, 0.5^2) noise
    assert moved.std().item() == pytest.approx(0.5 * math.sqrt(4 / 5), rel=0.05)
    assert route(l_NE, top_k=1).probs_NE.equal(l_NE.softmax(-1))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.data())
def test_losses_by_definition(N, E, data):
    k = data.draw(st.integers(1, E))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=N, max_size=N)))
    l_NE = logits(N, E, seed=data.draw(st.integers(0, 1000)), scale=data.draw(st.floats(0, 20)))
    r = route(l_NE, top_k=k)
    load_E = expert_load(r.expert_ids_NK, E, mask)
    real = [n for n in range(N) if mask[n]]
    f, P, z, entropy = [0.0] * E, [0.0] * E, 0.0, 0.0
    for n in real:
        p = l_NE[n].softmax(-1)
        for e in r.expert_ids_NK[n].tolist():
            f[e] += 1 / (len(real) * k)
        for e in range(E):
            P[e] += p[e].item() / len(real)
        z += torch.logsumexp(l_NE[n], 0).item() ** 2 / len(real)
        entropy -= sum(q * math.log(q) for q in p.tolist() if q > 0) / len(real)
    balance = load_balance_loss(r.probs_NE, load_E, mask)
    torch.testing.assert_close(load_E.tolist(), f, atol=1e-6, rtol=1e-6)
    assert balance.item() == pytest.approx(E * sum(a * b for a, b in zip(f, P)), abs=1e-5)
    assert z_loss(l_NE, mask).item() == pytest.approx(z, rel=1e-6, abs=1e-9)
    assert router_entropy(l_NE, mask).item() == pytest.approx(entropy, abs=1e-6)
    assert 0 <= balance.item() <= E + 1e-6 and z_loss(l_NE, mask).item() >= 0


def test_load_balance_is_one_at_balance_and_E_at_collapse():
    E = 8
    flat = torch.zeros(64, E)
    ids = torch.arange(64)[:, None] % E
    assert load_balance_loss(flat.softmax(-1), expert_load(ids, E)).item() == pytest.approx(1)
    one = torch.zeros(64, E)
    one[:, 3] = 100
    r = route(one, top_k=1)
    assert load_balance_loss(r.probs_NE, expert_load(r.expert_ids_NK, E)).item() == pytest.approx(E)
    assert z_loss(flat).item() == pytest.approx(math.log(8) ** 2, rel=1e-6)  # what a flat router gives


def test_load_carries_no_gradient():
    l_NE = logits()
    r = route(l_NE, top_k=2)
    load_E = expert_load(r.expert_ids_NK, 5).double().requires_grad_()
    got = torch.autograd.grad(load_balance_loss(r.probs_NE, load_E), [l_NE, load_E], allow_unused=True)
    assert got[1] is None
    (wanted,) = torch.autograd.grad(5 * (load_E.detach() * l_NE.softmax(-1).mean(0)).sum(), l_NE)
    torch.testing.assert_close(got[0], wanted)


def test_masked_tokens_count_nowhere():
    l_NE = logits(N=10)
    mask = torch.tensor([True] * 6 + [False] * 4)
    whole, part = route(l_NE, top_k=2), route(l_NE[:6], top_k=2)
    load, own = expert_load(whole.expert_ids_NK, 5, mask), expert_load(part.expert_ids_NK, 5)
    torch.testing.assert_close(load, own)
    torch.testing.assert_close(
        load_balance_loss(whole.probs_NE, load, mask), load_balance_loss(part.probs_NE, own)
    )
    torch.testing.assert_close(z_loss(l_NE, mask), z_loss(l_NE[:6]))
    (grad,) = torch.autograd.grad(z_loss(l_NE, mask) + load_balance_loss(whole.probs_NE, load, mask), l_NE)
    assert grad[6:].eq(0).all() and grad[:6].ne(0).any()


def test_nothing_left_by_the_mask():
    assert masked_mean(torch.ones(3, 2), torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0]


def test_distribution_entropy_is_that_of_the_mean():
    """A router that is sure of every token and uses its experts alike has log E."""
    sure = torch.eye(4).repeat(3, 1) * 100
    assert distribution_entropy(sure).item() == pytest.approx(math.log(4), abs=1e-5)
    assert router_entropy(sure).item() == pytest.approx(0, abs=1e-5)
    logits, mask = torch.randn(20, 4), torch.rand(20) < 0.6
    p = logits[mask].softmax(-1).mean(0)
    assert distribution_entropy(logits, mask).item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-6)
