"""The one training loop.

Everything a step depends on is a pure function of (seed, stage, step): data, learning rate, random numbers. So the state that
a run needs to go on exactly is the weights, the optimizer's state and `Progress`.
"""

import contextlib
import logging
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base.base_model import LMBase, StepContext
from ..data.mixture import Mixture
from ..data.rows import Batch
from ..device import autocast, compiling_pays, expected_seconds, measured_flops, memory_in_use
from ..errors import UserError
from ..modules.matmul import speed_up_linears
from .collapse import CollapseAlarm
from .evaluate import Evaluation, evaluate
from .objective import fuses_head, micro_loss
from .optimizer import clip_gradients, learning_rate
from .plan import Stage
from .stage_data import EVALUATIONS

if TYPE_CHECKING:
    from .stage_data import StageData
    from .stages import Run

log = logging.getLogger(__name__)
LOG_EVERY = {
    'cpu': 1
}  # steps between logging points; elsewhere 10, because reading a number waits for the device
MAX_SKIPPED = 20  # steps in a row without a finite gradient, after which a run stops


@dataclass
class Progress:
    """How far a run is. `stage`, `step` and `samples` are the cursor; the others are totals of the run."""

    stage: int = 0
    step: int = 0
    samples: int = 0
    total_step: int = 0
    total_samples: int = 0
    tokens: int = 0  # real tokens trained on
    flops: float = 0.0  # model FLOPs spent on them
    seconds: float = 0.0  # of training, without evaluation and saving
    stage_seconds: float = 0.0  # of them in this stage
    first_seconds: float = 0.0  # of them in its first step, which takes longer: it compiles, and fills caches
    skipped: int = 0
    skipped_in_a_row: int = 0
    mini_batch_size: int = 0  # 0: not decided yet; what 'auto' settled on
    loss: float | None = None
    validation_loss: float | None = None
    best_loss: float | None = None
    best_is_saved: bool = False
    alarm: dict = field(default_factory=lambda: {'warnings': 0})

    def to_dict(self) -> dict:
        return asdict(self)


class StopTraining(Exception):
    """The run ends here, its state saved; the reason is the message."""


