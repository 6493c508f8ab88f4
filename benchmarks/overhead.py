"""What the trainer's loop costs over the bare step: data, random state, counting, logging; interleaved in one
process.

The bare step is forward, loss, backward, clipping and optimizer on one fixed batch, with the trainer's own
parts.
"""

import statistics

from .measure import by_turns, summary
from .step import prepared

COLUMNS = [
    'name',
    'dtype',
    'shape',
    'threads',
    'ms',
    'cpu_ms',
    'overhead_percent',
    'cpu_overhead_percent',
    'pairs',
]


def run(args) -> list[dict]:
    table = []
    context = args.context or (32 if args.quick else 256)
    with prepared(context=context, quick=args.quick) as data:
        for shape in args.shape or (['1x64'] if args.quick else ['4x256']):
            for dtype in args.dtype:
                for threads in args.threads:
                    options = data | {
                        'shape': shape,
                        'dtype': dtype,
                        'rows': args.rows or (2 if args.quick else 8),
                        'device': args.device,
                    }
                    for process in by_turns([('overhead', options)], args, threads=threads):
                        pairs = [p for s in process.samples[''] for p in s['pairs']]
                        common = {
                            'dtype': dtype,
                            'shape': shape,
                            'threads': process.report['threads'],
                            'pairs': len(pairs),
                        }
                        loop, loop_cpu, bare, bare_cpu = (
                            [seconds * 1e3 for seconds in column] for column in zip(*pairs)
                        )
                        table += [
                            {
                                'name': 'ours',
                                **common,
                                **summary(loop, 'ms', digits=3),
                                'cpu_ms': round(statistics.median(loop_cpu), 3),
                                'overhead_percent': over(loop, bare),
                                'cpu_overhead_percent': over(loop_cpu, bare_cpu),
                            },
                            {
                                'name': 'bare',
                                **common,
                                **summary(bare, 'ms', digits=3),
                                'cpu_ms': round(statistics.median(bare_cpu), 3),
                            },
                        ]
    return table


def over(loop: list[float], bare: list[float]) -> float:
    """Median over the pairs, in percent."""
    return round((statistics.median(a / b for a, b in zip(loop, bare)) - 1) * 100, 2)
