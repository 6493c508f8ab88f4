"""Experiments that get a trainer into trouble, or into the corners of the contract; --exp takes this path."""

import os
import signal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lmplay.base.base_model import BasicModelRunner, LMBase, LMOutput
from lmplay.base.runner_list import expose_runner
from lmplay.errors import DataError
from lmplay.tokenizers import BytesTokenizer
from lmplay.train import trainer

NEVER = 10**9
CHECK = 'check'  # the stage of steps that are taken to see whether a model keeps its contract


class Interruptible(LMBase):
    """In step $STOP_AT it sends its own process SIGINT; in step N of $TROUBLE, "N SIGNAL" or "N error", that.

    These are no parameters, since a resumed run must have the same ones.
    """

    def before_step(self, ctx):
        if ctx.stage == CHECK:
            return
        if ctx.step == int(os.environ.get('STOP_AT', -1)):
            signal.raise_signal(signal.SIGINT)
        step, _, what = os.environ.get('TROUBLE', '').partition(' ')
        if step == str(ctx.step):
            if what == 'error':
                raise DataError("Can't read 'stories.jsonl': it was removed.")
            signal.raise_signal(signal.Signals[what])


class Troubled(Interruptible):
    """Does at a step what it is told.

    nan_from, nan_to  steps whose logits are NaN
    rows_that_fit     of a forward pass in training, above which memory runs out; no more than $ROWS_THAT_FIT
    load              share of the first of two experts, as a routed model reports it
    log               file that gets a line per step

    On a clock that stands still, the first step of a stage takes 5 s and every other one half a second.
    """

    def __init__(self, max_len=32, nan_from=NEVER, nan_to=NEVER, rows_that_fit=NEVER, load=0.0, log=None):
        super().__init__('troubled', max_len=max_len)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 8)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(8, 257)
        self.nan_from, self.nan_to, self.rows_that_fit = nan_from, nan_to, rows_that_fit
        self.load, self.log = load, log
        self.nan = False

    def before_step(self, ctx):
        self.nan = ctx.stage != CHECK and self.nan_from <= ctx.step < self.nan_to
        if hasattr(trainer.time, 'now'):
            trainer.time.now += 0.5 if ctx.step else 5.0
        super().before_step(ctx)

    def after_step(self, ctx):
        if self.log and ctx.stage != CHECK:
            with open(self.log, 'a') as file:
                print(ctx.stage, ctx.step, ctx.total_steps, ctx.tokens, bool(ctx.stepped), file=file)

    def forward(self, x, cache=None):
        if self.training and x.shape[0] > min(
            self.rows_that_fit, int(os.environ.get('ROWS_THAT_FIT', NEVER))
        ):
            raise torch.OutOfMemoryError('simulated')
        logits = self.out(self.drop(self.embed(x)))
        if self.training and self.nan:
            logits = logits * float('nan')
        metrics = {'expert_load': torch.tensor([[self.load, 1 - self.load]])} if self.load else {}
        return LMOutput(logits, metrics=metrics) if cache is None else (logits[:, -1:], cache)


class Mean(Interruptible):
    """Its own forward, no cache: at each position the mean of all embeddings up to it."""

    def __init__(self, max_len=32, embed_dim=16):
        super().__init__('mean', max_len=max_len)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, embed_dim)
        self.mix = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, 257)

    def logits(self, x):
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        h = self.embed(x)
        return self.out(torch.relu(self.mix(h + h.cumsum(1) / count)))

    def forward(self, x):
        return self.logits(x)


class LogitsAlone(Mean):
    """Takes a cache, as the template of the guide does, and returns logits alone all the same."""

    def forward(self, x, cache=None):
        return self.logits(x)


class Shouting(Mean):
    """Reports metrics under the names of what the trainer measures."""

    def forward(self, x):
        names = ('loss', 'step', 'accuracy', 'samples', 'tokens', 'kind', 'stage', 'perplexity')
        metrics = {name: torch.tensor(-7.0) for name in names}
        return LMOutput(self.logits(x), losses={'lr': (self.out.weight.mean(), 0.0)}, metrics=metrics)


