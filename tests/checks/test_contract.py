"""Models that break the contract are named, each by what is wrong with it; models that keep it pass,
whatever their form."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmplay.base.base_model import LMBase, LMOutput
from lmplay.checks import check_contract, check_experiment, contract, require_contract
from lmplay.errors import ExperimentError
from lmplay.modules import Block, cached_length, layer_cache
from lmplay.tokenizers import BytesTokenizer

MAX_LEN = 160


class FewEnds(BytesTokenizer):
    n_vocab = 20_000


class Plain(LMBase):
    """A small transformer with a cache, correct; the others differ from it by one mistake."""

    max_positions = MAX_LEN

    def __init__(self, dropout=0.1):
        super().__init__('plain', max_len=MAX_LEN)
        self.tokenizer = BytesTokenizer()
        self.tok_embed = nn.Embedding(257, 32)
        self.pos_embed = nn.Parameter(torch.randn(1, MAX_LEN, 32) * 0.02)
        self.blocks = nn.ModuleList(self.block(dropout) for _ in range(2))
        self.ln = nn.LayerNorm(32)
        self.fc = nn.Linear(32, 257)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def block(self, dropout):
        return Block(MAX_LEN, 4, 32, attn_dropout=dropout, ff_dropout=dropout)

    def start(self, cache):
        return cached_length(cache)

    def features(self, x, cache=None):
        start = self.start(cache)
        x = self.tok_embed(x) + self.pos_embed[:, start : start + x.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, cache=layer_cache(cache, i))
        return self.ln(x)


class SeesTheFuture(Plain):
    """Attention without its mask."""

    def features(self, x, cache=None):
        h = self.tok_embed(x) + self.pos_embed[:, : x.shape[1]]
        for block in self.blocks:
            q, k, v = block.attn.qkv(block.ln1(h)).chunk(3, -1)
            h = h + block.attn.proj(F.scaled_dot_product_attention(q, k, v))
            h = h + block.ff(block.ln2(h))
        return self.ln(h)


class LeaksALittle(Plain):
    """One position ahead, a thousandth of what the context does."""

    def features(self, x):
        h = super().features(x)
        return h + 1e-5 * F.pad(self.tok_embed(x), (0, 0, 0, 1))[:, 1:]


class LeaksInTraining(Plain):
    def features(self, x):
        h = super().features(x)
        return h + 0.1 * F.pad(self.tok_embed(x), (0, 0, 0, 1))[:, 1:] if self.training else h


class BatchNorm(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def features(self, x):
        return self.norm(super().features(x).transpose(1, 2)).transpose(1, 2)


class MixesSequences(Plain):
    def features(self, x):
        h = super().features(x)
        return h + 0.01 * h.mean(0, keepdim=True)


class IgnoresTheOffset(Plain):
    def start(self, cache):
        return 0


class ForgetsAfterAWhile(Plain):
    """Positions wrong from the 100th on, through the cache only."""

    def start(self, cache):
        return min(100, cached_length(cache))


class Detached(Plain):
    def features(self, x):
        return super().features(x).detach()


class AllDetached(Plain):
    def forward(self, x, cache=None):
        return self.fc(self.features(x)).detach()


class TwoForwards(Plain):
    def forward(self, x, cache=None):
        return 2 * self.fc(self.features(x))


class NotANumber(Plain):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.fc.weight[3, 3] = float('nan')


class NanInTraining(Plain):
    def features(self, x):
        return super().features(x) * (float('inf') - float('inf') if self.training else 1)


class Unused(Plain):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(32, 32)


class Lazy(Plain):
    def __init__(self):
        super().__init__()
        self.extra = nn.LazyLinear(32)

    def features(self, x):
        return self.extra(super().features(x))


class SharedBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer('positions', self.pos_embed.detach()[:, :10])


class WrongShape(Plain):
    def forward(self, x, cache=None):
        return self.features(x)


class ReturnsNothing(LMBase):
    """Seed 003's template, not yet filled in."""

    def __init__(self):
        super().__init__('nothing', max_len=8)
        self.tokenizer = BytesTokenizer()
        self.fc = nn.Linear(2, 2)

    def forward(self, x, cache=None):
        pass


