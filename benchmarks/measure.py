"""Measuring by turns: every contender is a process of its own, all are alive, and they run A B C A B C in short blocks.

A block is as many steps as fit into some seconds, and beside each block the same process times a fixed matrix product, the
reference for a machine whose speed drifts.
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
MATMUL = (1024, 1024, 1024)     # of the reference product
VOCAB = 50257                   # of GPT-2


class BenchmarkError(Exception):
    """A contender failed; the message says which and how."""


class Process:
    """A contender in a process of its own: `python -m benchmarks.worker NAME OPTIONS`.

    threads: None leaves that to the program, as a user does who sets no variable; else OMP_NUM_THREADS is set.
    """

    def __init__(self, name: str, options: dict, *, threads: int | None = None):
        self.name, self.options = name, options
        environment = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        if threads is not None:
            environment['OMP_NUM_THREADS'] = str(threads)
        self.errors = tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace')      # noqa: SIM115  closed in close()
        self.process = subprocess.Popen([sys.executable, '-m', 'benchmarks.worker', name, json.dumps(options | {'spawned': time.time()})],
                                        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.samples: list[dict] = []

    def send(self, **command) -> None:
        with contextlib.suppress(BrokenPipeError):      # `receive` tells why
            self.process.stdin.write(json.dumps(command) + '\n')
            self.process.stdin.flush()

    def receive(self) -> dict:
        """What the contender answers to a command. Raises BenchmarkError where it has died instead."""
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = [text for text in self.errors.read().splitlines() if text.strip()][-8:]
            raise BenchmarkError(f'{self.name} {self.options} ended with code {self.process.returncode}:\n  ' + '\n  '.join(last))
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def by_turns(contenders: list[tuple[str, dict]], *, rounds: int, seconds: float, warm_up: int = 2, threads: int | None = None,
             tell=lambda text: None) -> list[Process]:
    """Runs (name, options) contenders in turn, `rounds` blocks of `seconds` each; their samples and their last report.

    A contender that fails is told and left out. All are started and warmed up (`warm_up` steps) before the first block.
    """
    alive: list[Process] = []
    done: list[Process] = []
    try:
        for name, options in contenders:
            alive.append(Process(name, options, threads=threads))
            alive[-1].send(seconds=0, steps=warm_up)

        def each(ask) -> None:
            for process in list(alive):
                try:
                    ask(process)
                except BenchmarkError as error:
                    tell(str(error))
                    alive.remove(process)
                    process.close()

        each(lambda process: setattr(process, 'first', process.receive()))
        for number in range(rounds):
            def block(process):
                process.send(seconds=seconds, steps=1)
                process.samples.append(process.receive())
            each(block)
            tell(f'round {number + 1} of {rounds}')

        def ask_report(process):
            process.send(report=True)
            process.report = process.receive()
            done.append(process)
        each(ask_report)
        return done
    finally:
        for process in alive:
            process.close()


def summary(values: list[float], name: str, *, digits: int = 1) -> dict:
    """Median and range: {name, name_min, name_max}."""
    return {name: round(statistics.median(values), digits), f'{name}_min': round(min(values), digits), f'{name}_max': round(max(values), digits)}


def speeds(process: Process, name: str, *, digits: int = 1) -> dict:
    """Units per second over the blocks of a contender, and the reference product's GFLOP/s beside them."""
    return (summary([s['units'] / s['seconds'] for s in process.samples], name, digits=digits)
            | summary([s['matmul_gflops'] for s in process.samples], 'matmul_gflops'))


def milliseconds(process: Process) -> dict:
    """Time per step over the blocks of a contender."""
    return (summary([s['seconds'] / s['steps'] * 1e3 for s in process.samples], 'ms', digits=3)
            | summary([s['matmul_gflops'] for s in process.samples], 'matmul_gflops'))


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
        commit = subprocess.run([*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, 'status', '--porcelain', 'lmplay'], capture_output=True, text=True, check=True).stdout
        commit += ' with changes' if changed else ''
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {'cpu': cpu, 'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
            'platform': platform.platform(), 'python': platform.python_version(), 'torch': version('torch'), 'transformers': version('transformers'),
            'commit': commit, 'load': [round(v, 2) for v in os.getloadavg()], 'time': time.strftime('%Y-%m-%d %H:%M:%S')}
