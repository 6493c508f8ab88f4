"""How far a run is: all that resuming needs beside weights and optimizer,
since everything else follows from (seed, step)."""

import math
from dataclasses import asdict, dataclass, field


@dataclass
class TrainState:
    """`stage`, `step` and `samples` are the cursor; the others are totals of the run unless said otherwise.

    samples            training sequences of this stage so far
    tokens             real tokens trained on, padding not counted
    flops              model FLOPs spent on them
    seconds            of training, without evaluating and saving
    stage_seconds      of those, spent in this stage
    first_seconds      of those, spent in the stage's first step, which compiles and fills caches
    mini_batch_size    sequences of a forward pass; 0 until decided, then what "auto" settled on
    validation_loss    of the last evaluation, after `validated_step` steps of the run; best_loss the lowest
                       of this stage, best_saved_loss that of the weights that `best` names
    """

    __pydantic_config__ = {'extra': 'forbid'}  # where resuming checks what a checkpoint holds

    stage: int = 0
    step: int = 0
    samples: int = 0
    total_step: int = 0
    total_samples: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    stage_seconds: float = 0.0
    first_seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    mini_batch_size: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    best_loss: float | None = None
    best_is_saved: bool = False
    best_saved_loss: float | None = None
    validated_step: int | None = None
    alarm: dict = field(default_factory=lambda: {'warnings': 0})

    def __post_init__(self):
        if self.best_is_saved and self.best_saved_loss is None:  # an older checkpoint
            self.best_saved_loss = self.best_loss

    def to_dict(self) -> dict:
        return asdict(self)

    def begin_stage(self, index: int) -> None:
        """Puts the cursor at the beginning of a stage.

        Its losses start afresh: the held-out text may be another.
        """
        self.stage, self.step, self.samples, self.mini_batch_size = index, 0, 0, 0
        self.stage_seconds = self.first_seconds = 0.0
        self.validation_loss = self.best_loss = self.validated_step = None
        self.best_is_saved, self.best_saved_loss = False, None
        self.skipped_in_a_row, self.alarm = 0, {'warnings': 0}

    def advance(self, sequences: int, tokens: int, flops: float) -> None:
        """Counts the optimizer step just taken."""
        self.step += 1
        self.total_step += 1
        self.samples += sequences
        self.total_samples += sequences
        self.tokens += tokens
        self.flops += flops

    def add_seconds(self, elapsed: float) -> None:
        """Adds the time of the step just counted."""
        self.seconds += elapsed
        self.stage_seconds += elapsed
        if self.step == 1:
            self.first_seconds = elapsed

    @property
    def step_seconds(self) -> float:
        """Average seconds of a step of this stage, excluding the first; 0 until there are two."""
        return (self.stage_seconds - self.first_seconds) / (self.step - 1) if self.step > 1 else 0.0

    def count_skipped(self, skipped: int, steps: int, *, failed: int | None = None) -> None:
        """Of the last `steps` steps, `skipped` had a gradient that was not finite; `failed` of them, by
        default all, for another reason than that the loss scale was too high."""
        failed = skipped if failed is None else failed
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + failed if failed == steps else 0

    def record_validation(self, loss: float) -> None:
        self.validation_loss, self.validated_step = loss, self.total_step
        if self.best_loss is None or math.isnan(self.best_loss) or loss < self.best_loss:
            self.best_loss, self.best_is_saved = loss, False

    def take_best(self) -> bool:
        """True where the weights of now were evaluated, as better than all that were saved before; they then
        count as saved. Weights that have been trained since their evaluation are nobody's best."""
        loss, before = self.validation_loss, self.best_saved_loss
        if self.validated_step != self.total_step or loss is None or math.isnan(loss):
            return False
        if before is not None and loss >= before:
            return False
        self.best_saved_loss, self.best_is_saved = loss, loss == self.best_loss
        return True

    def where(self) -> dict:
        """The position as records give it."""
        return {'step': self.total_step, 'samples': self.total_samples, 'tokens': self.tokens}

    def spent(self) -> dict:
        """The position and what it took to get there."""
        return self.where() | {'flops': self.flops, 'seconds': round(self.seconds, 3)}
