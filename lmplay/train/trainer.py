"""The one training loop.

Everything a step depends on is a pure function of (seed, stage, step): data, learning rate, random numbers.
So the state that a run needs to resume exactly is the weights, the optimizer's state and `TrainState`.
"""

import contextlib
import logging
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..base.base_model import LMBase, StepContext
from ..base.routed import RoutedLM
from ..data.rows import Batch
from ..device import (
    Compute,
    FreedMemory,
    is_out_of_memory,
    memory_in_use,
    seed_all,
    without_cudnn_attention,
)
from ..errors import UserError
from ..runs.recorder import NoRecorder, Recorder
from .collapse import CollapseAlarm
from .console import ConsoleReporter
from .evaluate import Evaluation, Evaluator
from .length import StageLength
from .loader import Loader, micro_batches, nothing_like
from .metrics import MODEL, MetricAccumulator
from .objective import Objective
from .optimizer import clip_gradients, learning_rate, skips_by_itself
from .out_of_memory import Rehearsed, does_not_fit, forget_pass
from .parallel import Engine
from .plan import Stage
from .profiling import StepProfile
from .saving import StageCheckpoints
from .state import TrainState
from .stopping import StopSignal, StopTraining

log = logging.getLogger(__name__)
LOWEST_SCALE = 1.0  # of the loss in fp16: gradients that overflow without scaling are not calibration
MAX_SKIPPED = 20  # steps in a row without a finite gradient, after which a run stops


