"""Ours as its user starts it: the command line of lmp_trainer, on a plan, over prepared data."""

import json
import time
from pathlib import Path

QUICK_DATA = {'loader': 'embedded', 'domains': ['math'], 'problems': 2000}
DATA = {'loader': 'embedded', 'domains': ['code', 'math'], 'max_bytes': 4_000_000}


def command_line(
    *,
    shape: str,
    context: int,
    rows: int,
    dtype: str,
    device: str,
    folder: str,
    exp: str = 'gpt2ish',
    flags: list[str] | None = None,
    **_,
) -> list[str]:
    layers, dim = map(int, shape.split('x'))
    return [
        '--exp',
        exp,
        '--training-plan',
        str(Path(folder) / 'plan.json'),
        '--run-dir',
        str(Path(folder) / f'run-{time.time_ns()}'),
        '--device',
        device,
        '--num-blocks',
        str(layers),
        '--embed-dim',
        str(dim),
        '--num-heads',
        str(max(1, dim // 64)),
        '--max-len',
        str(context),
        '--attn-dropout',
        '0',
        '--ff-dropout',
        '0',
        '--embed-dropout',
        '0',
        '--batch-size',
        str(rows),
        '--mini-batch-size',
        str(rows),
        *(['--amp'] if dtype == 'bf16' else []),
        *(flags or []),
    ]


def run_prepare(meter, *, folder, context, count, quick=False, **_) -> None:
    """Writes the plan, makes its token store, and writes the same rows for the references:
    as tokens and as text."""
    import numpy as np

    from lmplay.data.rows import PackedRows
    from lmplay.data.sources import open_source
    from lmplay.data.store import open_store
    from lmplay.tokenizers import get_tokenizer

    plan = {
        'datasets': {'text': QUICK_DATA if quick else DATA},
        'stages': {
            'benchmark': {
                'dataset': 'text',
                'steps': 10**6,
                'validation_interval': 10**9,
                'validation_bytes': 4096,
            }
        },
    }
    (Path(folder) / 'plan.json').write_text(json.dumps(plan))
    tokenizer = get_tokenizer('gpt2')
    store = open_store(open_source('text', plan['datasets']['text']), tokenizer)
    documents = store.split(0.02)[0]
    packed = PackedRows(store, documents, length=context, tokenizer=tokenizer)
    count = min(count, packed.count - 1)
    rows = np.zeros((count, context + 1), np.uint16)
    x, y, order = np.zeros(context, np.int64), np.zeros(context, np.int64), packed.order(0)
    for i in range(count):
        packed.fill(order, i, x, y)
        rows[i, :-1], rows[i, -1] = x, y[-1]
    np.save(Path(folder) / 'rows.npy', rows)
    (Path(folder) / 'texts.json').write_text(json.dumps([tokenizer.decode(row.tolist()) for row in rows]))
    short = [int(d) for d in order[0] if 16 <= store.lengths[d] <= context][:count]
    (Path(folder) / 'documents.json').write_text(
        json.dumps(
            [
                tokenizer.decode(store.tokens[store.starts[d] : store.starts[d + 1] - 1].tolist())
                for d in short
            ]
        )
    )
    meter.answer(
        {
            'rows': count,
            'documents': len(short),
            'mean_document': float(np.mean(store.lengths[short])) if short else None,
        }
    )


def run_ours(meter, **options) -> None:
    """lmp_trainer; a step is counted where the run records it."""
    done = 0

    def count(record):
        nonlocal done
        new, done = record['tokens'] - done, record['tokens']
        meter.extra['data_wait'] = round(record['data_wait'], 4)
        meter.tick(new)

    _train(options, count)


def run_overhead(meter, **options) -> None:
    """lmp_trainer, and after each of its steps a bare one, of the same model, optimizer,
    batch and process."""
    from lmplay.train.optimizer import clip_gradients
    from lmplay.train.trainer import Trainer

    ours, at = Trainer.train_step, {}

    def train_step(self, batch, total_steps, lr):
        at.update(trainer=self, batch=batch)
        return ours(self, batch, total_steps, lr)

    Trainer.train_step = train_step

    def bare():
        trainer, batch = at['trainer'], at['batch']
        if 'x' not in at:
            device = trainer.compute.device
            at.update(x=batch.x.to(device), y=batch.y.to(device))
            at['mask'] = at['x'].new_ones(at['x'].shape, dtype=bool)
        trainer.optimizer.zero_grad(set_to_none=True)
        with trainer.compute.autocast():
            scored = at['x'].numel()
            micro = trainer.objective(at['x'], at['y'], at['mask'], scored=scored, tokens_share=1.0)
        micro.objective.backward()
        clip_gradients(trainer.parameters, trainer.stage.clip)
        trainer.optimizer.step()

    def count(record):
        now = clocks()
        for _ in range(record['steps']):
            bare()
        meter.synchronize()
        if 'left' in at:
            pair = [b - a for start, end in ((at['left'], now), (now, clocks())) for a, b in zip(start, end)]
            # wall and CPU seconds of the loop, then of the bare step
            meter.notes.setdefault('pairs', []).append(pair)
        meter.tick(record['steps'])
        at['left'] = clocks()

    def clocks():
        return time.perf_counter(), time.process_time()

    _train(options, count)


def _train(options: dict, count) -> None:
    """Runs lmp_trainer; `count` gets every training record, once it is written."""
    from lmplay.runs.recorder import Recorder
    from lmplay.train.__main__ import main

    write = Recorder.train

    def train(self, record):
        write(self, record)
        count(record)

    Recorder.train = train
    raise SystemExit(main([*command_line(**options), '--quiet']))
