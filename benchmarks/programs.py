"""nanoGPT and the original lmplay themselves, from a checkout of theirs, started as their users start them.

Both compute what they compute: nanoGPT ties its head to a vocabulary of 50,304 and draws random crops, in
fp32 on a CPU whatever its --dtype says; the original pads and compares words.
"""

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from lmplay.tokenizers import provide_gpt2

from .measure import shape_of

STEP = re.compile(rb'^iter \d+: loss .* time .*\n', re.MULTILINE)


def run_nanogpt_program(
    meter, *, path, shape, context, rows, dtype, device, folder, compiled=False, **_
) -> None:
    if dtype == 'bf16' and device == 'cpu':
        raise SystemExit('nanoGPT computes in fp32 on a CPU, whatever --dtype says.')
    data = Path(folder) / 'nanogpt'
    data.mkdir(exist_ok=True)
    tokens = np.load(Path(folder) / 'rows.npy').astype(np.uint16)
    for part in ('train', 'val'):
        tokens.tofile(data / f'{part}.bin')
    s = shape_of(shape)
    settings = dict(
        dataset=data,
        out_dir=data,
        n_layer=s['layers'],
        n_head=s['heads'],
        n_embd=s['dim'],
        block_size=context,
        batch_size=rows,
        gradient_accumulation_steps=1,
        max_iters=10**9,
        eval_iters=1,
        eval_interval=10**9,
        log_interval=1,
        device=device,
        dtype='bfloat16' if dtype == 'bf16' else 'float32',
        compile=compiled,
    )
    program = subprocess.Popen(
        [sys.executable, '-u', 'train.py', *(f'--{key}={value}' for key, value in settings.items())],
        cwd=path,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        # it may be at rest when this process ends
        preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),
    )
    assert program.stdout is not None
    out, status = program.stdout.fileno(), Path(f'/proc/{program.pid}')

    def step() -> int:
        """The program goes on, tells that an iteration or more have ended, and rests."""
        before, told = _cpu_seconds(status), b''
        program.send_signal(signal.SIGCONT)
        while not STEP.search(told):
            told += (read := os.read(out, 65536))
            if not read:
                raise SystemExit(f'nanoGPT ended with code {program.wait()}.')
        program.send_signal(signal.SIGSTOP)
        while select.select([out], [], [], 0)[0]:
            told += os.read(out, 65536)
        meter.notes['cpu_seconds'] = meter.notes.get('cpu_seconds', 0.0) + _cpu_seconds(status) - before
        peak = re.search(r'VmHWM:\s+(\d+) kB', (status / 'status').read_text())
        meter.extra['peak_mb'] = round(int(peak[1]) * 1024 / 1e6) if peak else None
        return rows * context * len(STEP.findall(told))

    step()
    meter.run(step)


def _cpu_seconds(status: Path) -> float:
    fields = (status / 'stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / 100  # clock ticks, of which Linux tells 100 a second


def run_original_program(meter, *, path, shape, context, rows, dtype, device, folder, **_) -> None:
    """Its own main, in this process; its gpt2 comes from the file that lmplay ships, not from the network."""
    provide_gpt2()
    for name in [n for n in sys.modules if n.split('.')[0] == 'lmplay']:
        del sys.modules[name]
    sys.path.insert(0, str(path))
    from lmplay.base.base_runner import LMRunnerBase

    from lmplay.train.__main__ import main

    work = Path(folder) / 'original'
    work.mkdir(exist_ok=True)
    os.chdir(work)  # where it keeps statistics and datasets
    texts = json.loads((Path(folder) / 'texts.json').read_text())
    (work / 'texts.jsonl').write_text('\n'.join(json.dumps({'truth': text}) for text in texts))
    source = {
        'ds_loader': 'hf',
        'args': ['texts', 'json'],
        'kwargs': {'data_files': str(work / 'texts.jsonl'), 'truth_column': 'truth'},
    }
    plan = {
        'datasets': {'texts': source},
        'steps': [{'step_name': 'only', 'datasets': ['texts'], 'epochs': 1e6}],
    }
    (work / 'plan.json').write_text(json.dumps(plan))
    s, never = shape_of(shape), 10**12
    model = dict(num_blocks=s['layers'], embed_dim=s['dim'], num_heads=s['heads'], max_len=context)
    model |= {f'{part}_dropout': 0.0 for part in ('attn', 'ff', 'embed')}
    config = {
        'construction_args': {
            'model': model,
            'runner': {'batch_size': rows, 'validation_interval': never, 'save_interval': never},
            'curriculum': {'training_plan': str(work / 'plan.json')},
        }
    }
    (work / 'config.yaml').write_text(json.dumps(config))
    train = LMRunnerBase.train

    def counted(self, batch, *others):
        results, loss, tokens = train(self, batch, *others)
        meter.tick(tokens)
        return results, loss, tokens

    LMRunnerBase.train = counted
    sys.argv = [
        'lmp_trainer',
        '--exp',
        'gpt2ish',
        '--device',
        device,
        '--use-config',
        str(work / 'config.yaml'),
    ]
    sys.argv += ['--model', str(work / 'model.lmp'), '--mini-batch-size', str(rows)]
    sys.argv += ['--amp'] if dtype == 'bf16' else []
    main()
    raise SystemExit('The original ended.')
