import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmplay.base.base_model import LMBase, LMOutput
from lmplay.base.runner_list import find_runner
from lmplay.data.rows import IGNORE, Batch
from lmplay.tokenizers import BytesTokenizer
from lmplay.train.objective import LinearCrossEntropy, micro_loss, token_losses
from lmplay.train.trainer import micro_batches


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(2, 30),
    st.integers(1, 16),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_fused_head_and_loss_equal_the_plain_form(n, d, v, chunk, bias, seed):
    torch.manual_seed(seed)
    x, w = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((n, d), (v, d)))
    b = torch.randn(v, dtype=torch.float64, requires_grad=True) if bias else None
    t = torch.randint(0, v, (n,))
    t[torch.rand(n) < 0.3] = IGNORE
    inputs = [x, w] + ([b] if bias else [])
    loss, correct = LinearCrossEntropy.apply(x, w, b, t, 1 / 7, chunk)
    grads = torch.autograd.grad(3 * loss, inputs)
    logits = F.linear(x, w, b)
    plain = F.cross_entropy(logits, t, ignore_index=IGNORE, reduction='sum') / 7
    expected = (
        torch.autograd.grad(3 * plain, inputs)
        if (t != IGNORE).any()
        else [torch.zeros_like(i) for i in inputs]
    )
    torch.testing.assert_close(loss, plain)
    for ours, theirs in zip(grads, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
    assert correct == ((logits.argmax(-1) == t) & (t != IGNORE)).sum()


def test_fused_head_under_autocast_is_near_the_exact_gradient():
    torch.manual_seed(0)
    x, w, b = (
        torch.randn(50, 16, requires_grad=True),
        torch.randn(97, 16, requires_grad=True),
        torch.zeros(97, requires_grad=True),
    )
    t = torch.randint(0, 97, (50,))
    exact = torch.autograd.grad(F.cross_entropy(F.linear(x, w, b), t), (x, w, b))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss, _ = LinearCrossEntropy.apply(x, w, b, t, 1 / 50, 16)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, w, b)), exact):
        assert ours.dtype == theirs.dtype
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.999


def ragged(seed=0, rows=4, length=24):
    """A batch as padded data gives it: rows of very unequal length, some of it not scored."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length, 3, 11, 2][:rows])
    x = torch.randint(0, 256, (rows, length), generator=g)
    y = torch.randint(0, 256, (rows, length), generator=g)
    y[torch.arange(length) >= lengths[:, None]] = IGNORE
    y[0, :5] = IGNORE
    return Batch(x, y, lengths, int((y != IGNORE).sum()))


class WithAuxiliaryLoss(LMBase):
    """A plain-logits model with an auxiliary loss that is a mean over real tokens, and no features."""

    def __init__(self):
        super().__init__('aux', max_len=24)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 8)
        self.out = nn.Linear(8, 257)

    def forward(self, x, cache=None, mask=None):
        h = self.embed(x)
        aux = (h.pow(2).sum(-1) * mask).sum() / mask.sum()
        return LMOutput(self.out(h), losses={'size': (aux, 0.1)}, metrics={'norm': h.detach().norm()})


def gradient(model, batch, rows):
    model.zero_grad()
    total = 0.0
    forward = model.features if hasattr(model, 'features') else model
    for part in micro_batches(batch, rows):
        mask = torch.arange(part.x.shape[1]) < part.lengths[:, None]
        micro = micro_loss(
            model,
            forward,
            part.x,
            part.y,
            mask,
            scored=batch.scored,
            tokens_share=part.tokens / batch.tokens,
            chunk=7,
        )
        micro.objective.backward()
        total += micro.loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    'make',
    [
        lambda: (
            find_runner('gpt2ish')
            .function(
                num_blocks=2,
                embed_dim=32,
                num_heads=2,
                max_len=24,
                tokenizer='bytes',
                attn_dropout=0.0,
                ff_dropout=0.0,
                embed_dropout=0.0,
            )
            .build()
        ),
        WithAuxiliaryLoss,
    ],
)
def test_the_mini_batch_size_does_not_change_the_gradient(make):
    torch.manual_seed(0)
    model = make().double()
    batch = ragged()
    loss, whole = gradient(model, batch, 4)
    for rows in (1, 2, 3):
        part_loss, parts = gradient(model, batch, rows)
        assert part_loss == pytest.approx(loss, rel=1e-12)
        assert (parts - whole).abs().max() < 1e-6 * whole.abs().max()


def test_the_loss_is_cross_entropy_per_scored_token():
    model = WithAuxiliaryLoss().double()
    batch = ragged()
    loss, _ = gradient(model, batch, 2)
    mask = torch.arange(24) < batch.lengths[:, None]
    logits = model(batch.x, mask=mask).logits
    assert loss == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORE).item(), rel=1e-12
    )
    losses, right, prediction, _ = token_losses(model, model, batch.x, batch.y, mask, chunk=5)
    assert losses.sum().item() / batch.scored == pytest.approx(loss, rel=1e-12)
    assert (losses[batch.y == IGNORE] == 0).all() and not right[batch.y == IGNORE].any()
    assert torch.equal(prediction, logits.argmax(-1))


def test_a_batch_with_nothing_to_score_gives_no_gradient_and_no_nan():
    model = WithAuxiliaryLoss()
    batch = ragged()
    batch.y.fill_(IGNORE)
    batch.scored = 0
    loss, grad = gradient(model, batch, 2)
    assert loss == 0.0 and torch.isfinite(grad).all()
