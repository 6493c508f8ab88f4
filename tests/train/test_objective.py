import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmplay.base.base_model import LMBase, LMOutput
from lmplay.data.rows import IGNORE
from lmplay.errors import ExperimentError
from lmplay.modules import matmul
from lmplay.tokenizers import BytesTokenizer
from lmplay.train.loader import micro_batches
from lmplay.train.objective import Compiled, LinearCrossEntropy, Objective, softmax_minus_target_
from tests.helpers import mask_of, ragged, tiny


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
    real = torch.rand(n) < 0.7
    loss, real_loss, correct = LinearCrossEntropy.apply(x, w, b, t, real, 1 / 7, chunk)
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
    assert correct == ((logits.argmax(-1) == t) & (t != IGNORE) & real).sum()
    each = F.cross_entropy(logits, t, ignore_index=IGNORE, reduction='none')
    torch.testing.assert_close(real_loss, each[real].sum() / 7)


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
        loss, *_ = LinearCrossEntropy.apply(x, w, b, t, t == t, 1 / 50, 16)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, w, b)), exact):
        assert ours.dtype == theirs.dtype
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.999


# ---- how a batch is cut


class WithAuxiliaryLoss(LMBase):
    """A forward of its own with an auxiliary loss that is a mean over real tokens, and no features."""

    def __init__(self):
        super().__init__('aux', max_len=24)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 8)
        self.out = nn.Linear(8, 257)

    def forward(self, x, cache=None, mask=None):
        h = self.embed(x)
        aux = (h.pow(2).sum(-1) * mask).sum() / mask.sum()
        return LMOutput(self.out(h), losses={'size': (aux, 0.1)}, metrics={'norm': h.detach().norm()})


def gradient(model, batch, sequences):
    """(loss, gradient) of a batch, so many sequences at a time."""
    model.zero_grad()
    objective, total = Objective(model), 0.0
    for part in micro_batches(batch, sequences):
        share = part.tokens / batch.tokens
        micro = objective(part.x, part.y, mask_of(part), scored=batch.scored, tokens_share=share, chunk=7)
        micro.objective.backward()
        total += micro.loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize('make', [lambda: tiny(num_blocks=2, embed_dim=32), WithAuxiliaryLoss])
def test_the_mini_batch_size_does_not_change_the_gradient(make):
    torch.manual_seed(0)
    model = make().double()
    batch = ragged()
    loss, whole = gradient(model, batch, 4)
    for sequences in (1, 2, 3):
        part_loss, parts = gradient(model, batch, sequences)
        assert part_loss == pytest.approx(loss, rel=1e-12)
        assert (parts - whole).abs().max() < 1e-6 * whole.abs().max()


def test_the_loss_is_cross_entropy_per_scored_token():
    model = WithAuxiliaryLoss().double()
    batch = ragged()
    loss, _ = gradient(model, batch, 2)
    mask = mask_of(batch)
    logits = model(batch.x, mask=mask).logits
    assert loss == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORE).item(), rel=1e-12
    )
    losses, right, prediction, _ = Objective(model).token_losses(batch.x, batch.y, mask, chunk=5)
    assert losses.sum().item() / batch.scored == pytest.approx(loss, rel=1e-12)
    assert (losses[batch.y == IGNORE] == 0).all() and (right[batch.y == IGNORE] == 0).all()
    assert torch.equal(prediction, logits.argmax(-1))


def uniform(cls):
    """A model of a class of this file to which all tokens are equally probable."""
    model = cls()
    for name, parameter in model.named_parameters():
        if name.startswith(('fc', 'out')):
            nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize('fused', [True, False])
def test_a_uniform_model_is_right_in_one_of_v_cases_in_training_and_evaluation(fused):
    model, batch = uniform(Headed if fused else WithAuxiliaryLoss), ragged()
    objective, mask = Objective(model), mask_of(batch)
    assert objective.fused is fused
    micro = objective(batch.x, batch.y, mask, scored=batch.scored, tokens_share=1.0)
    assert micro.correct.item() / batch.scored == pytest.approx(1 / 257)
    right = objective.token_losses(batch.x, batch.y, mask)[1]
    assert right.sum().item() / batch.scored == pytest.approx(1 / 257)


