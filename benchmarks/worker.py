"""The process of one contender: `python -m benchmarks.worker NAME OPTIONS`, started by measure.Process.

Commands come as lines of JSON on the standard input, answers go to the standard output; what a library prints
goes to the standard error.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

from .measure import MATMUL

# contender -> the module that has run_CONTENDER(meter, **options)
CONTENDERS = {
    'prepare': 'trainer',
    'ours': 'trainer',
    'overhead': 'trainer',
    'limit': 'limit',
    'nanogpt': 'references',
    'hf': 'references',
    'hf_trainer': 'references',
    'original': 'references',
    'nanogpt_program': 'programs',
    'original_program': 'programs',
    'moe': 'moe',
    'some': 'some',
    'generate': 'generate',
    'checkpoint': 'checkpoint',
    'data': 'data',
}


class Meter:
    """Counts the steps of a contender in blocks; between blocks it waits for the next command.

    A contender that is a function is given to `run`, several that take turns in one process as a dict. One
    that owns its loop calls `tick(units)` after every step.
    """

    def __init__(self, channel, device: str, dtype: str, spawned: float):
        self.channel, self.device, self.dtype, self.spawned = channel, device, dtype, spawned
        self.extra: dict = {}  # what the report says beside the standard
        self.notes: dict[str, list] = {}  # what an answer says beside the standard
        self.began: float | None = None
        self._operands = None

    def run(self, *steps, **parts) -> None:
        """A loop over `step()`, which returns the units it has done; of several,
        over the one that the command names."""
        parts = parts or {'': steps[0]}
        self._begin(list(parts))
        while True:
            self.tick(parts[self.command['part']]())

    def tick(self, units: float = 1) -> None:
        self.extra.setdefault('first_step', round(time.time() - self.spawned, 3))
        if self.began is None:  # a step before any command was asked for
            self._begin([''])
            return
        self.steps += 1
        self.units += units
        if self.steps < self.command['steps'] or time.perf_counter() - self.began < self.command['seconds']:
            return
        self.synchronize()  # what was measured may still be under way on the device
        elapsed, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu_began
        if elapsed < self.command['seconds']:
            return
        self.answer(
            {
                'steps': self.steps,
                'units': self.units,
                'seconds': elapsed,
                'cpu_seconds': cpu,
                'matmul_gflops': self._matmul(),
            }
            | self.notes
        )
        self._wait()

    def _begin(self, parts: list[str]) -> None:
        self.answer({'parts': parts})
        self._wait()

    def _wait(self) -> None:
        while True:
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            self.command = json.loads(line)
            if 'report' not in self.command:
                break
            import torch

            self.answer(
                {'peak_mb': round(self.peak_memory() / 1e6), 'threads': torch.get_num_threads(), **self.extra}
            )
        self.notes = {}
        self.steps, self.units, self.began, self.cpu_began = 0, 0, time.perf_counter(), time.process_time()

    def answer(self, what: dict) -> None:
        self.channel.write(json.dumps(what) + '\n')
        self.channel.flush()

    def synchronize(self) -> None:
        if self.device.startswith('cuda'):
            import torch

            torch.cuda.synchronize()

    def _matmul(self) -> float:
        """GFLOP/s of a fixed product, the best of three."""
        import torch

        with (
            torch.no_grad(),
            torch.autocast('cuda' if self.device.startswith('cuda') else 'cpu', enabled=False),
        ):
            if self._operands is None:
                dtype = torch.bfloat16 if self.dtype == 'bf16' else torch.float32
                m, k, n = MATMUL
                self._operands = [
                    torch.linspace(-1, 1, a * b, device=self.device).view(a, b).to(dtype)
                    for a, b in ((m, k), (k, n))
                ]
                torch.mm(*self._operands)
            best = float('inf')
            for _ in range(3):
                self.synchronize()
                began = time.perf_counter()
                torch.mm(*self._operands)
                self.synchronize()
                best = min(best, time.perf_counter() - began)
        return 2 * MATMUL[0] * MATMUL[1] * MATMUL[2] / best / 1e9

    def peak_memory(self) -> int:
        """Peak bytes: of the GPU's allocator, or resident ones of this process (VmHWM where there is one:
        what getrusage says, a process inherits from the one that started it)."""
        if self.device.startswith('cuda'):
            import torch

            return torch.cuda.max_memory_allocated()
        try:
            status = Path('/proc/self/status').read_text()
            return int(status.split('VmHWM:')[1].split()[0]) * 1024
        except (OSError, IndexError):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == 'darwin' else peak * 1024


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    meter = Meter(channel, options.get('device', 'cpu'), options.get('dtype', 'fp32'), options.pop('spawned'))
    module = importlib.import_module(f'.{CONTENDERS[name]}', __package__)
    getattr(module, f'run_{name}')(meter, **options)


if __name__ == '__main__':
    main()
