"""Interleaved measurement: every contender is a process of its own, all are alive, and they run A B C A B C
in short blocks.

A block is as many steps as fit into some seconds, and beside each block the same process times a fixed matrix
product, the reference for a machine whose speed drifts.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MATMUL = (1024, 1024, 1024)  # of the reference product
VOCAB = 50257  # of GPT-2


class BenchmarkError(Exception):
    """A contender failed; the message says which and how."""


class Process:
    """A contender in a process of its own: `python -m benchmarks.worker NAME OPTIONS`.

    threads: None leaves that to the program, as a user does who sets no variable; else OMP_NUM_THREADS is
    set.
    """

    def __init__(self, name: str, options: dict, *, threads: int | None = None):
        self.name, self.options = name, options
        environment = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        if threads is not None:
            environment['OMP_NUM_THREADS'] = str(threads)
        self.errors = tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace')  # noqa: SIM115  closed in close()
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.worker', name, json.dumps(options | {'spawned': time.time()})],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.parts: list[str] = []  # what takes turns in this process; [''] where there is only one
        self.samples: dict[str, list[dict]] = {}  # part -> its blocks
        self.report: dict = {}

    def send(self, **command) -> None:
        with contextlib.suppress(BrokenPipeError):  # `receive` tells why
            self.process.stdin.write(json.dumps(command) + '\n')
            self.process.stdin.flush()

    def receive(self) -> dict:
        """What the contender answers to a command. Raises BenchmarkError where it has died instead."""
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = [text for text in self.errors.read().splitlines() if text.strip()][-8:]
            raise BenchmarkError(
                f'{self.name} {self.options} ended with code {self.process.returncode}:\n  '
                + '\n  '.join(last)
            )
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def by_turns(
    contenders: list[tuple[str, dict]], args, *, threads: int | None = None, together: bool = True
) -> list[Process]:
    """Runs (name, options) contenders in turn, `args.rounds` blocks of `args.seconds` each; returns them with
    samples and report.

    All are started and warmed up before the first block. Not `together`: each is restarted for each of its
    blocks, where there is no memory for all. One that fails is told, noted in `args.failures`, and left out.
    """
    if not together:
        merged: dict[int, Process] = {}
        for number in range(args.rounds):
            for i, contender in enumerate(contenders):
                for process in _alive_by_turns([contender], args, rounds=1, threads=threads):
                    first = merged.setdefault(i, process)
                    if first is not process:
                        for part, samples in process.samples.items():
                            first.samples[part] += samples
            args.tell(f'round {number + 1} of {args.rounds}')
        return list(merged.values())
    return _alive_by_turns(contenders, args, rounds=args.rounds, threads=threads)


def _alive_by_turns(
    contenders: list[tuple[str, dict]], args, *, rounds: int, threads: int | None
) -> list[Process]:
    started = [Process(name, options, threads=threads) for name, options in contenders]
    alive = list(started)

    def attempt(process: Process, ask):
        try:
            return ask()
        except BenchmarkError as error:
            args.failures.append(str(error))
            args.tell(str(error))
            alive.remove(process)

    try:
        for process in started:
            _meet(process, attempt)
        for process in list(alive):  # one after another, or all would be at their peak of memory together
            _sample(process, attempt, keep=False, seconds=0, steps=1 if args.quick else 2)
        for number in range(rounds):
            for process in list(alive):
                _sample(process, attempt, keep=True, seconds=args.seconds, steps=1)
            if rounds > 1:
                args.tell(f'round {number + 1} of {rounds}')
        for process in list(alive):
            process.send(report=True)
            process.report = attempt(process, process.receive) or {}
        return alive
    finally:
        for process in started:
            process.close()


def _meet(process: Process, attempt) -> None:
    """Learns of a process which parts it has."""
    if (first := attempt(process, process.receive)) is not None:
        process.parts = first['parts']
        process.samples = {part: [] for part in process.parts}


def _sample(process: Process, attempt, *, keep: bool, seconds: float, steps: int) -> None:
    """Lets a process run each of its parts once, until one fails."""
    for part in process.parts:
        process.send(part=part, seconds=seconds, steps=steps)
        if (sample := attempt(process, process.receive)) is None:
            return
        if keep:
            process.samples[part].append(sample)


def rows_by_part(name: str, options: dict, args, figures, *, threads: int | None, **columns) -> list[dict]:
    """A row per part of one process in which they take turns: `figures(samples)` and the columns."""
    rows = []
    for process in by_turns([(name, options)], args, threads=threads):
        rows += [
            {'name': part, **columns, **figures(samples), 'threads': process.report['threads']}
            for part, samples in process.samples.items()
        ]
    return rows


def summary(values: list[float], name: str, *, digits: int = 1) -> dict:
    """Median and range: {name, name_min, name_max}."""
    return {
        name: round(statistics.median(values), digits),
        f'{name}_min': round(min(values), digits),
        f'{name}_max': round(max(values), digits),
    }


def speeds(samples: list[dict], name: str, *, digits: int = 1) -> dict:
    """Units per second over blocks, per second of CPU time too (all threads together; steadier where a
    machine is shared), and the reference product's GFLOP/s beside them."""
    return (
        summary([s['units'] / s['seconds'] for s in samples], name, digits=digits)
        | {
            name.replace('_per_', '_per_cpu_'): round(
                statistics.median(s['units'] / s['cpu_seconds'] for s in samples), digits
            )
        }
        | summary([s['matmul_gflops'] for s in samples], 'matmul_gflops')
    )


def milliseconds(samples: list[dict]) -> dict:
    """Time per step over blocks, CPU time too, and the reference product's GFLOP/s beside them."""
    return (
        summary([s['seconds'] / s['steps'] * 1e3 for s in samples], 'ms', digits=3)
        | {'cpu_ms': round(statistics.median(s['cpu_seconds'] / s['steps'] * 1e3 for s in samples), 3)}
        | summary([s['matmul_gflops'] for s in samples], 'matmul_gflops')
    )


def shape_of(shape: str) -> dict:
    """'6x768' -> layers, dim, heads (of 64)."""
    layers, dim = map(int, shape.split('x'))
    return {'layers': layers, 'dim': dim, 'heads': max(1, dim // 64)}


def environment() -> dict:
    """Machine, versions, commit and load; every row carries it."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        cpu = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), cpu)
    from importlib.metadata import version

    git = ['git', '-C', str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, 'status', '--porcelain', 'lmplay'], capture_output=True, text=True, check=True
        ).stdout
        commit += ' with changes' if changed else ''
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        'cpu': cpu,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'platform': platform.platform(),
        'python': platform.python_version(),
        'torch': version('torch'),
        'transformers': version('transformers'),
        'commit': commit,
        'load': [round(v, 2) for v in os.getloadavg()],
        'time': time.strftime('%Y-%m-%d %H:%M:%S'),
    }