class LateLeak(Plain):
    """Right in short texts: from position 64 on, a position sees the rest of its chunk of 48."""

    def features(self, x, cache=None):
        h = super().features(x)
        if x.shape[1] <= 64:
            return h
        late = h[:, 64:]
        chunks = [c + 0.05 * c.mean(1, keepdim=True) for c in late.split(48, 1)]
        return torch.cat([h[:, :64], *chunks], 1)


class LateNotANumber(Plain):
    def features(self, x, cache=None):
        h = super().features(x)
        return torch.where((torch.arange(x.shape[1]) > 100)[:, None], h * float('nan'), h)


class CarriesOver(Plain):
    """A state goes from one batch to the next."""

    def features(self, x, cache=None):
        h = super().features(x)
        h = h + getattr(self, 'last', 0)
        self.last = 0.1 * h.detach()[-1, -1]
        return h


class RowsAhead(Plain):
    """Each sequence takes something of those before it in the batch; the first has none."""

    def features(self, x, cache=None):
        h = super().features(x)
        return h + 0.1 * F.pad(h[:-1], (0, 0, 0, 0, 1, 0))


class CacheOfTheFirst(Plain):
    """Generation takes every sequence for the first of its batch."""

    def start(self, cache):
        return cached_length(cache)

    def features(self, x, cache=None):
        if cache:
            x = x[:1].expand_as(x)
        return super().features(x, cache=cache)


class LeaksWithAGraph(Plain):
    """As a model that takes another path where gradients are on."""

    def features(self, x):
        h = super().features(x)
        return h + 0.1 * h.roll(-1, 1) if torch.is_grad_enabled() else h


class HiddenByZeros(Plain):
    """Attention that sees the future, whose output projection begins at zero."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, 32)
        nn.init.zeros_(self.out.weight)

    def features(self, x):
        h = super().features(x)
        return h + self.out(F.scaled_dot_product_attention(h, h, h))


class WrongSum(Plain):
    """A sum over positions in the wrong direction, behind a gate that begins closed."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def features(self, x):
        h = super().features(x)
        return h + self.gate * h.flip(1).cumsum(1).flip(1)


class ZeroHeadWrongOffset(IgnoresTheOffset):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.fc.weight)


class WrongBlocks(Plain):
    """Right where the length divides into its blocks of 16."""

    def features(self, x):
        h = super().features(x)
        return h + 0.1 * h.roll(-1, 1) if x.shape[1] % 16 else h


class SeesRepetitions(Plain):
    """Knows whether the next token is the same again."""

    def features(self, x):
        again = F.pad(x[:, 1:] == x[:, :-1], (0, 1))
        return super().features(x) + again[..., None]


class SeesTheEnd(Plain):
    """Where a text ends is known from its mask."""

    def features(self, x, mask=None):
        h = super().features(x)
        return h if mask is None else h + 0.01 * mask.sum(1)[:, None, None]


class Convolution(Plain):
    """Padded on both sides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(32, 32, 3, padding=1)

    def features(self, x):
        h = super().features(x)
        return h + self.conv(h.transpose(1, 2)).transpose(1, 2)


class MixesLargeBatches(Plain):
    def features(self, x):
        h = super().features(x)
        return h + 0.1 * h.mean(0, keepdim=True) if len(x) > 4 else h


class MixesLongSequences(Plain):
    def features(self, x):
        h = super().features(x)
        return h + 0.1 * h.mean(0, keepdim=True) if x.shape[1] > 40 else h


class PromptUnmasked(Plain):
    """The first pass with a cache, that of a prompt, sees all of it."""

    def features(self, x, cache=None):
        first = cache is not None and not cache and x.shape[1] > 1
        h = super().features(x, cache)
        return h + 0.1 * h.mean(1, keepdim=True) if first else h


class AlwaysDropsOut(Plain):
    def features(self, x):
        return F.dropout(super().features(x), 0.1, training=True)


class PlainList(Plain):
    def __init__(self):
        super().__init__(dropout=0.0)
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


class PlainDictionary(Plain):
    def __init__(self):
        super().__init__()
        self.weights = {'a': nn.Parameter(torch.randn(32, 32))}

    def features(self, x, cache=None):
        return super().features(x, cache) @ self.weights['a']


class RandomAttribute(Plain):
    """A random projection that is no buffer: another one after loading."""

    def __init__(self):
        super().__init__()
        self.projection = torch.randn(32, 32)

    def features(self, x, cache=None):
        return super().features(x, cache) @ self.projection.to(self.ln.weight.dtype)


class RandomBuffer(Plain):
    """Registered, and not saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer('projection', torch.randn(32, 32), persistent=False)

    def features(self, x, cache=None):
        return super().features(x, cache) @ self.projection


