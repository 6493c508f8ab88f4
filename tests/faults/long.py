"""(e) A long run: memory, open files and the time of a step do not grow."""

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from lmplay.runs.recorder import Recorder
from lmplay.train.__main__ import main as train

from .material import Material
from .outcomes import Outcome, call, judge

EVERY = 50  # steps between measurements
GROWTH, SLOWER = 48 << 20, 1.5  # in bytes, and as a factor: what may be noise


def long_run(made: Material, scratch: Path, *, rounds: int, seed: int) -> Iterator[tuple[str, Outcome, str]]:
    """`rounds` hundreds of steps, a checkpoint every 20."""
    steps, seen = 100 * rounds, []
    record = Recorder.train

    def recorded(self, line):
        record(self, line)
        if line['step'] % EVERY == 0:
            seen.append((_resident(), len(os.listdir('/proc/self/fd'))))

    run = scratch / 'long'
    more = ['--steps', steps, '--save-interval', 80, '--validation-interval', 80, '--seed', seed]
    with mock.patch.object(Recorder, 'train', recorded):
        ended = call(train, made.training(run, *more), seconds=24 * 3600)
    outcome, told = judge(ended), ended.err[-500:] + ended.error
    if ended.code == 0:
        lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_bytes().splitlines()]
        seconds = np.array([1 / r['tokens_per_second'] for r in lines if r['kind'] == 'train'])
        early, late = (float(np.median(part)) for part in np.array_split(seconds[len(seconds) // 10 :], 2))
        memory, files = zip(*seen)
        third = len(memory) // 3
        grown = max(memory[-third:]) - max(memory[:third] or memory) if third else 0
        told = (
            f'{steps:,} steps: memory {memory[0] >> 20} to {memory[-1] >> 20} MB, open files {files[0]} to '
            f'{files[-1]}, a token took {late / early:.2f} times as long in the second half'
        )
        flat = grown < GROWTH and files[-1] <= files[0] + 2 and late < SLOWER * early
        outcome = Outcome.SURVIVED if flat else Outcome.SILENT
        print(told, flush=True)
    yield f'seed {seed}: {steps} steps', outcome, told


def _resident() -> int:
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize()
