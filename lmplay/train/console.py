"""What a person sees of a run: a progress bar in a terminal, plain lines elsewhere."""

import os
import sys
import time

from tqdm import tqdm

from ..base.base_model import LMBase
from ..cli import count, duration, plain, plain_line
from ..device import Compute
from .length import StageLength
from .optimizer import assignments
from .plan import Stage
from .resolve import ResolvedStage
from .state import TrainState

SECONDS_BETWEEN_LINES = 10.0


class ConsoleReporter:
    """Shows a run on `out` (standard error). quiet: shows nothing."""

    def __init__(self, out=None, *, quiet: bool = False):
        self.out = out or sys.stderr
        self.quiet = quiet
        self.bar: tqdm | None = None
        self.last_line = 0.0

    def line(self, text: str) -> None:
        if self.quiet:
            return
        text = plain(text)
        if self.bar is not None:
            self.bar.write(text, file=self.out)
        else:
            print(text, file=self.out, flush=True)

    def urgent(self, text: str) -> bool:
        """`line`, for signal handlers: past the buffers, which may be in use. False where that can't be."""
        if self.quiet:
            return True
        try:
            os.write(self.out.fileno(), f'\n{plain(text)}\n'.encode())
        except (OSError, ValueError):  # not a file, or closed
            return False
        return True

    def stage(
        self,
        stage: ResolvedStage,
        model: LMBase,
        length: StageLength,
        state: TrainState,
        compute: Compute,
        time_left: str = '',
    ) -> None:
        """A stage begins."""
        told = stage.settings
        data = told.dataset or ', '.join(f'{name} {share:g}' for name, share in told.datasets.items())
        self.line(
            f'Stage "{stage.name}": {model.name} on {data}, {length} of {stage.row_length} tokens in steps '
            f'of {told.batch_size}; {told.optimizer}, lr {told.lr:g} {told.schedule}; {compute}{time_left}.'
        )
        if not self.quiet and self.out.isatty():
            self.close()
            done, total, unit = length.done(state)
            self.bar = tqdm(
                total=total,
                initial=done,
                desc=plain_line(stage.name),
                unit=unit,
                file=self.out,
                dynamic_ncols=True,
                mininterval=0.5,
            )

    def train(self, record: dict, state: TrainState, length: StageLength) -> None:
        """A point of the training curve."""
        done, total, _ = length.done(state)
        if self.bar is not None:
            self.bar.set_postfix_str(_figures(record, state), refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or done >= total:
            self.last_line = time.monotonic()
            left = duration(max(0.0, (total - done) * state.stage_seconds / max(1, done)))
            step = f'{record["stage"]} step {state.step:,}/{max(state.step, length.total_steps(state)):,}'
            self.line(f'{step} {_figures(record, state)} left {left}')

    def validation(self, record: dict, example: dict) -> None:
        """An evaluation, with one example as the original lmplay shows it."""
        text = (
            f'validation at {record["samples"]:,} sequences: loss {_number(record["loss"], ".4f")} accuracy '
            f'{_number(record["accuracy"], ".1%")} perplexity {_number(record["perplexity"], ".2f")} '
            f'bits/byte {_number(record["bits_per_byte"], ".4f")}'
        )
        if 'loss_with_pad' in record:
            text += f' loss with padding {record["loss_with_pad"]:.4f}'
        if len(record['domains']) > 1:
            text += ' | ' + ' '.join(
                f'{name} {_number(found["loss"], ".3f")}' for name, found in record['domains'].items()
            )
        self.line(text)
        for part in ('prompt', 'truth', 'prediction'):
            self.line(f'  {part:<10} {" ".join(example[part].split())[:160]}')

    def gradients(self, model: LMBase, stage: Stage) -> None:
        """--check-grads: how parameters are updated, and which got no gradient, or are frozen."""
        for line in assignments(model, stage):
            self.line(f'Updated by {line}')
        parameters = dict(model.named_parameters())
        frozen = [name for name, p in parameters.items() if not p.requires_grad]
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        without = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        for what, names in (('frozen', frozen), ('without a gradient', without)):
            if names:
                self.line(f'{len(names)} parameters {what}: {", ".join(names)}')
        if not without:
            self.line('Every trainable parameter gets a gradient.')

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _number(value: float | None, form: str) -> str:
    """A number, or - for the mean of nothing."""
    return '-' if value is None else format(value, form)


def _figures(record: dict, state: TrainState) -> str:
    parts = [f'loss {_number(record["loss"], ".4f")}']
    if state.validation_loss is not None:
        parts.append(f'val {state.validation_loss:.4f}')
    parts.append(f'lr {record["lr"]:.2e} |g| {record["grad_norm"]:.2f}')
    parts.append(f'{count(record["tokens_per_second"] or 0.0)} tok/s')
    if 'mfu' in record:
        parts.append(f'MFU {record["mfu"]:.0%}')
    parts.append(f'{record["memory"] / 2**30:.1f} GiB')
    if 'not_finite' in record:
        left_out = (f'{name} in {steps}' for name, steps in record['not_finite'].items())
        parts.append(f'not finite, in how many steps: {", ".join(left_out)}')
    if record['data_wait'] > 0.01:
        parts.append(f'data wait {record["data_wait"]:.0%}')
    return ' '.join(parts)
