"""From the command to its answer, and to the first step on prepared data;
against the bare interpreter and the others."""

import subprocess
import sys
import time

from .measure import ROOT, Process, summary
from .step import CONTENDERS, at_hand, prepared

COLUMNS = ['name', 'part', 'shape', 'seconds']
COMMANDS = {
    ('ours', '--help'): ['-m', 'lmplay.train', '--help'],
    ('ours', '--exp list'): ['-m', 'lmplay.train', '--exp', 'list'],
    ('ours', 'lmp_generator --help'): ['-m', 'lmplay.generate', '--help'],
    ('python', 'nothing'): ['-c', 'pass'],
    ('python', 'import torch'): ['-c', 'import torch'],
}


def run(args) -> list[dict]:
    taken: dict[tuple, list[float]] = {}
    shape, context = (
        (args.shape or ['1x64' if args.quick else '4x256'])[0],
        args.context or (32 if args.quick else 256),
    )
    firsts = ['ours'] if args.quick else at_hand(['ours', 'nanogpt', 'hf_trainer'], args.tell)
    with prepared(context=context, quick=args.quick) as data:
        for _ in range(args.rounds):
            for key, command in COMMANDS.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
                taken.setdefault((*key, None), []).append(time.perf_counter() - began)
            for name in firsts:
                options = data | {
                    'shape': shape,
                    'dtype': args.dtype[0],
                    'rows': args.rows or (2 if args.quick else 8),
                    'device': args.device,
                }
                process = Process(CONTENDERS[name][0], options, threads=args.threads[0])
                try:
                    process.receive()
                    for command in ({'part': '', 'seconds': 0, 'steps': 1}, {'report': True}):
                        process.send(**command)
                        answer = process.receive()
                finally:
                    process.close()
                taken.setdefault((name, 'first step', shape), []).append(answer['first_step'])
    return [
        {'name': name, 'part': part, 'shape': shape, **summary(values, 'seconds', digits=3)}
        for (name, part, shape), values in taken.items()
    ]