@pytest.mark.parametrize('make', [lambda: Headed(), WithAuxiliaryLoss])
def test_scored_padding_is_trained_and_measured_apart(make):
    model, batch = make().double(), ragged()
    mask = mask_of(batch)
    padding = ~mask & (torch.arange(24) < 20)
    batch.y[padding] = 5
    batch.scored, batch.padding = int((batch.y != IGNORE).sum()), int(padding.sum())
    micro = Objective(model)(batch.x, batch.y, mask, scored=batch.scored, tokens_share=0.0)
    losses, right, *_ = Objective(model).token_losses(batch.x, batch.y, mask)
    torch.testing.assert_close(micro.objective, losses.sum() / batch.scored)
    torch.testing.assert_close(micro.loss, losses[mask].sum() / batch.scored)
    torch.testing.assert_close(micro.padding, losses[padding].sum() / batch.scored)
    torch.testing.assert_close(micro.correct, right[mask].sum())


def test_a_batch_with_nothing_to_score_gives_no_gradient_and_no_nan():
    model = WithAuxiliaryLoss()
    batch = ragged()
    batch.y.fill_(IGNORE)
    batch.scored = 0
    loss, grad = gradient(model, batch, 2)
    assert loss == 0.0 and torch.isfinite(grad).all()


# ---- where head and loss are one


class Headed(LMBase):
    """`features` and a head `fc`; the head is what is varied."""

    def __init__(self, head=None, *, bias=True):
        super().__init__('headed', max_len=24)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 8)
        self.inner = nn.Linear(8, 8)
        self.fc = head if head is not None else nn.Linear(8, 257, bias=bias)

    def features(self, x):
        return torch.tanh(self.inner(self.embed(x)))


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Masked(Headed):
    """Its features say more than a tensor, and ask for the mask."""

    def features(self, x, mask=None):
        h = super().features(x)
        size = (h.pow(2).sum(-1) * mask).sum() / mask.sum()
        return LMOutput(features=h, losses={'size': (size, 0.1)}, metrics={'length': mask.float().sum()})


class OwnForward(Headed):
    def forward(self, x):
        return 30 * torch.tanh(self.fc(self.features(x)) / 30)


class ForwardsToBase(Headed):
    def forward(self, x):
        return super().forward(x).flip(-1)


def hooked(register):
    """Makes a model with a hook."""

    def make():
        model = Headed()
        register(model)
        return model

    return make


def with_instance_forward(of_model: bool):
    model = Headed()
    module = model if of_model else model.fc
    before = module.forward
    module.forward = lambda *args, **kwargs: before(*args, **kwargs) * 2
    return model


def twice(module, args, out=None):
    """A hook that doubles what its module gives, and a pre-hook that doubles what it gets."""
    return 2 * out if out is not None else (2 * args[0],)


def other_ids(module, args):
    return ((args[0] + 1) % 257,)


FUSED = {
    'a plain linear': Headed,
    'without a bias': lambda: Headed(bias=False),
    'padded beyond the vocabulary': lambda: Headed(nn.Linear(8, 264)),
    'padded, without a bias': lambda: Headed(nn.Linear(8, 264, bias=False)),
    'features with losses and a mask': Masked,
    'gpt2ish': tiny,
}
NOT_FUSED = {
    'a subclass of Linear': lambda: Headed(Scaled(8, 257)),
    'a sequence of modules': lambda: Headed(nn.Sequential(nn.Linear(8, 257), nn.Softplus())),
    'weight_norm': lambda: Headed(nn.utils.weight_norm(nn.Linear(8, 257))),
    'weight_norm, parametrized': lambda: Headed(nn.utils.parametrizations.weight_norm(nn.Linear(8, 257))),
    'spectral_norm, parametrized': lambda: Headed(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 257))),
    'spectral_norm': lambda: Headed(nn.utils.spectral_norm(nn.Linear(8, 257))),
    'a hook of the head': hooked(lambda m: m.fc.register_forward_hook(twice)),
    'a pre-hook of the head': hooked(lambda m: m.fc.register_forward_pre_hook(twice)),
    'a hook of the model': hooked(lambda m: m.register_forward_hook(twice)),
    'a pre-hook of the model': hooked(lambda m: m.register_forward_pre_hook(other_ids)),
    'a forward of the instance': lambda: with_instance_forward(True),
    'a forward of its head': lambda: with_instance_forward(False),
    'a forward of its own': OwnForward,
    'a forward around the base': ForwardsToBase,
    'no features at all': WithAuxiliaryLoss,
}