class Trainer:
    """Trains one stage from where `progress` stands to its end."""

    def __init__(self, run: 'Run', model: LMBase, optimizer, stage: Stage, data: 'StageData'):
        self.run, self.model, self.optimizer, self.stage, self.data = run, model, optimizer, stage, data
        self.device, self.dtype = run.device, run.amp_dtype
        self.progress: Progress = run.progress
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        if self.device.type == 'cpu' and self.dtype is None:
            speed_up_linears(model)
        self.eager: Callable = getattr(model, 'features') if fuses_head(model) else model  # noqa: B009
        self.forward = self.eager
        self.flops_per_token = run.flops_per_token(data.row_length)
        seconds = data.seconds
        if data.samples is not None:
            seconds = expected_seconds(
                self.device, self.flops_per_token * data.samples * data.mixture.tokens_per_row
            )
        else:  # how many steps that may be, until their time is known: at half the speed of a matrix product
            per_step = self.flops_per_token * stage.batch_size * data.mixture.tokens_per_row
            self.guess = max(2, round(seconds * 0.5 * measured_flops(self.device, self.dtype) / per_step))
        wanted = run.settings.compile_model
        if compiling_pays(self.device, seconds) if wanted is None else wanted:
            self.forward = torch.compile(self.forward, dynamic=False if stage.packing == 'pack' else None)
        if not self.progress.mini_batch_size:
            auto = stage.mini_batch_size == 'auto'
            self.progress.mini_batch_size = (
                self._largest_mini_batch() if auto else min(int(stage.mini_batch_size), stage.batch_size)
            )
        self.log_every = LOG_EVERY.get(self.device.type, 10)
        self.window = Window(self.device)

    def _largest_mini_batch(self) -> int:
        """Where 'auto' begins: the whole batch on a GPU, halved when memory runs out; on a CPU about 4,096 tokens."""
        return (
            self.stage.batch_size
            if self.device.type != 'cpu'
            else max(1, min(self.stage.batch_size, 4096 // self.data.row_length))
        )

    @property
    def step_seconds(self) -> float:
        """Seconds that a step of this stage takes in the mean, its first left out."""
        p = self.progress
        return (p.stage_seconds - p.first_seconds) / (p.step - 1) if p.step > 1 else 0.0

    @property
    def total_steps(self) -> int:
        """The stage's number of steps; where it trains for so many seconds, as many as by now they seem to allow."""
        p, data = self.progress, self.data
        if data.steps is not None:
            return data.steps
        return (
            p.step + max(1, round((data.seconds - p.stage_seconds) / self.step_seconds))
            if self.step_seconds
            else self.guess
        )

    @property
    def ended(self) -> bool:
        """Whether the stage is as long as it should be; one of so many seconds to within half a step."""
        p, data = self.progress, self.data
        return (
            p.step >= data.steps
            if data.steps is not None
            else p.step > 0 and p.stage_seconds + self.step_seconds / 2 >= data.seconds
        )

    def _due(self, interval: int | None, count: int, clock: float) -> bool:
        """Whether the last `count` samples crossed a multiple of the interval; without one, the time since `clock` of the stage's."""
        p = self.progress
        if interval is not None:
            return p.samples // interval > (p.samples - count) // interval
        share = self.data.seconds / EVALUATIONS
        return p.stage_seconds // share > clock // share

    def train(self) -> None:
        """Runs the stage. Raises StopTraining when it must end early; its caller saves."""
        p, data, stage, run = self.progress, self.data, self.stage, self.run
        intervals = data.validation_interval, data.save_interval
        self.model.train()
        with Prefetcher(data.mixture, pin=self.device.type == 'cuda') as batches:
            ended, clock = self.ended, p.stage_seconds
            while not ended:
                if run.stop_signal:
                    raise StopTraining('interrupted')
                left = data.samples - p.samples if data.samples is not None else 2 * stage.batch_size
                count = min(stage.batch_size, left)
                steps = self.total_steps
                began = time.perf_counter()
                batch, waited = batches.get(p.samples, count, then=min(stage.batch_size, left - count))
                ctx = StepContext(stage.name, p.step, steps, p.tokens)
                lr = learning_rate(stage, p.step, steps)
                norm = self.train_step(batch, ctx, lr)
                self.window.count(batch, norm, waited)
                p.step, p.total_step = p.step + 1, p.total_step + 1
                p.samples, p.total_samples = p.samples + count, p.total_samples + count
                p.tokens += batch.tokens
                p.flops += self.flops_per_token * batch.tokens
                last = steps - p.step <= (
                    self.log_every if data.seconds else 0
                )  # the clock is right where the device was waited for
                log_now = (
                    last
                    or p.step % self.log_every == 0
                    or any(i and self._due(i, count, clock) for i in intervals)
                )
                if log_now and self.device.type == 'cuda':
                    torch.cuda.synchronize(self.device)  # the only place where the loop waits for the device
                elapsed = time.perf_counter() - began
                self.window.seconds += elapsed
                p.seconds, p.stage_seconds = p.seconds + elapsed, p.stage_seconds + elapsed
                if p.step == 1:
                    p.first_seconds = elapsed
                if log_now:
                    ended = self.ended
                    validate, save = (ended or self._due(i, count, clock) for i in intervals)
                    clock = p.stage_seconds
                    self._log(lr)
                    if validate:
                        self._validate()
                    if save:
                        run.save(self.model, self.optimizer, self.scaler)

    def train_step(self, batch: Batch, ctx: StepContext, lr: float) -> Tensor:
        """One optimizer step over a batch, micro-batch by micro-batch; returns the gradient's norm, on the device.

        Halves the micro-batch and begins the step anew when memory runs out, if the plan says mini_batch_size "auto".
        """
        while True:
            try:
                return self._train_step(batch, ctx, lr)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if self.stage.mini_batch_size != 'auto' or self.progress.mini_batch_size == 1:
                    raise UserError(
                        f'Out of memory at mini-batch size {self.progress.mini_batch_size} x {self.data.row_length} tokens. '
                        f'Use --mini-batch-size auto, a smaller one, a shorter --row-length, or --amp.'
                    ) from error
            self.progress.mini_batch_size = max(1, self.progress.mini_batch_size // 2)
            log.info('Out of memory: mini-batch size is now %d', self.progress.mini_batch_size)
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()

    def _train_step(self, batch: Batch, ctx: StepContext, lr: float) -> Tensor:
        torch.manual_seed(step_seed(self.run.seed, self.stage.name, ctx.step))
        for group in self.optimizer.param_groups:
            group['lr'] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.model.before_step(ctx)
        self.window.begin_step()
        # The outer, disabled context keeps autocast's cast weights from one micro-batch to the next.
        with torch.autocast(self.device.type, enabled=False) if self.dtype else contextlib.nullcontext():
            for part in micro_batches(batch, self.progress.mini_batch_size):
                x, y, lengths = (t.to(self.device, non_blocking=True) for t in (part.x, part.y, part.lengths))
                mask = torch.arange(x.shape[1], device=self.device) < lengths[:, None]
                share = part.tokens / batch.tokens
                with autocast(self.device, self.dtype):
                    micro = micro_loss(
                        self.model, self.forward, x, y, mask, scored=batch.scored, tokens_share=share
                    )
                self.scaler.scale(micro.objective).backward()
                self.window.add(micro, share)
        self.scaler.unscale_(self.optimizer) if self.scaler.is_enabled() else None
        norm = clip_gradients(self.parameters, self.stage.clip)
        stepped = self._optimize(norm)
        self.model.after_step(
            StepContext(ctx.stage, ctx.step, ctx.total_steps, ctx.tokens + batch.tokens, stepped)
        )
        return norm

    def _optimize(self, norm: Tensor):
        """Steps unless the gradient is not finite; True or False, or a tensor of that where the device decides by itself."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return bool(torch.isfinite(norm))
        if getattr(self.optimizer, '_step_supports_amp_scaling', False):
            self.optimizer.found_inf = (~torch.isfinite(norm)).to(
                torch.float32
            )  # the fused kernel skips by itself, without our waiting
            self.optimizer.step()
            return torch.isfinite(norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            return True
        return False

    def _log(self, lr: float) -> None:
        p, window = self.progress, self.window
        record = window.read()
        p.skipped += record['skipped']
        p.skipped_in_a_row = (
            p.skipped_in_a_row + record['skipped'] if record['skipped'] == record['steps'] else 0
        )
        p.loss = record['loss']
        speed = record['tokens'] / window.seconds if window.seconds else None
        peak = self.run.peak_flops
        record |= {
            'stage': self.stage.name,
            'step': p.total_step,
            'samples': p.total_samples,
            'tokens': p.tokens,
            'flops': p.flops,
            'seconds': round(p.seconds, 3),
            'lr': lr,
            'tokens_per_second': speed,
            'memory': memory_in_use(self.device),
        }
        if peak and speed:
            record['mfu'] = self.flops_per_token * speed / peak
        record['data_wait'] = window.waited / window.seconds if window.seconds else 0.0
        self.run.recorder.train(record)
        self.run.view.train(record, p, self.data)
        self.window = Window(self.device)
        if record['skipped']:
            self.run.event(
                'skipped',
                f'step {p.total_step}: {record["skipped"]} step(s) skipped, the gradient was not finite',
            )
            if self.stage.on_nan == 'stop' or p.skipped_in_a_row >= MAX_SKIPPED:
                raise StopTraining(
                    f'the gradient was not finite at step {p.total_step} of stage "{self.stage.name}"; the weights are those '
                    f'before it. A lower --lr or a longer --warmup may help'
                )

    def _watch_experts(self, load: Tensor) -> None:
        """Raises the alarm where one expert takes over; an evaluation is the alarm's window."""
        alarm = CollapseAlarm()
        alarm.load_state_dict(self.progress.alarm)
        found = alarm.update(load)
        self.progress.alarm = alarm.state_dict()
        if found.status == 'ok':
            return
        self.run.event(found.status, found.message)
        if found.status == 'collapse':
            if self.stage.on_collapse == 'stop':
                raise StopTraining(found.message)
            if self.stage.on_collapse == 'snapshot':
                self.run.save(
                    self.model, self.optimizer, self.scaler, link=f'collapse-{self.progress.total_step}'
                )

    def evaluate(self) -> Evaluation:
        """The model over the held-out rows; kept as the run's latest."""
        self.run.evaluation = evaluate(
            self.model,
            self.data.held_out,
            forward=self.eager,
            device=self.device,
            dtype=self.dtype,
            rows_per_batch=self.progress.mini_batch_size,
            pad_token=self.data.padding_scored,
        )
        self.model.train()
        return self.run.evaluation

    def _validate(self) -> None:
        p, run, result = self.progress, self.run, self.evaluate()
        p.validation_loss = loss = result.metrics['loss']
        if p.best_loss is None or loss < p.best_loss:
            p.best_loss, p.best_is_saved = loss, False
        record = (
            {
                'stage': self.stage.name,
                'step': p.total_step,
                'samples': p.total_samples,
                'tokens': p.tokens,
                'flops': p.flops,
                'seconds': round(p.seconds, 3),
            }
            | result.metrics
            | {k: v.tolist() for k, v in result.model_metrics.items()}
        )
        record['tokens'] = p.tokens  # of the run, as in a training record, not of the held-out text
        run.recorder.validation(record)
        example = result.example(self.model.tokenizer)
        run.recorder.sample({'step': p.total_step} | example)
        run.view.validation(record, example)
        if 'expert_load' in result.model_metrics:
            self._watch_experts(result.model_metrics['expert_load'])


class Window:
    """Sums since the last logging point, kept on the device so that a step need not wait for them."""

    def __init__(self, device: torch.device):
        self.device = device
        self.steps = self.tokens = self.scored = 0
        self.seconds = self.waited = 0.0
        self.loss_sum = torch.zeros((), device=device)
        self.correct = self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.norm = self.loss_sum
        self.named: dict[str, Tensor] = {}

    def begin_step(self) -> None:
        """Forgets a step that is begun anew after running out of memory."""
        self._step = {
            'loss': torch.zeros((), device=self.device),
            'correct': torch.zeros((), dtype=torch.int64, device=self.device),
        }
        self._named: dict[str, Tensor] = {}

    def add(self, micro, share: float) -> None:
        self._step['loss'] += micro.loss.float()
        self._step['correct'] += micro.correct
        for name, value in [
            *((n, v) for n, (v, _) in micro.output.losses.items()),
            *micro.output.metrics.items(),
        ]:
            value = value.detach().float() * share
            self._named[name] = self._named[name] + value if name in self._named else value

    def count(self, batch: Batch, norm: Tensor, waited: float) -> None:
        """Takes the step just done into the sums."""
        self.steps += 1
        self.tokens += batch.tokens
        self.scored += batch.scored
        self.waited += waited
        self.norm = norm.detach()
        skipped = (~torch.isfinite(self.norm)).long()
        self.loss_sum = self.loss_sum + self._step['loss'] * batch.scored
        self.correct = self.correct + self._step['correct']
        self.skipped = self.skipped + skipped
        for name, value in self._named.items():
            self.named[name] = self.named[name] + value if name in self.named else value

    def read(self) -> dict:
        """The means as Python numbers. Waits for the device."""
        scored = max(1, self.scored)
        record = {
            'steps': self.steps,
            'loss': self.loss_sum.item() / scored,
            'accuracy': self.correct.item() / scored,
            'grad_norm': self.norm.item(),
            'skipped': self.skipped.item(),
            'scored': self.scored,
        }
        tokens = {'tokens': self.tokens}
        return record | tokens | {name: (value / self.steps).tolist() for name, value in self.named.items()}


def step_seed(seed: int, stage: str, step: int) -> int:
    """The seed of the random numbers of a step."""
    return zlib.crc32(f'{seed}/{stage}/{step}'.encode()) | seed % (1 << 20) << 32


def micro_batches(batch: Batch, rows: int):
    """Cuts a batch into parts of at most `rows` rows."""
    for start in range(0, len(batch), rows):
        part = slice(start, start + rows)
        yield Batch(batch.x[part], batch.y[part], batch.lengths[part], 0)


class Prefetcher:
    """Makes the next batch in a thread while this one is trained on."""

    def __init__(self, mixture: Mixture, *, pin: bool):
        self.mixture, self.pin = mixture, pin
        self.pool = ThreadPoolExecutor(1, 'data')
        self.next: tuple | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, start: int, count: int) -> Batch:
        batch = self.mixture.batch(start, count)
        return batch.pin() if self.pin else batch

    def get(self, start: int, count: int, *, then: int) -> tuple[Batch, float]:
        """(samples start to start + count, seconds waited); begins on the `then` samples that follow."""
        began = time.perf_counter()
        if self.next is None or self.next[0] != (start, count):
            self.next = ((start, count), self.pool.submit(self._make, start, count))
        batch = self.next[1].result()
        waited = time.perf_counter() - began
        key = (start + count, then)
        self.next = (key, self.pool.submit(self._make, *key)) if then > 0 else None
        return batch, waited
