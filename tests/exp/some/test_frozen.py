import hashlib
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmplay.errors import ExperimentError
from lmplay.exp.some.frozen import INITS, frozen_experts

SMALL = dict(
    num_experts=3, embed_dim=32, d_ffn=96, top_k=2, init='sparse', seed=0, layer=0, device=torch.device('cpu')
)


def test_sparse_has_half_zeros_for_each_input_and_normal_values():
    w1, _, w2, _, _ = frozen_experts(**SMALL | dict(embed_dim=256, d_ffn=768))
    for weights in (w1, w2):
        zeros = (weights == 0).sum(-1)
        assert (zeros == weights.shape[-1] // 2).all()
        values = weights[weights != 0].double()
        assert values.mean().abs() < 1e-4 and values.std().item() == pytest.approx(0.01, rel=0.01)
        assert (values / 0.01).pow(4).mean().item() == pytest.approx(3, rel=0.03)  # of a normal distribution
        assert ((weights[0] == 0) & (weights[1] == 0)).double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_odd_sizes():
    w1, _, w2, _, _ = frozen_experts(**SMALL | dict(embed_dim=5, d_ffn=7))
    assert ((w1 == 0).sum(-1) == 4).all() and (
        (w2 == 0).sum(-1) == 3
    ).all()  # ceil of a half, as torch.nn.init.sparse_


def test_scaled_preserves_variance_where_experts_are_mixed_equally():
    K, E, D = 4, 64, 128
    w1, _, w2, _, _ = (
        t.float()
        for t in frozen_experts(
            **SMALL | dict(num_experts=E, embed_dim=D, d_ffn=384, top_k=K, init='sparse_scaled')
        )
    )
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(0))
    y = torch.stack([(F.gelu(x @ w1[e]) @ w2[e]) for e in range(E)])
    mixed = y.unflatten(0, (E // K, K)).mean(1)
    assert mixed.var().item() == pytest.approx(1, rel=0.1)


def test_published_scale_leaves_the_output_near_zero():
    w1, _, w2, _, _ = (t.float() for t in frozen_experts(**SMALL | dict(embed_dim=512, d_ffn=1536)))
    x = torch.randn(50, 512, generator=torch.Generator().manual_seed(0))
    assert (F.gelu(x @ w1[0]) @ w2[0]).std() < 0.05


def test_default_is_the_initialisation_of_linear():
    w1, _, w2, _, _ = frozen_experts(**SMALL | dict(init='default', embed_dim=64, d_ffn=192))
    for weights, fan_in in ((w1, 64), (w2, 192)):
        bound = fan_in**-0.5
        values = weights.double().flatten()
        assert values.abs().max() <= bound * 1.004  # bfloat16 rounds by up to 2^-8
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize('init', INITS)
def test_biases_are_zero_whatever_the_init(init):
    _, b1, _, b2, _ = frozen_experts(**SMALL | dict(init=init))
    assert not b1.any() and not b2.any()


def test_orthogonal():
    w1, _, w2, _, _ = frozen_experts(**SMALL | dict(init='orthogonal'))
    for weights in (w1.double(), w2.double().transpose(1, 2)):  # 32 orthonormal vectors of length 96
        torch.testing.assert_close(
            weights @ weights.transpose(1, 2),
            torch.eye(32, dtype=torch.float64).expand(3, 32, 32),
            rtol=0,
            atol=0.01,
        )


@pytest.mark.parametrize('init', INITS)
def test_follows_from_the_seed_alone(init):
    first = frozen_experts(**SMALL | dict(init=init))
    torch.manual_seed(1)
    np.random.seed(1)
    results = []
    thread = threading.Thread(target=lambda: results.append(frozen_experts(**SMALL | dict(init=init))))
    thread.start()
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(first, results[0]))
    for change in (dict(seed=1), dict(layer=1)):
        other = frozen_experts(**SMALL | dict(init=init) | change)
        assert not torch.equal(first[0], other[0]) and not torch.equal(first[-1], other[-1])
    assert len({first[0][e].view(torch.int16).numpy().tobytes() for e in range(3)}) == 3


def test_more_experts_keep_the_first_ones():
    few, many = (frozen_experts(**SMALL | dict(num_experts=n)) for n in (3, 5))
    assert torch.equal(few[0], many[0][:3])


def test_digest_is_that_of_the_bytes_and_never_changes():
    *tensors, digest = frozen_experts(**SMALL)
    parts = [
        hashlib.sha256(b''.join(t[e].view(torch.int16).numpy().tobytes() for t in tensors)).digest()
        for e in range(3)
    ]
    assert bytes(digest.tolist()) == hashlib.sha256(b''.join(parts)).digest()
    # A change of this value means that checkpoints trained before can't be loaded any more.
    assert bytes(digest.tolist()).hex() == 'de9808cfa4d70c9f9529bd740e43e4ad171c43ac2bada7600275cbd571b1b66a'


def test_nothing_is_made_on_the_meta_device():
    tensors = frozen_experts(
        **SMALL | dict(num_experts=128, embed_dim=4096, d_ffn=16384, device=torch.device('meta'))
    )
    assert all(t.is_meta for t in tensors) and tensors[0].shape == (128, 4096, 16384)


def test_unknown_init_is_named():
    with pytest.raises(ExperimentError, match="init 'sparce'.*Did you mean 'sparse'"):
        frozen_experts(**SMALL | dict(init='sparce'))