class BuiltWhenUsed(Plain):
    """A layer that only the first pass makes."""

    def features(self, x):
        h = super().features(x)
        if not hasattr(self, 'late'):
            self.late = nn.Linear(32, 32, dtype=h.dtype)
        return self.late(h)


class HiddenByItsOwnChance(Plain):
    """Noise from a generator of its own must not hide a leak."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()
        self.lock = threading.Lock()  # cannot be copied

    def features(self, x, cache=None):
        h = super().features(x)
        if self.training:
            h = h + 0.1 * torch.randn(h.shape, generator=self.generator) + 0.02 * h.roll(-1, 1)
        return h


class EndsOfBlocks(Plain):
    """Local attention in blocks of 32, whose last position sees the first of the next."""

    def features(self, x):
        h = super().features(x)
        at_end = (torch.arange(x.shape[1]) % 32 == 31)[:, None]
        return h + 0.1 * at_end * F.pad(h, (0, 0, 0, 1))[:, 1:]


class FromTheEnd(Plain):
    """Positions counted from the end of the text."""

    def features(self, x):
        h = self.tok_embed(x) + self.pos_embed[:, -x.shape[1] :]
        for block in self.blocks:
            h = block(h)
        return self.ln(h)


class ShareOfTheLength(Plain):
    def features(self, x):
        share = torch.linspace(0, 1, x.shape[1], dtype=self.ln.weight.dtype)
        return super().features(x) * (1 + share[:, None])


class LargeVocabulary(Plain):
    """In a random text of it, no text ends."""

    def __init__(self):
        super().__init__()
        self.tokenizer = FewEnds()
        self.tok_embed, self.fc = nn.Embedding(20_000, 32), nn.Linear(32, 20_000)


class CountsTokens(LargeVocabulary):
    """How long a text is, taken from where its padding begins."""

    def features(self, x):
        real = (x != self.tokenizer.pad_token).sum(1).to(self.ln.weight.dtype)
        return super().features(x) + 0.01 * real[:, None, None]


class NextDocument(LargeVocabulary):
    """Distance to the next end of a text, instead of that from the last one."""

    def features(self, x):
        ends = (x == self.tokenizer.eot_token).flip(1).cumsum(1).flip(1)
        return super().features(x) + 0.01 * ends[..., None]


class DividesByTheBatch(Plain):
    def features(self, x):
        h = super().features(x)
        return h / len(x) if self.training else h


class MixesLargeBatchesInTraining(Plain):
    def features(self, x):
        h = super().features(x)
        return h + 0.1 * h.mean(0, keepdim=True) if self.training and len(x) > 16 else h


class RemembersInTraining(Plain):
    """Adds the features of the batch before."""

    memory = 0

    def features(self, x):
        h = super().features(x)
        if not self.training:
            return h
        before, self.memory = self.memory, h.detach().mean((0, 1))
        return h + 0.1 * before


class OpensLater(Plain):
    """A curriculum that ends with attention to all."""

    late = False

    def before_step(self, ctx):
        self.late = ctx.step > ctx.total_steps / 4

    def features(self, x):
        h = super().features(x)
        return h + 0.1 * h.mean(1, keepdim=True) if self.late else h


class ChangesAnAttribute(Plain):
    """In every step, and a checkpoint loses it."""

    gain = 1.0

    def after_step(self, ctx):
        self.gain *= 0.9

    def features(self, x):
        return super().features(x) * self.gain


class DetachedBesideALoss(Plain):
    """An auxiliary loss trains what the loss of the next token does not."""

    def features(self, x):
        h = super().features(x)
        return LMOutput(features=h.detach(), losses={'size': (h.square().mean(), 0.1)})


class TwoForwardsBehindZeros(Plain):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        return self.fc(2 * self.features(x))


class TwoForwardsInTraining(Plain):
    def forward(self, x):
        h = self.features(x)
        return self.fc(h * 1.5 if self.training else h)


class RareNan(LargeVocabulary):
    """In the embedding of a token that a random text does not contain."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.tok_embed.weight[-7] = float('nan')


