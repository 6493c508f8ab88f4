"""What the parts are made of: a command with a limit, and a training whose speed is read from its records."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..measure import ROOT

PYTHON = sys.executable


@dataclass(frozen=True)
class Bench:
    """Where and how large: on a GPU, or tiny and anywhere, which shows that it works and measures nothing."""

    out: Path
    device: str
    tiny: bool

    def shape(self, layers: int, dim: int, heads: int, context: int) -> list[str]:
        if self.tiny:
            layers, dim, heads, context = 2, 64, 2, 64
        sizes = {'num-blocks': layers, 'embed-dim': dim, 'num-heads': heads, 'max-len': context}
        return [text for name, size in sizes.items() for text in (f'--{name}', str(size))]

    def steps(self, count: int) -> int:
        return 3 if self.tiny else count


class PartError(Exception):
    """A part did not come to an end; the message says why."""


def call(command: Sequence[str], limit: float, **variables: str) -> str:
    """What a command printed, errors included. Raises PartError where it fails or takes too long."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    try:
        done = subprocess.run(
            list(command),
            cwd=ROOT,
            env=os.environ | {'PYTHONPATH': path} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b''
        text = said if isinstance(said, str) else said.decode(errors='replace')
        raise PartError(f'took more than {limit:.0f} s; {_last(text)}') from None
    if done.returncode:
        raise PartError(f'exit code {done.returncode}; {_last(done.stdout)}')
    return done.stdout


def _last(text: str) -> str:
    return 'last lines: ' + ' | '.join([line.strip() for line in text.splitlines() if line.strip()][-6:])


def train(
    bench: Bench,
    name: str,
    exp: str,
    flags: Sequence[str] = (),
    *,
    limit: float,
    steps: int = 60,
    stage: dict[str, Any] | None = None,
    before: str = '',
    **variables: str,
) -> dict:
    """Trains as a user does, and reads speed and memory from the second half of the run's records.

    before: a statement of Python that runs first. Raises PartError.
    """
    run_dir = bench.out / 'runs' / f'{name}-{time.time_ns()}'
    plan = bench.out / 'plans' / f'{name}.json'
    plan.parent.mkdir(parents=True, exist_ok=True)
    text = {'loader': 'embedded', 'domains': ['math'], 'problems': 2000 if bench.tiny else 40_000}
    settings = {
        'dataset': 'text',
        'steps': bench.steps(steps),
        'validation_interval': 10**9,
        'validation_bytes': 4096,
    }
    plan.write_text(
        json.dumps({'datasets': {'text': text}, 'stages': {'benchmark': settings | (stage or {})}})
    )
    options = [
        '--exp',
        exp,
        '--training-plan',
        str(plan),
        '--run-dir',
        str(run_dir),
        '--device',
        bench.device,
        '--amp',
    ]
    code = f'from torch.backends import cuda; {before}import sys; from lmplay.train.__main__ import main; '
    code += 'sys.exit(main(sys.argv[1:]))'
    said = call([PYTHON, '-c', code, *options, *flags], limit, **variables)
    row = {'name': name} | _speed(run_dir)
    if 'TORCH_LOGS' in variables:
        row |= {
            'recompiles': said.count('Recompiling function'),
            'graph_breaks': said.count('Graph break in'),
        }
    if 'runs uncompiled' in said:
        row['note'] = 'fell back to uncompiled'
    return row


def _speed(run_dir: Path) -> dict:
    lines = (run_dir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    records = [r for r in map(json.loads, lines) if r['kind'] == 'train']
    late = records[len(records) // 2 :]
    speed = statistics.median(r['tokens_per_second'] for r in late)
    flops = records[-1]['flops'] / records[-1]['tokens'] * speed
    facts = json.loads((run_dir / 'environment.json').read_text(encoding='utf-8'))
    peak = _peak(facts)
    return {
        'tokens_per_second': round(speed),
        'tflops': round(flops / 1e12, 2),
        'mfu': round(flops / peak, 3) if peak else None,
        'memory_gb': round(records[-1]['memory'] / 1e9, 2),
        'first_step_seconds': records[0]['seconds'],
        'loss': round(records[-1]['loss'], 3),
    }


def _peak(facts: dict) -> float | None:
    from lmplay.device import datasheet_flops

    return datasheet_flops(facts['devices'][0]) if facts.get('devices') else None


def several(*trainings: Callable[[Bench, float], dict]) -> Callable[[Bench, float], list[dict]]:
    """A part of several trainings; one that fails is a row that says so."""

    def run(bench: Bench, limit: float) -> list[dict]:
        rows, ends = [], time.monotonic() + limit
        for one in trainings:
            try:
                rows.append(one(bench, max(5.0, ends - time.monotonic())))
            except PartError as error:
                rows.append({'name': getattr(one, 'name', '?'), 'failure': str(error)})
        if all('failure' in row for row in rows):
            raise PartError('; '.join(row['failure'] for row in rows))
        return rows

    return run


@dataclass(frozen=True)
class Training:
    """One training of a part; unless said, of the size of GPT-2 Small, on 16 x 1,024 tokens a step."""

    name: str
    exp: str
    flags: tuple[str, ...] = ()
    stage: dict[str, Any] = field(default_factory=dict)
    before: str = ''
    variables: dict[str, str] = field(default_factory=dict)
    steps: int = 60
    context: int = 1024
    rows: int = 16

    def __call__(self, bench: Bench, limit: float) -> dict:
        rows = 2 if bench.tiny else self.rows
        stage, flags = {'batch_size': rows, 'mini_batch_size': rows} | self.stage, self.flags
        if bench.tiny:
            stage['batch_size'] = rows
            flags = tuple('--no-compile-model' if flag == '--compile-model' else flag for flag in flags)
        shape = bench.shape(12, 768, 12, self.context)
        if self.exp == 'some':
            shape = bench.shape(4, 512, 8, self.context) + (
                ['--num-experts', '8', '--top-k', '2'] if bench.tiny else []
            )
        return train(
            bench,
            self.name,
            self.exp,
            [*shape, *flags],
            limit=limit,
            steps=self.steps,
            stage=stage,
            before=self.before,
            **self.variables,
        )
