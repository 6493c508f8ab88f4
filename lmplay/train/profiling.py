"""--profile: where the time of a step goes, as a trace and a table in the run's directory."""

from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from ..device import Compute
from ..files import new_folder, write_text

BEFORE = 2  # steps that are not recorded: the first is not like others, the second warms the profiler up
SHOWN, LISTED = 10, 50  # operations told, and in the table


class StepProfile:
    """Records so many steps of training into `folder`: trace.json.gz, for https://ui.perfetto.dev, and
    table.txt, the costliest operations.

    A context manager around the steps; `step` ends one. tell: receives what was found.
    """

    def __init__(self, steps: int, folder: Path, compute: Compute, tell: Callable[[str], None]):
        self.steps, self.folder, self.tell = steps, folder, tell
        self.on_gpu = compute.device.type == 'cuda'
        self.seen = 0
        self._profile = profile(
            activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.on_gpu,
            schedule=schedule(wait=BEFORE - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )

    def __enter__(self) -> 'StepProfile':
        self._profile.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._profile.__exit__(*error)
        if self.seen <= BEFORE and error[0] is None:
            self.tell(f'Nothing was profiled: the first {BEFORE} steps are not, and the stage has no more.')

    def step(self) -> None:
        self.seen += 1
        self._profile.step()

    def _write(self, recorded: profile) -> None:
        steps = min(self.seen - BEFORE, self.steps)
        if steps < 1:
            return
        averages = recorded.key_averages()
        column = 'self_device_time_total' if self.on_gpu else 'self_cpu_time_total'
        with new_folder(self.folder, replace=True) as folder:
            recorded.export_chrome_trace(str(folder / 'trace.json.gz'))
            write_text(folder / 'table.txt', averages.table(sort_by=column, row_limit=LISTED))
        self.tell(self._told([(e.key, getattr(e, column), e.count) for e in averages], steps))

    def _told(self, operations: list[tuple[str, float, int]], steps: int) -> str:
        """operations: name, microseconds, calls."""
        operations = [o for o in operations if not o[0].startswith('ProfilerStep')]
        whole = sum(time for _, time, _ in operations) or 1.0
        costliest = sorted(operations, key=lambda o: -o[1])[:SHOWN]
        lines = [f'Profile of {steps} steps, {"on the GPU" if self.on_gpu else "on the CPU"}:']
        lines += [
            f'  {time / whole:6.1%} {time / 1000 / steps:9.2f} ms a step {count // steps:6} calls {name[:60]}'
            for name, time, count in costliest
        ]
        return '\n'.join([*lines, f'Trace, for https://ui.perfetto.dev, and table: {self.folder}'])