class Uninitialised(Plain):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(32).clamp(-1, 1))  # whatever the memory held, but finite

    def features(self, x):
        return super().features(x) * (1 + self.scale)


class ForgottenGroup(Plain):
    def param_groups(self, weight_decay):
        return [{'params': [*self.blocks.parameters(), *self.fc.parameters()], 'weight_decay': weight_decay}]


class BufferOfTheParameter(Plain):
    """On the CPU it is the parameter, elsewhere a copy that stays as it was."""

    def __init__(self):
        super().__init__()
        self.register_buffer('head', self.fc.weight)


class ExpandedBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer('scale', torch.ones(1).expand(32))

    def features(self, x):
        return super().features(x) * self.scale


WRONG = {
    EndsOfBlocks: 'changing the tokens from position 128 on .* sees the future',
    FromTheEnd: 'sees how long its text is',
    ShareOfTheLength: 'sees how long its text is',
    CountsTokens: 'sees the future',
    NextDocument: 'sees the future',
    DividesByTheBatch: 'in a batch of 17 than alone, by up to .* in training mode',
    MixesLargeBatchesInTraining: 'in a batch of 17 than alone, by up to .* in training mode',
    RemembersInTraining: 'keeps something of one batch for the next',
    OpensLater: 'the same holds later in training.* sees the future',
    ChangesAnAttribute: 'what changes in training in buffers too',
    DetachedBesideALoss: '`features` are detached',
    TwoForwardsBehindZeros: 'are not the same',
    TwoForwardsInTraining: 'are not the same .* in training mode',
    RareNan: "'tok_embed.weight' is not finite",
    Uninitialised: "'scale' is made without values",
    ForgottenGroup: '`param_groups` leaves out .* tok_embed.weight',
    BufferOfTheParameter: "'fc.weight' shares memory with 'head'",
    ExpandedBuffer: "'scale' is expanded",
    LeaksWithAGraph: 'in training mode: it sees the future',
    HiddenByZeros: 'sees the future',
    WrongSum: 'sees the future',
    ZeroHeadWrongOffset: 'with a cache, logits at position 6 differ',
    WrongBlocks: 'sees the future',
    SeesRepetitions: 'sees the future',
    SeesTheEnd: 'by its `mask` it sees the future',
    Convolution: 'sees the future',
    MixesLargeBatches: 'other sequences of a batch',
    MixesLongSequences: 'other sequences of a batch',
    PromptUnmasked: 'with a cache',
    AlwaysDropsOut: 'draws them although it is not training',
    PlainList: "'blocks' is in a plain list or dictionary",
    PlainDictionary: "'weights' is in a plain list or dictionary",
    RandomAttribute: 'a model built again and given the same weights computes something else',
    RandomBuffer: 'a model built again and given the same weights computes something else',
    BuiltWhenUsed: 'Make every layer in __init__',
    LateLeak: 'it sees the future',
    LateNotANumber: r'not finite \(in evaluation mode, in a text of 160',
    CarriesOver: 'the same text gives another result, by up to .* after another text',
    RowsAhead: 'other sequences of a batch',
    CacheOfTheFirst: 'with a cache',
    HiddenByItsOwnChance: 'in training mode: it sees the future',
    SeesTheFuture: 'sees the future',
    LeaksALittle: 'sees the future',
    LeaksInTraining: 'in training mode: it sees the future',
    BatchNorm: 'in training mode',
    MixesSequences: 'other sequences of a batch',
    IgnoresTheOffset: 'with a cache, logits at position 6 differ',
    ForgetsAfterAWhile: 'with a cache, logits at position 1[0-9][0-9] differ',
    Detached: 'only the head `fc` gets a gradient: `features` are detached',
    AllDetached: 'no gradient reaches any parameter',
    TwoForwards: 'are not the same',
    NotANumber: "'fc.weight' is not finite",
    NanInTraining: r'not finite \(in training mode',
    Unused: 'trainable parameters get no gradient: extra.bias, extra.weight',
    Lazy: "'extra.weight' has no shape yet",
    SharedBuffer: 'shares memory with',
    WrongShape: 'must return logits of shape',
    ReturnsNothing: 'must return logits of shape',
}


