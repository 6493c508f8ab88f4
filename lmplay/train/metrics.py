"""What is measured between two logging points, summed on the device so that no step waits for it.

A record of the training curve holds these means over the steps since the last one:

loss           nats per real token that is scored, as in evaluation
loss_with_pad  the same with the padding, where that is scored; what the step's gradient is of
accuracy       share of the real tokens that are predicted right; ties count as in evaluation
model/NAME     what the model reports, over the steps that reported it
not_finite     {name: steps whose value was not a number and is left out of its mean}, where there are any
skipped        steps that were not taken, because their gradient was not finite

A mean of nothing is None; one of which no value was finite is NaN.
"""

import torch
from torch import Tensor

from ..data.rows import Batch
from .objective import MicroLoss
from .ranks import ALONE, Ranks

MODEL = 'model/'  # prefix of what a model reports of itself; it cannot overwrite what is measured here


class _Mean:
    """A weighted mean of the finite values of a tensor of any shape, element by element."""

    def __init__(self, like: Tensor):
        self.sum, self.left_out = torch.zeros_like(like), torch.zeros_like(like, dtype=torch.int64)
        self.weight = torch.zeros_like(like, dtype=torch.int64)

    def add(self, value: Tensor, finite: Tensor, weight: int = 1, known: Tensor | bool = True) -> None:
        """Adds a sum of `weight` values, where it is finite; none where it is not known."""
        self.sum = self.sum + torch.where(finite, value, 0.0)
        self.weight = self.weight + finite * weight
        self.left_out = self.left_out + (~finite & known)

    def pop(self) -> tuple[list | float, int]:
        """(mean, steps left out)."""
        return (self.sum.cpu().double() / self.weight.cpu()).tolist(), int(self.left_out.max())


class MetricAccumulator:
    """Sums since the last `pop`, over all ranks. `seconds` of training and `waited` for data are set by the
    loop."""

    def __init__(self, device: torch.device, ranks: Ranks = ALONE):
        self.device, self.ranks = device, ranks
        self._shapes: dict[str, torch.Size] = {}  # of what the model reports, as all ranks know it
        self._clear()

    def _clear(self) -> None:
        self.steps = self.tokens = self.scored = self.padding = 0
        self.seconds = self.waited = 0.0
        zero = torch.zeros((), device=self.device)
        self._loss, self._with_pad, self._correct = _Mean(zero), _Mean(zero), _Mean(zero)
        self._skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self._norm = zero
        self._reported: dict[str, _Mean] = {}

    def begin_step(self) -> None:
        """Starts the sums of one step; those of a step that is retried are dropped."""
        self._step_loss = torch.zeros((), device=self.device)
        self._step_padding = torch.zeros((), device=self.device)
        self._step_correct = torch.zeros((), device=self.device)
        self._step_reported: dict[str, tuple[Tensor, float | Tensor]] = {}

    def add(self, micro: MicroLoss, share: float) -> None:
        """Adds a micro-batch that has that share of the step's tokens."""
        self._step_loss += micro.loss.to(self._step_loss.dtype)
        self._step_padding += micro.padding
        self._step_correct += micro.correct.to(self._step_correct.dtype)
        for name, value in micro.reported.items():
            part = value.float() * share
            total, shares = self._step_reported.get(name, (0.0, 0.0))
            self._step_reported[name] = (total + part, shares + share)

    @property
    def news(self) -> bool:
        """Whether this rank's step has reported something for the first time."""
        return not self._step_reported.keys() <= self._shapes.keys()

    def learn(self) -> None:
        """Lets all ranks know what each of them reports; they call it together, where one has news."""
        own = {name: total.shape for name, (total, _) in self._step_reported.items()}
        known = {
            name: shape
            for shapes in self.ranks.gathered(self._shapes | own)
            for name, shape in shapes.items()
        }
        self._shapes = {name: known[name] for name in sorted(known)}

    def _join_ranks(self) -> None:
        """Adds up the ranks' sums of the step, all of them in one message."""
        zero = torch.zeros((), device=self.device)
        sums = [self._step_loss, self._step_padding, self._step_correct]
        for name, shape in self._shapes.items():
            total, shares = self._step_reported.get(name, (zero.expand(shape), 0.0))
            sums += [total, zero + shares]
        parts = self.ranks.summed_on_device(torch.cat([t.reshape(-1) for t in sums]))
        parts = list(parts.split([t.numel() for t in sums]))
        self._step_loss, self._step_padding, self._step_correct = (part[0] for part in parts[:3])
        pairs = zip(self._shapes.items(), parts[3::2], parts[4::2])
        self._step_reported = {name: (total.view(shape), shares[0]) for (name, shape), total, shares in pairs}

    def end_step(self, batch: Batch, norm: Tensor, *, seconds: float, waited: float) -> None:
        """Takes the step into the sums; norm: of its gradient, before clipping."""
        self.steps += 1
        self.tokens += batch.tokens
        self.scored += batch.scored
        self.padding += batch.padding
        self.seconds += seconds
        self.waited += waited
        if not self.ranks.alone:
            self._join_ranks()
        self._norm = norm.detach()
        self._skipped = self._skipped + (~torch.isfinite(self._norm)).long()
        nats = self._step_loss * batch.scored
        finite = torch.isfinite(self._step_loss)
        self._loss.add(nats, finite, batch.scored - batch.padding)
        self._correct.add(self._step_correct, finite, batch.scored - batch.padding)
        with_pad = nats + self._step_padding * batch.scored
        self._with_pad.add(with_pad, torch.isfinite(with_pad), batch.scored)
        for name, (total, shares) in self._step_reported.items():
            if isinstance(shares, Tensor):  # of all ranks, on the device, where nothing waits for it
                value = torch.where(shares > 1 - 1e-6, total, total / shares)
                known = shares > 0
                finite = torch.isfinite(value) & known
            else:
                value = total if shares > 1 - 1e-6 else total / shares  # not all micro-batches need report it
                finite, known = torch.isfinite(value), True
            self._reported.setdefault(name, _Mean(value)).add(value, finite, known=known)

    def pop(self) -> dict:
        """The means since the last call, as Python numbers; waits for the device.

        `grad_norm` is the last step's.
        """
        means = {MODEL + name: mean for name, mean in self._reported.items()}
        if self.scored > self.padding:
            means |= {'loss': self._loss, 'accuracy': self._correct}
        if self.padding:
            means['loss_with_pad'] = self._with_pad
        popped = {name: mean.pop() for name, mean in means.items()}
        record = {
            'steps': self.steps,
            'loss': None,
            'accuracy': None,
            'grad_norm': self._norm.item(),
            'skipped': self._skipped.item(),
            'scored': self.scored,
            'tokens': self.tokens,
            'tokens_per_second': self.tokens / self.seconds if self.seconds else None,
            'data_wait': self.waited / self.seconds if self.seconds else 0.0,
        }
        record |= {name: mean for name, (mean, _) in popped.items()}
        if left_out := {name: n for name, (_, n) in popped.items() if n}:
            record['not_finite'] = left_out
        self._clear()
        return record
