"""The training step: tokens per second, share of this machine's own matmul speed, and peak memory, each in a
process of its own.

`ours` is lmp_trainer as a user starts it. Nobody gets an environment variable but, where threads are asked
for, their number; so everybody runs with the C library's default allocator, and ours with what it sets for
itself. `limit_kept` is the limit with the same setting.
"""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator

from .measure import VOCAB, BenchmarkError, Process, by_turns, shape_of, speeds

# name of a row -> (contender, its options)
CONTENDERS = {
    'ours': ('ours', {}),
    'ours_compiled': ('ours', {'flags': ['--compile-model']}),
    'limit': ('limit', {}),
    'limit_kept': ('limit', {'keep': True}),
    'hf': ('hf', {}),
    'hf_trainer': ('hf_trainer', {}),
    'nanogpt': ('nanogpt', {'compiled': False}),
    'nanogpt_compiled': ('nanogpt', {'compiled': True}),
    'original': ('original', {}),
    'original_variable': ('original', {'variable': True}),
}
# the programs themselves, where a checkout of theirs is named
PROGRAMS = {
    'nanogpt_itself': ('nanogpt_program', {'compiled': False}),
    'nanogpt_itself_compiled': ('nanogpt_program', {'compiled': True}),
    'original_itself': ('original_program', {}),
}
NOT_QUICK = ('limit_kept', 'nanogpt_compiled', 'ours_compiled')
COLUMNS = [
    'name',
    'dtype',
    'shape',
    'threads',
    'tokens_per_second',
    'tokens_per_cpu_second',
    'gflops',
    'matmul_gflops',
    'mfu',
    'peak_mb',
]


def flops_per_token(shape: str, context: int) -> float:
    """Forward and backward: 6 for each parameter in a product, and attention counted in full;
    recomputation never."""
    s = shape_of(shape)
    return 6 * (12 * s['layers'] * s['dim'] ** 2 + s['dim'] * VOCAB) + 12 * s['layers'] * s['dim'] * context


@contextlib.contextmanager
def prepared(*, context: int, count: int = 512, quick: bool = False) -> Iterator[dict]:
    """A temporary folder with a plan and the same packed rows for everybody, as options of a contender."""
    with tempfile.TemporaryDirectory(prefix='lmplay-benchmark-') as folder:
        options = {'folder': folder, 'context': context}
        process = Process('prepare', options | {'count': count, 'quick': quick})
        try:
            process.receive()
        finally:
            process.close()
        yield options


def run(args) -> list[dict]:
    rows, context = args.rows or (2 if args.quick else 8), args.context or (32 if args.quick else 256)
    names = at_hand(
        args.only
        or [name for name in CONTENDERS if name not in (NOT_QUICK if args.quick else ['ours_compiled'])],
        args.tell,
    )
    places = {'nanogpt_program': args.nanogpt, 'original_program': args.original}
    programs = {
        name: (contender, own | {'path': os.path.abspath(places[contender])})
        for name, (contender, own) in PROGRAMS.items()
        if places[contender]
    }
    known = CONTENDERS | programs
    names += [name for name in programs if not args.only]
    if wrong := [name for name in names if name not in known]:
        raise BenchmarkError(f"There is no contender '{wrong[0]}' in step; there are {', '.join(known)}.")
    table = []
    with prepared(context=context, quick=args.quick) as data:
        for shape in args.shape or (['1x64'] if args.quick else ['4x256']):
            for dtype in args.dtype:
                for threads in args.threads:
                    options = data | {
                        'shape': shape,
                        'dtype': dtype,
                        'rows': rows,
                        'device': args.device,
                        'compiled': not args.quick,
                    }
                    given = [(known[name][0], options | known[name][1] | {'row': name}) for name in names]
                    processes = by_turns(
                        given, args, threads=threads, together=fit(len(given), shape, rows * context)
                    )
                    table += [row(process, context) for process in processes]
    return table


def at_hand(names: list[str], tell: Callable[[str], None]) -> list[str]:
    """Those contenders whose packages are installed."""
    if 'hf_trainer' in names and importlib.util.find_spec('accelerate') is None:
        tell('hf_trainer is left out: it needs the package accelerate.')
        return [name for name in names if name != 'hf_trainer']
    return names


def fit(count: int, shape: str, tokens: int) -> bool:
    """Whether this machine's memory holds that many contenders, all but one at rest (weights, moments, torch
    itself), and one at work (gradients, logits four times over)."""
    import psutil

    s = shape_of(shape)
    parameters = 12 * s['layers'] * s['dim'] ** 2 + 2 * s['dim'] * VOCAB
    needed = count * (12 * parameters + 600e6) + 4 * parameters + 16 * tokens * VOCAB
    return needed < 0.9 * psutil.virtual_memory().available


def row(process: Process, context: int) -> dict:
    o, samples, report = process.options, process.samples[''], process.report
    found = speeds(samples, 'tokens_per_second')
    gflops = flops_per_token(o['shape'], context) * found['tokens_per_second'] / 1e9
    allocator = (
        'what lmp_trainer sets for itself'
        if process.name == 'ours'
        else 'keeps freed memory'
        if o.get('keep')
        else "the C library's default"
    )
    return {
        'name': o['row'],
        'dtype': o['dtype'],
        'shape': o['shape'],
        'context': context,
        'rows': o['rows'],
        **found,
        'gflops': round(gflops, 1),
        'mfu': round(gflops / found['matmul_gflops'], 3),
        'peak_mb': report['peak_mb'],
        'threads': report['threads'],
        'steps': sum(s['steps'] for s in samples),
        'data_wait': report.get('data_wait'),
        'allocator': allocator,
    }
