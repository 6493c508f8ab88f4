"""Whether a step costs the same later on: after many steps and records, with many documents, in a late stage
of a plan.

Runs of lmp_trainer on a model so small that a step is mostly the trainer's own work. Milliseconds of a step
are those that the run itself records, medians over a tenth of its steps.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .measure import ROOT, BenchmarkError, summary

COLUMNS = ['name', 'part', 'at', 'ms', 'ratio']
STAGES = 10


def run(args) -> list[dict]:
    steps, few, many, size = (20, 10, 60, 20_000) if args.quick else (6000, 1000, 100_000, 20_000_000)
    taken: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix='lmplay-benchmark-') as folder:
        plans = [
            plan(Path(folder), documents, size, steps, stages)
            for documents, stages in ((few, 1), (many, 1), (few, STAGES))
        ]
        for _ in range(args.rounds):
            long, crowded, staged = (
                [statistics.median(part) for part in tenths(step_times(Path(folder), file, args))]
                for file in plans
            )
            for part, at, value in (
                ('steps', f'the first {steps // 10}', long[0]),
                ('steps', f'the last of {steps}', long[-1]),
                ('documents', f'{few:,}', statistics.median(long)),
                ('documents', f'{many:,}', statistics.median(crowded)),
                ('stages', 'the first', staged[0]),
                ('stages', f'the last of {STAGES}', staged[-1]),
            ):
                taken.setdefault((part, at), []).append(value)
    rows, before = [], {}
    for (part, at), values in taken.items():
        first = before.setdefault(part, values)
        rows.append(
            {
                'name': 'ours',
                'part': part,
                'at': at,
                **summary(values, 'ms', digits=3),
                'ratio': round(statistics.median(b / a for a, b in zip(first, values)), 3),
            }
        )
    return rows


def plan(folder: Path, documents: int, size: int, steps: int, stages: int) -> Path:
    """A plan over that many documents of English-like text, `size` bytes together,
    trained on for `steps` in `stages`."""
    text = folder / f'{documents}.jsonl'
    if not text.is_file():
        words = 'the model of a step is small and its cost stays where it was '
        with open(text, 'w', encoding='utf-8') as file:
            for i in range(documents):
                document = f'{i} {words * (size // documents // len(words) + 1)}'[: size // documents]
                file.write(json.dumps({'text': document}) + '\n')
    stage = {
        'dataset': 'text',
        'steps': steps // stages,
        'validation_bytes': 1000,
        'batch_size': 4,
        'mini_batch_size': 4,
    }
    file = folder / f'plan-{documents}-{stages}.json'
    file.write_text(
        json.dumps(
            {
                'datasets': {'text': {'loader': 'json', 'path': str(text)}},
                'tokenizer': 'bytes',
                'stages': {f's{i}': stage for i in range(stages)},
            }
        )
    )
    return file


def step_times(folder: Path, file: Path, args) -> list[float]:
    """Milliseconds of each step of a run, its first left out."""
    place = tempfile.mkdtemp(dir=folder)
    command = [
        sys.executable,
        '-m',
        'lmplay.train',
        '--training-plan',
        str(file),
        '--run-dir',
        place,
        '--device',
        args.device,
        '--quiet',
        '--num-blocks',
        '1',
        '--embed-dim',
        '32',
        '--num-heads',
        '1',
        '--max-len',
        '32',
    ]
    threads = {} if args.threads[0] is None else {'OMP_NUM_THREADS': str(args.threads[0])}
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | threads | {'LMP_DATASETS': str(folder / 'cache')},
    )
    if done.returncode:
        raise BenchmarkError(f'flat: lmp_trainer ended with code {done.returncode}: {done.stderr}')
    with open(Path(place) / 'metrics.jsonl', encoding='utf-8') as lines:
        records = [r for r in map(json.loads, lines) if r['kind'] == 'train']
    return [
        r['scored'] / r['tokens_per_second'] / r['steps'] * 1e3 for r in records[1:]
    ]  # every token of these rows is scored


def tenths(values: list[float]) -> list[list[float]]:
    size = len(values) // 10
    return [values[i * size : (i + 1) * size] for i in range(10)]
