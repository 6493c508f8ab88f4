"""The model behind the contract: versions, cost, cache, and what it refuses."""

import pytest
import torch

from lmplay.base.runner_list import find_runner
from lmplay.errors import UserError

SHAPE = dict(num_blocks=3, embed_dim=48, num_heads=6, max_len=24, tokenizer='bytes')


def build(**parameters):
    torch.manual_seed(0)
    return find_runner('modern').function(**SHAPE | parameters).build()


def expected_parameters(*, layers, width, heads, kv_heads, inner, vocabulary, tied):
    attention = width * width * 2 + 2 * width * (width // heads) * kv_heads
    block = attention + 3 * width * inner + 2 * width
    return layers * block + width + vocabulary * width * (1 if tied else 2)


@pytest.mark.parametrize(
    'name, shape',
    [
        ('modern', dict(layers=6, width=768, heads=12, kv_heads=4, inner=2048, vocabulary=50257, tied=False)),
        (
            'modern_test',
            dict(layers=2, width=64, heads=4, kv_heads=1, inner=192, vocabulary=50257, tied=False),
        ),
        (
            'smollm2_135m',
            dict(layers=30, width=576, heads=9, kv_heads=3, inner=1536, vocabulary=49152, tied=True),
        ),
    ],
)
def test_versions(name, shape):
    model = find_runner(name).function().build('meta')
    assert model.total_parameters() == expected_parameters(**shape)
    assert model.active_parameters() == model.total_parameters()
    D, L, T = shape['width'], shape['layers'], 128
    kv = D // shape['heads'] * shape['kv_heads']
    products = L * (2 * D * D + 2 * D * kv + 3 * D * shape['inner']) + D * shape['vocabulary']
    assert model.flops_per_token(T) == pytest.approx(2 * products + 4 * L * T * D)
    if name == 'smollm2_135m':
        assert model.total_parameters() == 134_515_008


@pytest.mark.parametrize('chunks', [[24], [1] * 24, [5, 1, 1, 7, 10], [23, 1]])
@pytest.mark.parametrize('options', [{}, dict(num_kv_heads=6, qk_norm=True, tied_head=True)])
def test_cached_and_full_forward_agree_at_every_position(chunks, options):
    model = build(**options).double().eval()
    x = torch.randint(0, 257, (2, 24))
    with torch.no_grad():
        full, cache, at = model(x), [], 0
        for n in chunks:
            logits, cache = model(x[:, at : at + n], cache=cache)
            at += n
            torch.testing.assert_close(logits[:, 0], full[:, at - 1], atol=1e-10, rtol=0)


def test_bf16_on_a_cpu_computes_the_same_roughly():
    model = build().eval()
    x = torch.randint(0, 257, (2, 24))
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            rough = model(x)
    assert (rough - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize('dropout', ['attn_dropout', 'ff_dropout', 'embed_dropout'])
def test_each_dropout_is_applied_in_training_only(dropout):
    x = torch.randint(0, 257, (1, 16))
    model = build(**{dropout: 0.5})
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_tied_head_is_one_tensor():
    model = build(tied_head=True)
    assert model.fc.weight is model.tok_embed.weight
    assert build().total_parameters() - model.total_parameters() == 257 * 48


def test_padded_vocabulary():
    model = build(vocab_size=300)
    assert model(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 257) and len(model.fc.weight) == 300


@pytest.mark.parametrize(
    'wrong, message',
    [
        (dict(num_heads=5), 'embed_dim must be a multiple of num_heads'),
        (dict(num_kv_heads=4), 'num_heads must be a multiple of num_kv_heads; given: num_heads 6'),
        (dict(num_kv_heads=0), 'num_heads must be a multiple of num_kv_heads'),
        (dict(num_heads=48), 'heads of an even width'),
        (dict(rope_theta=0.0), 'rope_theta above 0'),
        (dict(ff_dim=0), 'ff_dim must be'),
        (dict(vocab_size=100), "vocab_size must be at least the tokenizer's 257; given: 100"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        build(**wrong)
