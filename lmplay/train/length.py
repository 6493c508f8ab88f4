"""How long a stage trains, and what is due on the way. One class for each kind of length."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.mixture import Mixture
from .plan import Stage
from .state import TrainState

EVALUATIONS = 20  # of a stage that names no interval


class Due(NamedTuple):
    validate: bool
    save: bool


@dataclass
class StageLength(ABC):
    """batch_size: sequences of a step; log_every: steps between logging points,
    at which the device is waited for."""

    batch_size: int
    log_every: int

    @abstractmethod
    def reached(self, state: TrainState) -> bool:
        """Whether the stage is over."""

    @abstractmethod
    def total_steps(self, state: TrainState) -> int:
        """The stage's number of optimizer steps, as far as can be said now."""

    @abstractmethod
    def next_sequences(self, samples: int) -> int:
        """How many sequences the step takes that begins after `samples` of them; 0 where there is none."""

    @abstractmethod
    def log_due(self, state: TrainState, sequences: int, total_steps: int) -> bool:
        """Whether the step just counted, of so many sequences, ends at a logging point."""

    @abstractmethod
    def due(self, state: TrainState, sequences: int) -> Due:
        """What else is due at a logging point."""

    @abstractmethod
    def done(self, state: TrainState) -> tuple[int, int, str]:
        """(done, in all, unit) for a progress bar."""


def crossed(interval: int, samples: int, sequences: int) -> bool:
    """Whether the last `sequences` of `samples` crossed a multiple of the interval."""
    return samples // interval > (samples - sequences) // interval


@dataclass
class SampleLength(StageLength):
    """A number of sequences, and intervals counted in them."""

    samples: int
    validation_interval: int
    save_interval: int

    @property
    def steps(self) -> int:
        return -(-self.samples // self.batch_size)

    def reached(self, state: TrainState) -> bool:
        return state.samples >= self.samples

    def total_steps(self, state: TrainState) -> int:
        return self.steps

    def next_sequences(self, samples: int) -> int:
        return max(0, min(self.batch_size, self.samples - samples))

    def log_due(self, state: TrainState, sequences: int, total_steps: int) -> bool:
        regular = self.reached(state) or state.step % self.log_every == 0
        return regular or any(self.due(state, sequences))

    def due(self, state: TrainState, sequences: int) -> Due:
        intervals = self.validation_interval, self.save_interval
        return Due(*(self.reached(state) or crossed(i, state.samples, sequences) for i in intervals))

    def done(self, state: TrainState) -> tuple[int, int, str]:
        return state.samples, self.samples, 'seq'

    def __str__(self) -> str:
        return f'{self.samples:,} sequences'


@dataclass
class TimeLength(StageLength):
    """Seconds of training; an interval of None means EVALUATIONS times in all.

    first_guess: how many steps that may be, until two of them have been timed.
    """

    seconds: float
    validation_interval: int | None
    save_interval: int | None
    first_guess: int
    _last_due: float = field(default=0.0, repr=False)  # stage_seconds at the last logging point

    def reached(self, state: TrainState) -> bool:
        """To within half a step."""
        return state.step > 0 and state.stage_seconds + state.step_seconds / 2 >= self.seconds

    def total_steps(self, state: TrainState) -> int:
        if not state.step_seconds:
            return self.first_guess
        return state.step + max(1, round((self.seconds - state.stage_seconds) / state.step_seconds))

    def next_sequences(self, samples: int) -> int:
        return self.batch_size

    def log_due(self, state: TrainState, sequences: int, total_steps: int) -> bool:
        """Near the end at every step, since the clock is right only where the device was waited for."""
        near_end = total_steps - state.step <= self.log_every
        intervals = [i for i in (self.validation_interval, self.save_interval) if i is not None]
        due = any(crossed(i, state.samples, sequences) for i in intervals)
        return near_end or due or state.step % self.log_every == 0

    def due(self, state: TrainState, sequences: int) -> Due:
        share = self.seconds / EVALUATIONS
        by_time = state.stage_seconds // share > self._last_due // share
        self._last_due = state.stage_seconds

        def one(interval: int | None) -> bool:
            due = by_time if interval is None else crossed(interval, state.samples, sequences)
            return due or self.reached(state)

        return Due(one(self.validation_interval), one(self.save_interval))

    def done(self, state: TrainState) -> tuple[int, int, str]:
        return round(state.stage_seconds), round(self.seconds), 's'

    def __str__(self) -> str:
        return f'{self.seconds:g} s'


def stage_length(
    stage: Stage, mixture: Mixture, *, log_every: int = 1, first_guess: int = 2, elapsed: float = 0.0
) -> SampleLength | TimeLength:
    """The length of a stage on its data. first_guess, elapsed: of stages in seconds, see TimeLength."""
    if stage.seconds is not None:
        save = stage.save_interval or stage.validation_interval
        timed = (stage.seconds, stage.validation_interval, save, first_guess, elapsed)
        return TimeLength(stage.batch_size, log_every, *timed)
    if stage.steps is not None:
        samples = stage.steps * stage.batch_size
    elif stage.tokens is not None:
        samples = max(1, round(stage.tokens / mixture.tokens_per_row))
    else:
        samples = max(1, round((stage.epochs or 1) * mixture.epoch_samples))
    if stage.drop_last:
        samples = max(stage.batch_size, samples - samples % stage.batch_size)
    validation = stage.validation_interval or max(stage.batch_size, -(-samples // EVALUATIONS))
    return SampleLength(stage.batch_size, log_every, samples, validation, stage.save_interval or validation)