def naive(model, batch):
    """(loss, logits) by the definition: cross-entropy over model(x)."""
    out = model(batch.x, mask=mask_of(batch)) if 'mask' in model.forward_takes else model(batch.x)
    output = out if isinstance(out, LMOutput) else LMOutput(logits=out)
    logits = output.logits.flatten(0, 1)
    loss = F.cross_entropy(logits, batch.y.flatten(), ignore_index=IGNORE, reduction='sum') / batch.scored
    return loss + sum(weight * value for value, weight in output.losses.values()), output.logits


def cases(made, fused):
    return [pytest.param(make, fused, id=name) for name, make in made.items()]


@pytest.mark.parametrize('make, fused', [*cases(FUSED, True), *cases(NOT_FUSED, False)])
def test_training_is_cross_entropy_over_the_models_own_logits(make, fused):
    """Loss and gradients of the objective equal those by the definition, fused or not."""
    torch.manual_seed(0)
    model = make().double().eval()  # spectral_norm moves on with each forward pass in training
    batch = ragged()
    objective = Objective(model)
    assert objective.fused is fused
    micro = objective(batch.x, batch.y, mask_of(batch), scored=batch.scored, tokens_share=1.0, chunk=7)
    micro.objective.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    loss, logits = naive(model, batch)
    loss.backward()
    torch.testing.assert_close(micro.objective, loss)
    assert micro.correct == ((logits.argmax(-1) == batch.y) & (batch.y != IGNORE)).sum()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-10, rtol=1e-7, msg=name)


@pytest.mark.parametrize('make, fused', [*cases(FUSED, True), *cases(NOT_FUSED, False)])
def test_evaluation_is_cross_entropy_over_the_models_own_logits(make, fused):
    torch.manual_seed(0)
    model = make().double().eval()
    batch = ragged()
    losses, _, prediction, _ = Objective(model).token_losses(batch.x, batch.y, mask_of(batch), chunk=5)
    with torch.no_grad():
        _, logits = naive(model, batch)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORE, reduction='none')
    torch.testing.assert_close(losses.flatten(), expected)
    assert torch.equal(prediction, logits.argmax(-1))