@dataclass
class Trainer:
    """Trains one stage from where `state` stands to its end. Afterwards `evaluation` holds the last
    evaluation.

    flops_per_token: model FLOPs of training, forward and backward.
    """

    model: LMBase
    optimizer: Any  # an Optimizer; torch's gradient scaler names its own class
    scaler: torch.amp.GradScaler
    stage: Stage
    seed: int
    loader: Loader
    length: StageLength
    state: TrainState
    engine: Engine
    evaluator: Evaluator
    compute: Compute
    flops_per_token: float
    recorder: Recorder | NoRecorder
    console: ConsoleReporter
    checkpoints: StageCheckpoints
    stop: StopSignal
    profile: StepProfile | None = None
    evaluation: Evaluation | None = field(default=None, init=False)

    def __post_init__(self):
        self.parameters: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.ranks = self.engine.ranks
        self.freed = FreedMemory()
        self.metrics = MetricAccumulator(self.compute.device, self.ranks)
        # steps since the last logging point whose gradient was not finite
        self._failed = torch.zeros((), dtype=torch.int64, device=self.compute.device)
        self.rehearsed = Rehearsed(self.ranks)

    @property
    def objective(self) -> Objective:
        return self.engine.objective

    def fit(self) -> None:
        """Runs the stage to its end. Raises StopTraining when it must end early; the caller saves."""
        state, length = self.state, self.length
        self.model.train()
        lengths_vary = self.stage.packing == 'pad'
        attention = without_cudnn_attention() if lengths_vary else contextlib.nullcontext()
        with self.loader as batches, attention, self.profile or contextlib.nullcontext():
            reached = length.reached(state)
            while not reached:
                self.stop.check()
                sequences, total_steps = length.next_sequences(state.samples), length.total_steps(state)
                lr = learning_rate(self.stage, state.step, total_steps)
                began = time.perf_counter()
                batch, waited = self._next_batch(batches, sequences, total_steps, lr)
                norm = self.train_step(batch, total_steps, lr)
                state.advance(sequences, batch.tokens, self.flops_per_token * batch.tokens)
                log_due = length.log_due(state, sequences, total_steps)
                if log_due and self.compute.device.type == 'cuda':
                    # the only place where the loop waits for the device
                    torch.cuda.synchronize(self.compute.device)
                elapsed = self._agree(time.perf_counter() - began)
                state.add_seconds(elapsed)
                self.metrics.end_step(batch, norm, seconds=elapsed, waited=waited)
                if self.profile is not None:
                    self.profile.step()
                if log_due:
                    reached, due = length.reached(state), length.due(state, sequences)
                    self.log(lr)
                    if due.validate:
                        self.validate()
                    if removed := self.checkpoints.removed():
                        raise StopTraining(f"'{removed}' was removed")
                    if due.save:
                        self.checkpoints.save()

    def _next_batch(
        self, batches: Loader, sequences: int, total_steps: int, lr: float
    ) -> tuple[Batch, float]:
        """The batch of a step, and the seconds waited for it. Of several ranks, in micro-batches that fit."""
        start, following = self.state.samples, self.length.next_sequences(self.state.samples + sequences)
        while True:
            mini_batch = self.state.mini_batch_size
            batch, waited = batches.get(start, sequences, then=following, mini_batch=mini_batch)
            sought = self.stage.mini_batch_size == 'auto' and not self.engine.sharded
            if (
                not sought
                or self.rehearsed.covers(batch, mini_batch)
                or self._rehearse(batch, total_steps, lr)
            ):
                return batch, waited

    def _rehearse(self, batch: Batch, total_steps: int, lr: float) -> bool:
        """Whether a step's passes fit on all ranks; if not, the micro-batch is now half of what it was.

        Each rank passes its share by itself and exchanges nothing: none waits for one whose pass fails.
        """
        context = StepContext(self.stage.name, self.state.step, total_steps, self.state.tokens)
        fits = self._gradient_fits(batch, context, lr, exchange=False)
        if self.ranks.largest(not fits)[0]:
            self._halve_mini_batch(batch)
            return False
        self.rehearsed.add(batch, self.state.mini_batch_size)
        return True

    def train_step(self, batch: Batch, total_steps: int, lr: float) -> Tensor:
        """One optimizer step over a batch; the gradient's norm before clipping, on the device.

        When memory runs out, halves the micro-batch and starts the step over if the plan says mini_batch_size
        "auto"; raises UserError otherwise. `before_step` may therefore run more than once for a step.
        """
        context = StepContext(self.stage.name, self.state.step, total_steps, self.state.tokens)
        with self.ranks.joined():  # a model's own sums, if any, go over all ranks
            while not self._gradient_fits(batch, context, lr):
                # of several ranks, the others wait for the pass that failed here
                self._halve_mini_batch(batch, retries=self.ranks.alone)
            if self.scaler.is_enabled():
                self.scaler.unscale_(self.optimizer)
            norm = clip_gradients(self.parameters, self.stage.clip)
            stepped = self._update(norm)
            self.rehearsed.updated = True
            tokens = context.tokens + batch.tokens
            self.model.after_step(StepContext(self.stage.name, context.step, total_steps, tokens, stepped))
        return norm

    def _agree(self, elapsed: float) -> float:
        """The seconds of a step, on its slowest rank; ranks tell of signals and of new metrics with them."""
        if self.ranks.alone:
            return elapsed
        elapsed, signal, news = self.ranks.largest(elapsed, self.stop.number or 0, self.metrics.news)
        self.stop.agree(int(signal))
        if news:
            self.metrics.learn()
        return elapsed

    def _gradient_fits(self, batch: Batch, context: StepContext, lr: float, *, exchange: bool = True) -> bool:
        """Computes the gradient; False where memory ran out.

        The failed pass, which its exception keeps alive, is gone on return.
        """
        try:
            self._compute_gradient(batch, context, lr, exchange)
            return True
        except Exception as error:  # noqa: BLE001 raised again unless memory ran out
            if not is_out_of_memory(error):
                raise
            return False

    def _compute_gradient(self, batch: Batch, context: StepContext, lr: float, exchange: bool) -> None:
        seed_all(step_seed(self.seed, self.stage.name, context.step, self.ranks.rank))
        for group in self.optimizer.param_groups:
            group['lr'] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.model.before_step(context)
        self.metrics.begin_step()
        self._finite_loss = torch.ones((), dtype=torch.bool, device=self.compute.device)
        self.forward_backward(batch, exchange=exchange)

    def _halve_mini_batch(self, batch: Batch, *, retries: bool = True) -> None:
        auto, size = self.stage.mini_batch_size == 'auto', self.state.mini_batch_size
        if not (auto and retries) or size == 1:
            raise does_not_fit(size, batch.x.shape[1], auto=auto or self.engine.sharded)
        self.state.mini_batch_size //= 2
        log.info('Out of memory: mini-batch size is now %d', self.state.mini_batch_size)
        self._release_memory()

    def _release_memory(self) -> None:
        """Drops what a failed pass left behind: gradients, and what modules keep of its graph."""
        self.optimizer.zero_grad(set_to_none=True)
        forget_pass(self.model)
        if self.compute.device.type == 'cuda':
            torch.cuda.empty_cache()

    def forward_backward(self, batch: Batch, *, exchange: bool = True) -> None:
        """Adds up the gradient of a batch, micro-batch by micro-batch. exchange: with other ranks, in the
        last one."""
        device = self.compute.device
        # The outer, disabled context keeps autocast's cast weights from one micro-batch to the next.
        keep_casts = self.compute.dtype is not None
        with torch.autocast(device.type, enabled=False) if keep_casts else contextlib.nullcontext():
            parts = self._parts(batch)
            if self.model.previews and len(parts) > 1:
                self._preview(parts)
            for part in parts:
                x, y, mask = self._on_device(part)
                share, last = part.tokens / batch.tokens, exchange and part is parts[-1]
                with self.compute.autocast():
                    # on one process, the engine calls the objective and does no more
                    micro = self.engine(x, y, mask, scored=batch.scored, tokens_share=share, last=last)
                self.scaler.scale(micro.objective).backward()
                if self.scaler.is_enabled():
                    self._finite_loss &= torch.isfinite(micro.objective.detach())
                self.metrics.add(micro, share)
                if self.compute.is_cpu:
                    self.freed.check()

    def _on_device(self, part: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and mask of a micro-batch."""
        device = self.compute.device
        x, y, lengths = (t.to(device, non_blocking=True) for t in (part.x, part.y, part.lengths))
        return x, y, torch.arange(x.shape[1], device=device) < lengths[:, None]

    def _preview(self, parts: list[Batch]) -> None:
        """Shows the model the micro-batches of the step; the random numbers are those that follow again."""
        device = self.compute.device
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            for part in parts:
                x, _, mask = self._on_device(part)
                with self.compute.autocast():
                    self.engine.preview(x, mask, empty=not part.tokens)

    def _parts(self, batch: Batch) -> list[Batch]:
        """The micro-batches of a batch; of several ranks, as many on each."""
        parts = micro_batches(batch, self.state.mini_batch_size)
        if batch.whole is not None:
            passes = self.ranks.passes(batch.whole.sequences, self.state.mini_batch_size)
            parts += [nothing_like(batch)] * (passes - len(parts))
        return parts

    def _update(self, norm: Tensor) -> bool | Tensor:
        """Raises UserError where memory runs out: half an update cannot be taken again."""
        try:
            return self._optimize(norm)
        except Exception as error:  # noqa: BLE001 raised again unless memory ran out
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f'Out of memory in the update of the weights by {self.stage.optimizer}, whose state takes '
                f'memory whatever the mini-batch size. Use a smaller model, or --optimizer sgd.'
            ) from error

    def _optimize(self, norm: Tensor) -> bool | Tensor:
        """Steps unless the gradient is not finite; whether it did, on the device where the optimizer decides
        there and nothing waits."""
        stepped: bool | Tensor = torch.isfinite(norm)
        if skips_by_itself(self.optimizer):
            self.optimizer.found_inf = (~stepped).to(torch.float32)
            self.optimizer.step()
        elif stepped := bool(stepped):
            self.optimizer.step()
        if self.scaler.is_enabled():
            # a finite loss whose scaled gradients overflow only asks for a lower scale
            self._failed = self._failed + (~self._finite_loss).long()
            self.scaler.update()
        else:
            self._failed = self._failed + (~torch.isfinite(norm)).long()
        return stepped

    def log(self, lr: float) -> None:
        """Records a point of the training curve.

        Raises StopTraining where gradients have not been finite for too long.
        """
        state, stage = self.state, self.stage
        measured = self.metrics.pop()
        failed = self._pop_failed(measured['skipped'])
        state.count_skipped(measured['skipped'], measured['steps'], failed=failed)
        state.loss = measured['loss']
        record = measured | {'stage': stage.name} | state.spent()
        record |= {'lr': lr, 'memory': memory_in_use(self.compute.device)}
        speed, peak = measured['tokens_per_second'], self.compute.peak_flops
        if peak and speed:
            record['mfu'] = self.flops_per_token * speed / peak
        self.recorder.train(record)  # a line of metrics.jsonl, one of train_stats.csv
        self.console.train(record, state, self.length)
        if failed:
            step = state.total_step
            self.event('skipped', f'step {step}: {failed} step(s) skipped, the gradient was not finite')
            if stage.on_nan == 'stop' or state.skipped_in_a_row >= MAX_SKIPPED:
                raise StopTraining(
                    f'the gradient was not finite at step {step} of stage "{stage.name}"; the weights are '
                    'those before it. A lower --lr or a longer --warmup may help'
                )

    def _pop_failed(self, skipped: int) -> int:
        """How many of the steps skipped since the last logging point failed; says what the others are."""
        failed = int(self._failed.item())
        self._failed = torch.zeros_like(self._failed)
        if not self.scaler.is_enabled() or skipped <= failed:
            return failed
        scale = self.scaler.get_scale()
        if scale < LOWEST_SCALE:
            return skipped
        self.event(
            'loss_scale',
            f'step {self.state.total_step}: {skipped - failed} step(s) skipped while the loss scale falls to '
            f'what fp16 can hold, now {scale:,.0f}',
        )
        return failed

    def evaluate(self) -> Evaluation:
        """The model on the held-out text."""
        self.evaluation = self.evaluator.evaluate(
            self.objective, sequences_per_batch=self.state.mini_batch_size, ranks=self.ranks
        )
        self.model.train()
        return self.evaluation

    def final_evaluation(self) -> Evaluation:
        """Of the weights at the stage's end; where a run was resumed there, made again,
        and recorded if it was not."""
        if self.evaluation is None and self.state.validated_step not in (None, self.state.total_step):
            self.validate()
        if self.state.validation_loss is None:
            self.validate()
        return self.evaluation or self.evaluate()

    def validate(self) -> None:
        """Evaluates, records it, and watches the load of the experts."""
        found = self.evaluate()
        self.state.record_validation(found.metrics['loss'])
        reported = {MODEL + name: value.tolist() for name, value in found.model_metrics.items()}
        # the tokens are the run's, as in a training record, not the held-out text's
        record = {'stage': self.stage.name} | found.metrics | self.state.spent() | reported
        self.recorder.validation(record)
        example = found.example(self.model.tokenizer)
        self.recorder.sample({'step': self.state.total_step} | example)
        self.console.validation(record, example)
        if 'expert_load' in found.model_metrics:
            self._watch_experts(found.model_metrics['expert_load'])

    def _watch_experts(self, load: Tensor) -> None:
        """Raises the alarm where one expert takes over; an evaluation is the alarm's window."""
        names = self.model.layer_names() if isinstance(self.model, RoutedLM) else ()
        alarm = CollapseAlarm(k=self.model.hyperparameters.get('top_k') or 1, names=names)
        alarm.load_state_dict(self.state.alarm)
        found = alarm.update(load)
        self.state.alarm = alarm.state_dict()
        if found.status == 'ok':
            return
        self.event(found.status, found.message)
        if found.status == 'collapse':
            if self.stage.on_collapse == 'stop':
                raise StopTraining(found.message)
            if self.stage.on_collapse == 'snapshot' and found.onset:
                self.checkpoints.save(link=f'collapse-{self.state.total_step}')

    def event(self, name: str, message: str) -> None:
        """Something worth a line in the records and on the screen."""
        where = {'event': name, 'stage': self.stage.name} | self.state.where()
        self.recorder.event(where | {'message': message})
        self.console.line(message)


def step_seed(seed: int, stage: str, step: int, rank: int = 0) -> int:
    """The seed of the random numbers of a step, on each rank another."""
    key = f'{seed}/{stage}/{step}' + (f'/{rank}' if rank else '')
    return zlib.crc32(key.encode()) | seed % (1 << 20) << 32