@pytest.mark.parametrize('model', WRONG, ids=lambda m: m.__name__)
def test_a_model_that_breaks_the_contract_is_refused_by_what_is_wrong(model):
    torch.manual_seed(0)
    with pytest.raises(ExperimentError, match=WRONG[model]):
        require_contract(model(), model)


class NonCausal(SeesTheFuture):
    causal = False


class BatchNormDeclared(MixesSequences):
    batch_dependent = True


class FrozenPart(Unused):
    def __init__(self):
        super().__init__()
        self.extra.requires_grad_(False)


class Tied(Plain):
    def __init__(self):
        super().__init__()
        self.fc.weight = self.tok_embed.weight


class ZeroInitialized(Plain):
    """As adapters and residual gates begin: the first step gives most of it no gradient."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(32, 4), nn.Linear(4, 32)
        nn.init.zeros_(self.up.weight)

    def features(self, x, cache=None):
        h = super().features(x, cache)
        return h + self.up(self.down(h))


class NoCache(Plain):
    def features(self, x):
        return super().features(x)


class LogitsAlone(Plain):
    """Accepts a cache and does not use it, as a first sketch does."""

    def forward(self, x, cache=None):
        return self.fc(self.features(x))


class Bigram(LMBase):
    """No context at all."""

    def __init__(self):
        super().__init__('bigram', max_len=4)
        self.tokenizer = BytesTokenizer()
        self.table = nn.Embedding(257, 257)

    def forward(self, x):
        return self.table(x)


class OnlySinglePrecision(Plain):
    def features(self, x):
        h = super().features(x)
        return h @ torch.eye(32)  # float32 whatever the model is in


class Modern(LMBase):
    """RMSNorm, SwiGLU, rotary positions, grouped queries; logits in float32, as many write them."""

    def __init__(self):
        super().__init__('modern', max_len=MAX_LEN)
        self.tokenizer = BytesTokenizer()
        self.tok_embed = nn.Embedding(257, 32)
        self.norm1, self.norm2, self.norm = (nn.RMSNorm(32) for _ in range(3))
        self.q, self.kv, self.o = (nn.Linear(32, n, bias=False) for n in (32, 32, 32))
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)
        self.fc = nn.Linear(32, 257, bias=False)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
        angles = torch.arange(MAX_LEN)[:, None] * 10_000 ** -(torch.arange(0, 8, 2) / 8)
        self.register_buffer('angles', angles, persistent=False)
        self.offset_error = 0

    def rotate(self, x, start):
        angles = self.angles[start : start + x.shape[2]]
        cos, sin = angles.cos(), angles.sin()
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    def features(self, x, cache=None):
        B, T = x.shape
        start = cache[0][0].shape[2] if cache else 0
        h = self.tok_embed(x)
        n = self.norm1(h)
        q = self.q(n).view(B, T, 4, 8).transpose(1, 2)
        k, v = self.kv(n).view(B, T, 2, 2, 8).permute(2, 0, 3, 1, 4)
        wrong = start - self.offset_error if start else 0
        q, k = self.rotate(q, wrong), self.rotate(k, wrong)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0][0], k], 2), torch.cat([cache[0][1], v], 2)
            cache[:] = [(k, v)]
        mask = torch.ones(T, start + T, dtype=torch.bool).tril(start)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        h = h + self.o(y.transpose(1, 2).reshape(B, T, 32))
        n = self.norm2(h)
        return self.norm(h + self.down(F.silu(self.gate(n)) * self.up(n)))


class ComplexRotary(Plain):
    """Positions as complex numbers, in a buffer that is saved, as Llama's own code has them."""

    def __init__(self):
        super().__init__()
        angles = torch.outer(torch.arange(MAX_LEN).float(), 0.1 ** torch.arange(16))
        self.register_buffer('turns', torch.polar(torch.ones_like(angles), angles))

    def features(self, x):
        h = super().features(x)
        turned = torch.view_as_complex(h.unflatten(-1, (-1, 2))) * self.turns[: x.shape[1]]
        return torch.view_as_real(turned).flatten(-2)


class WithinDocuments(LargeVocabulary):
    """Positions counted from the last end of a text."""

    def features(self, x):
        at = torch.arange(x.shape[1])
        begin = torch.where(x == self.tokenizer.eot_token, at, 0).cummax(1).values
        return super().features(x) + self.pos_embed[0][at - begin]