class TwoFaced(Mean):
    """`forward` and `features` compute two different things."""

    def __init__(self, max_len=32, embed_dim=16):
        super().__init__(max_len, embed_dim)
        self.fc = nn.Linear(embed_dim, 257)

    def features(self, x):
        return self.embed(x)


class Capped(TwoFaced):
    """Its `forward` is nearly that of its `features`."""

    def forward(self, x):
        return 30 * torch.tanh(self.fc(self.features(x)) / 30)


class Futile(LMBase):
    """Nothing to train."""

    def __init__(self, max_len=32):
        super().__init__('futile', max_len=max_len)
        self.tokenizer = BytesTokenizer()

    def forward(self, x):
        return torch.zeros(*x.shape, 257, device=x.device)


class Diverging(Mean):
    """Its weights are lost after every step."""

    def after_step(self, ctx):
        with torch.no_grad():
            self.out.bias.fill_(float('nan'))


class Bidirectional(Mean):
    """Sees the whole sequence, and says so."""

    causal = False

    def forward(self, x):
        return self.out(self.mix(self.embed(x)).mean(1, keepdim=True) + self.embed(x))


class Reads(TorchFunctionMode):
    """Notes which functions turn a tensor into numbers, or ids into text, while it is entered."""

    WATCHED = {torch.Tensor.tolist: 'tolist', torch.Tensor.numpy: 'numpy'}

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []
        self.entered = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.WATCHED:
            self.seen.append(self.WATCHED[function])
        return function(*args, **kwargs or {})


class ToldBytes(BytesTokenizer):
    """Bytes, and a note of each decoding within a step."""

    def __init__(self, reads: Reads):
        self.reads, self.decoded = reads, 0

    def decode(self, ids):
        self.decoded += 1
        if self.reads.entered:
            self.reads.seen.append('decode')
        return super().decode(ids)


class Watched(Mean):
    """Reports how many reads its last step made, and how much text was decoded since it was built."""

    def __init__(self, max_len=32, embed_dim=16):
        super().__init__(max_len, embed_dim)
        self.reads = Reads()
        self.tokenizer = ToldBytes(self.reads)

    def before_step(self, ctx):
        super().before_step(ctx)
        if ctx.stage != CHECK:
            self.reads.__enter__()
            self.reads.entered = True

    def after_step(self, ctx):
        if ctx.stage != CHECK:
            self.reads.entered = False
            self.reads.__exit__(None, None, None)

    def forward(self, x):
        told = {'reads': len(self.reads.seen), 'decoded': self.tokenizer.decoded}
        return LMOutput(self.logits(x), metrics={k: torch.tensor(float(v)) for k, v in told.items()})


@expose_runner('troubled')
def troubled(*args, **kwargs):
    return BasicModelRunner(Troubled, *args, **kwargs)


@expose_runner('mean')
def mean(*args, **kwargs):
    return BasicModelRunner(Mean, *args, **kwargs)


@expose_runner('logits_alone')
def logits_alone(*args, **kwargs):
    return BasicModelRunner(LogitsAlone, *args, **kwargs)


@expose_runner('shouting')
def shouting(*args, **kwargs):
    return BasicModelRunner(Shouting, *args, **kwargs)


@expose_runner('two_faced')
def two_faced(*args, **kwargs):
    return BasicModelRunner(TwoFaced, *args, **kwargs)


@expose_runner('capped')
def capped(*args, **kwargs):
    return BasicModelRunner(Capped, *args, **kwargs)


@expose_runner('futile')
def futile(*args, **kwargs):
    return BasicModelRunner(Futile, *args, **kwargs)


@expose_runner('diverging')
def diverging(*args, **kwargs):
    return BasicModelRunner(Diverging, *args, **kwargs)


@expose_runner('bidirectional')
def bidirectional(*args, **kwargs):
    return BasicModelRunner(Bidirectional, *args, **kwargs)


@expose_runner('watched')
def watched(*args, **kwargs):
    return BasicModelRunner(Watched, *args, **kwargs)
