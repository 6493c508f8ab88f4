"""What a person sees of a run: a progress bar in a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


def duration(seconds: float) -> str:
    """3723 -> '1:02:03'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def count(n: float) -> str:
    """1234567 -> '1.23 M'."""
    for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if n >= size:
            return f'{n / size:.3g} {unit}'
    return f'{n:.3g}'


class View:
    """Shows a run on `out`. quiet: only warnings and the end."""

    def __init__(self, out=None, *, quiet: bool = False):
        self.out = out or sys.stderr
        self.quiet = quiet
        self.bar: tqdm | None = None
        self.last_line = 0.0

    def line(self, text: str) -> None:
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(text, file=self.out)
        else:
            print(text, file=self.out, flush=True)

    def stage(self, stage, data, model, run) -> None:
        """A stage begins."""
        p = run.progress
        share = '' if stage.mix is None else ', '.join(f'{k} {v:g}' for k, v in stage.mix.items())
        self.line(
            f'Stage "{stage.name}": {model.name} on {stage.dataset or share}: {data.extent}, '
            f'{f"{data.steps:,} " if data.steps else ""}steps of {stage.batch_size} rows; {stage.optimizer}, lr {stage.lr:g} {stage.schedule}; '
            f'{run.device}{", " + str(run.amp_dtype).removeprefix("torch.") if run.amp_dtype else ""}.'
        )
        if self.out.isatty() and not self.quiet:
            self.close()
            total, done, unit = (
                (data.samples, p.samples, 'row')
                if data.samples
                else (round(data.seconds), round(p.stage_seconds), 's')
            )
            self.bar = tqdm(
                total=total,
                initial=done,
                desc=stage.name,
                unit=unit,
                file=self.out,
                dynamic_ncols=True,
                mininterval=0.5,
            )

    def train(self, record: dict, progress, data) -> None:
        """A logging point of training."""
        speed = record['tokens_per_second'] or 0.0
        validation = '' if progress.validation_loss is None else f' val {progress.validation_loss:.4f}'
        text = (
            f'loss {record["loss"]:.4f}{validation} lr {record["lr"]:.2e} |g| {record["grad_norm"]:.2f} {count(speed)} tok/s'
            + (f' MFU {record["mfu"]:.0%}' if 'mfu' in record else '')
            + f' {record["memory"] / 2**30:.1f} GiB'
            + (f' data wait {record["data_wait"]:.0%}' if record['data_wait'] > 0.01 else '')
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(
                (progress.samples if data.samples else round(progress.stage_seconds)) - self.bar.n
            )
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or progress.step == data.steps:
            self.last_line = time.monotonic()
            rest = (
                (data.steps - progress.step) * progress.stage_seconds / progress.step
                if data.steps
                else data.seconds - progress.stage_seconds
            )
            of = f'/{data.steps:,}' if data.steps else ''
            self.line(f'{record["stage"]} step {progress.step:,}{of} {text} left {duration(max(0.0, rest))}')

    def validation(self, record: dict, example: dict) -> None:
        """An evaluation, with one example as the original lmplay shows it."""
        domains = (
            ' '.join(f'{k} {v["loss"]:.3f}' for k, v in record['domains'].items())
            if len(record['domains']) > 1
            else ''
        )
        with_pad = f' loss with padding {record["loss_with_pad"]:.4f}' if 'loss_with_pad' in record else ''
        self.line(
            f'validation at {record["samples"]:,} rows: loss {record["loss"]:.4f} accuracy {record["accuracy"]:.1%} '
            f'perplexity {record["perplexity"]:.2f} bits/byte {record["bits_per_byte"]:.4f}{with_pad}{" | " + domains if domains else ""}'
        )
        one_line = {k: ' '.join(v.split())[:160] for k, v in example.items()}
        self.line(
            f'  prompt     {one_line["prompt"]}\n  truth      {one_line["truth"]}\n  prediction {one_line["prediction"]}'
        )

    def gradients(self, model) -> None:
        """--check-grads: which parameters got no gradient, or are frozen."""
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        without = [
            n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
        ]
        for what, names in (('frozen', frozen), ('without a gradient', without)):
            if names:
                self.line(f'{len(names)} parameters {what}: {", ".join(names)}')
        if not without:
            self.line('Every trainable parameter gets a gradient.')

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