class RunningMean(Plain):
    """Kept in a buffer and used in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(32))

    def features(self, x, cache=None):
        h = super().features(x, cache)
        out = h - self.mean.clone()
        if self.training:
            self.mean.lerp_(h.detach().mean((0, 1)), 0.1)
        return out


class CapacityDeclared(Plain):
    """An expert takes as many positions as a share of the text."""

    batch_dependent = True

    def features(self, x):
        h = super().features(x)
        taken = (h[..., 0] > 0).cumsum(1) <= x.shape[1] // 4
        return h + 0.1 * taken[..., None]


class SecondToken(Plain):
    """Predicts the token after the next too, in a loss of its own, with dropout before its head."""

    def __init__(self):
        super().__init__()
        self.second, self.dropout = nn.Linear(32, 32), nn.Dropout(0.3)

    def forward(self, x):
        h = self.features(x)
        after = self.fc(self.second(h[:, :-2])).flatten(0, 1) if x.shape[1] > 2 else None
        losses = {'second': (F.cross_entropy(after, x[:, 2:].flatten()), 0.3)} if after is not None else {}
        return LMOutput(self.fc(self.dropout(h)), losses=losses)


class LayersDropped(Plain):
    """Whole layers left out at random, by random numbers of three kinds."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.block(0.1) for _ in range(6))
        self.chance, self.numpy = random.Random(1), np.random.default_rng(1)

    def features(self, x, cache=None):
        start = self.start(cache)
        h = self.tok_embed(x) + self.pos_embed[:, start : start + x.shape[1]]
        draws = (random.random, self.chance.random, self.numpy.random)
        for i, block in enumerate(self.blocks):
            if not (self.training and draws[i % 3]() < 0.3):
                h = block(h, cache=layer_cache(cache, i))
        return self.ln(h)


SHARED_CHANCE = random.Random(1)


class ChanceFromElsewhere(Plain):
    """Of a generator that is not the model's, so that no pass can be repeated."""

    def features(self, x, cache=None):
        h = super().features(x, cache)
        return h * (SHARED_CHANCE.random() < 0.8) if self.training else h


class Recurrent(LMBase):
    """Its state is its cache."""

    def __init__(self):
        super().__init__('recurrent', max_len=MAX_LEN)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 32)
        self.rnn = nn.GRU(32, 32, 2, batch_first=True, dropout=0.1)
        self.fc = nn.Linear(32, 257)

    def features(self, x, cache=None):
        h, state = self.rnn(self.embed(x), cache[0] if cache else None)
        if cache is not None:
            cache[:] = [state]
        return h


class SlidingWindow(LMBase):
    """ALiBi within a window, whose cache forgets what lies before it."""

    window = 20

    def __init__(self):
        super().__init__('window', max_len=MAX_LEN)
        self.tokenizer = BytesTokenizer()
        self.embed, self.qkv, self.out = nn.Embedding(257, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.fc = nn.Linear(32, 257)

    def features(self, x, cache=None):
        h = self.embed(x)
        q, k, v = self.qkv(h).chunk(3, -1)
        start = cache[2] if cache else 0
        if cache:
            k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
        end = start + x.shape[1]
        distance = torch.arange(start, end)[:, None] - torch.arange(end - k.shape[1], end)
        seen = (distance >= 0) & (distance < self.window)
        bias = torch.where(seen, -0.25 * distance, float('-inf')).to(h.dtype)
        if cache is not None:
            cache[:] = [k[:, -self.window :], v[:, -self.window :], end]
        return h + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


class OwnCall(Plain):
    """Computes beside its forward; nothing may bypass it."""

    def __call__(self, x, **optional):
        out = super().__call__(x, **optional)
        return (2 * out[0], out[1]) if isinstance(out, tuple) else 2 * out


class ZeroHead(Plain):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.fc.weight)