def test_a_head_padded_beyond_the_vocabulary_trains_as_the_cut_one():
    """The rows that no token has get no gradient, the others that of a head without them."""
    torch.manual_seed(0)
    padded, cut = (Headed(nn.Linear(8, size)).double() for size in (300, 257))
    cut.load_state_dict({k: v[:257] if k.startswith('fc') else v for k, v in padded.state_dict().items()})
    batch = ragged()
    losses = [gradient(model, batch, 2)[0] for model in (padded, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for name, p in cut.named_parameters():
        theirs = padded.get_parameter(name).grad
        torch.testing.assert_close(theirs[:257] if name.startswith('fc') else theirs, p.grad)
    assert not padded.fc.weight.grad[257:].any() and not padded.fc.bias.grad[257:].any()


def test_a_head_tied_to_a_larger_embedding_is_cut_too():
    """Tying replaces a Linear's weight, and leaves its out_features as they were."""
    model = Headed(nn.Linear(8, 257, bias=False)).double()
    model.embed = nn.Embedding(264, 8).double()
    model.fc.weight = model.embed.weight
    batch = ragged()
    loss, _ = gradient(model, batch, 2)
    assert loss == pytest.approx(naive(model, batch)[0].item(), rel=1e-12)


def test_faster_products_do_not_keep_head_and_loss_apart(monkeypatch):
    monkeypatch.setattr(matmul, 'available', lambda: True)
    model, plain = tiny(), tiny()
    matmul.speed_up_linears(model)
    assert 'forward' in vars(model.fc) and Objective(model).fused
    batch = ragged()
    assert gradient(model, batch, 2)[0] == pytest.approx(gradient(plain, batch, 2)[0], rel=1e-4)


def test_a_copy_of_a_model_is_fused_as_well():
    assert Objective(copy.deepcopy(Headed())).fused


def test_losses_of_a_models_own_forward_are_trained():
    """Features beside it that report none do not hide them."""

    class Both(Headed):
        def forward(self, x):
            logits = self.fc(self.features(x))
            return LMOutput(logits, losses={'z': (logits.logsumexp(-1).pow(2).mean(), 0.5)})

    model, batch = Both().double(), ragged()
    micro = Objective(model)(batch.x, batch.y, mask_of(batch), scored=batch.scored, tokens_share=1.0)
    torch.testing.assert_close(micro.objective, micro.loss + 0.5 * micro.reported['z'])


@pytest.mark.parametrize(
    'out, given',
    [
        (lambda x: x, r'torch.int64 \(4, 24\)'),
        (lambda x: torch.zeros(4, 257), r'torch.float32 \(4, 257\)'),
        (lambda x: LMOutput(), 'NoneType'),
        (lambda x: (torch.zeros(*x.shape, 257), []), 'tuple'),
    ],
)
def test_a_forward_that_returns_no_logits_is_named(out, given):
    class Wrong(Headed):
        def forward(self, x):
            return out(x)

    batch = ragged()
    with pytest.raises(ExperimentError, match=rf'forward of Wrong must return logits .* given: {given}'):
        Objective(Wrong())(batch.x, batch.y, mask_of(batch), scored=1, tokens_share=1.0)


@pytest.mark.parametrize('tokens', [1, 40, 50_000])
def test_in_fp16_a_large_loss_scale_neither_overflows_nor_underflows(tokens):
    """The gradient of the features in fp16, under the scale that a scaler begins with, against float64."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(12, 16, generator=g), torch.randn(50, 16, generator=g) / 4
    t = torch.randint(0, 50, (12,), generator=g)
    scale = min(65536.0, 4096.0 * tokens)  # what a scaler settles on: gradients of each token up to 4,096
    half = x.half().requires_grad_()
    with torch.autocast('cpu', dtype=torch.float16):
        real = torch.ones_like(t, dtype=torch.bool)
        loss, *_ = LinearCrossEntropy.apply(half, w.requires_grad_(), None, t, real, 1 / tokens, None)
    got = torch.autograd.grad(loss * scale, (half, w))
    exact = [half.detach().double().requires_grad_(), w.detach().double().requires_grad_()]
    wanted = torch.nn.functional.cross_entropy(exact[0] @ exact[1].t(), t, reduction='sum') * (scale / tokens)
    for mine, true in zip(got, torch.autograd.grad(wanted, exact)):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine.double(), true, rtol=0.02, atol=0.005 * true.abs().max().item())


# ---- compilation


def failing(graph, inputs):
    raise RuntimeError('no C compiler')


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(caplog):
    torch.compiler.reset()
    run = Compiled(softmax_minus_target_, 'The loss', backend=failing)
    logits, targets = torch.randn(4, 9), torch.tensor([1, 2, 3, 8])
    for _ in range(3):
        got, wanted = logits.clone(), logits.clone()
        losses = run(got, None, targets)[0], softmax_minus_target_(wanted, None, targets)[0]
        assert torch.equal(got, wanted) and torch.equal(*losses)
    assert caplog.text.count('The loss runs uncompiled') == 1 and 'no C compiler' in caplog.text


def test_what_runs_out_of_memory_is_not_taken_for_a_failure_to_compile():
    def full(x):
        raise torch.OutOfMemoryError('CUDA out of memory')

    with pytest.raises(torch.OutOfMemoryError):
        Compiled(full, 'It', backend='eager')(torch.zeros(2))


def test_each_stage_has_its_own_recompilations_and_their_end_is_told(caplog, monkeypatch):
    monkeypatch.setattr('lmplay.train.objective.RECOMPILES', 3)

    def passes(lengths):
        objective = Objective(tiny())
        objective.compile_pass(dynamic=False, backend='eager')
        for T in lengths:
            x = torch.zeros(1, T, dtype=torch.int64)
            objective(x, x, x == 0, scored=T, tokens_share=1.0)

    for _ in range(3):
        passes((4, 5, 6))
    assert 'uncompiled' not in caplog.text
    passes((4, 5, 6, 7, 8, 9))
    assert caplog.text.count('The model runs uncompiled') == 1