class OneBlockThrice(Plain):
    """As ALBERT; and kept in a plain list beside its ModuleList."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.blocks[0]] * 3)
        self.all = list(self.blocks)


RIGHT = [LayersDropped, ChanceFromElsewhere, Recurrent, SlidingWindow, OwnCall, ZeroHead, OneBlockThrice]
RIGHT += [
    Plain,
    NonCausal,
    BatchNormDeclared,
    FrozenPart,
    Tied,
    ZeroInitialized,
    NoCache,
    LogitsAlone,
    Bigram,
]
RIGHT += [OnlySinglePrecision, Modern]
RIGHT += [ComplexRotary, WithinDocuments, RunningMean, CapacityDeclared, SecondToken]


@pytest.mark.parametrize('model', RIGHT, ids=lambda m: m.__name__)
def test_a_model_that_keeps_the_contract_passes_and_stays_as_it_is(model):
    torch.manual_seed(0)
    rebuild, model = model, model()
    before, draw = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    assert [f.problem for f in check_contract(model, rebuild) if f.problem] == []
    assert torch.equal(draw, torch.random.get_rng_state()) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_a_rotary_offset_wrong_by_one_is_found_though_it_moves_logits_by_little():
    torch.manual_seed(0)
    model = Modern()
    model.offset_error = 1
    x = torch.randint(0, 257, (1, 40))
    with torch.no_grad():
        _, cache = model(x[:, :39], cache=[])
        moved = (model(x[:, 39:], cache=cache)[0][:, -1] - model(x)[:, -1]).abs().max()
    assert 0 < moved < 1e-3
    with pytest.raises(ExperimentError, match='with a cache'):
        require_contract(model)


def test_a_model_that_reports_what_it_computes_is_judged_by_it():
    class Reports(Plain):
        def features(self, x):
            h = super().features(x)
            return LMOutput(
                features=h, losses={'size': (h.square().mean(), 0.1)}, metrics={'a': h.mean().detach()}
            )

    require_contract(Reports())


@pytest.mark.parametrize('name', ['gpt2ish', 'gpt2_moe_test', 'some_test', 'modern_test', 'unified_test'])
def test_every_shipped_experiment_keeps_the_contract(name):
    found = list(check_experiment(name))
    assert len(found) == 13 and [f for f in found if f.problem] == []


def test_a_model_too_large_to_copy_is_checked_by_its_structure_and_that_is_said(caplog, monkeypatch):
    monkeypatch.setattr(contract, 'LARGEST', 1000)
    found = [f.check for f in check_contract(SeesTheFuture())]
    assert found == ['tensors that can be saved', 'shape of the logits']
    assert 'too large to be copied' in caplog.text


EXPERIMENT = """
import torch.nn.functional as F
from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner
from lmplay.exp.gpt2ish.model import GPT2
from lmplay.modules import cached_length, layer_cache

class Deep(GPT2):
    def features(self, x, cache=None):
        h = super().features(x)
        return h + 0.1 * F.pad(h, (0, 0, 0, 1))[:, 1:] if len(self.blocks) > 5 else h

class Long(GPT2):
    def features(self, x, cache=None):
        start = min(500, cached_length(cache))
        h = self.tok_embed(x) + self.pos_embed[:, start : start + x.shape[1]]
        for i, block in enumerate(self.blocks):
            h = block(h, cache=layer_cache(cache, i))
        return self.ln(h)

@expose_runner('deep_mistake')
def deep(*args, **kwargs):
    return BasicModelRunner(Deep, *args, **kwargs)

@expose_runner('late_mistake')
def late(*args, **kwargs):
    return BasicModelRunner(Long, *args, **kwargs)
"""


def test_mistakes_of_the_sixth_layer_and_the_five_hundredth_position_are_found_after_an_edit(tmp_path):
    (tmp_path / 'versions.py').write_text(EXPERIMENT)
    for name, message in (('deep_mistake', 'sees the future'), ('late_mistake', 'at position 511 differ')):
        problems = [f.problem for f in check_experiment(f'{tmp_path}/versions.py:{name}') if f.problem]
        assert message in problems[0]


def test_what_a_step_leaves_behind_is_looked_for_with_every_seed_of_a_run():
    torch.manual_seed(1)  # the seed of a run that made the model
    with pytest.raises(ExperimentError, match='computes something else'):
        require_contract(RandomAttribute(), RandomAttribute)


class Misspelt(Plain):
    def features(self, x, cache=None):
        return self.norm(super().features(x, cache))  # there is no `norm`


def test_an_error_of_the_model_is_told_with_its_line():
    problem = next(found.problem for found in check_contract(Misspelt()) if found.problem)
    assert "AttributeError: 'Misspelt' object has no attribute 'norm' (test_contract.py, line " in problem
    assert problem.endswith(', in features)')
