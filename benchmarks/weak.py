"""Weak scaling: one process and two, a core and a batch of the same size each; data parallel and sharded.

Of DDP every second step leaves out the exchange of gradients, in the same processes: the difference is what
communicating takes beyond what backward hides. Steps of all processes begin together, and last as long as the
slowest takes.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time

from .measure import ROOT, VOCAB, BenchmarkError, shape_of, summary

COLUMNS = [
    'name',
    'ranks',
    'shape',
    'tokens_per_second',
    'efficiency',
    'cpu_efficiency',
    'ms',
    'cpu_ms',
    'communicating',
    'cpu_communicating',
]


def run(args) -> list[dict]:
    rows = []
    for shape in args.shape or (['1x64'] if args.quick else ['4x256']):
        steps, context = (2, 16) if args.quick else (6 * args.rounds, 256)
        options = {'shape': shape, 'steps': steps, 'rows': 4, 'context': context}
        first: dict = {}
        for name, ranks in (('one', 1), ('ddp', 2), ('fsdp', 2)):
            found = measured(options | {'kind': name}, ranks)
            speed = ranks * options['rows'] * options['context'] * 1e3 / found['ms']
            first = first or found | {'speed': speed}
            rows.append(
                {'name': name, 'ranks': ranks, 'shape': shape, 'rows': options['rows']}
                | {'tokens_per_second': round(speed, 1)}
                | {'efficiency': round(speed / first['speed'] / ranks, 3)}
                | {'cpu_efficiency': round(first['cpu_ms'] / found['cpu_ms'], 3)}
                | found
            )
            args.tell(f'{name}: {rows[-1]["tokens_per_second"]} tokens/s')
    return rows


def measured(options: dict, size: int) -> dict:
    """Starts the ranks; what the first one measured. Raises BenchmarkError where one fails."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = {'WORLD_SIZE': str(size), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    shared |= {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), 'TORCH_CPP_LOG_LEVEL': 'ERROR'}
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.weak', json.dumps(options)],
            env=os.environ | shared | {'RANK': str(rank), 'LOCAL_RANK': str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    answers = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, answers):
        if process.returncode:
            raise BenchmarkError(f'a rank of {options} ended with code {process.returncode}: {errors[-500:]}')
    return json.loads(answers[0][0].splitlines()[-1])


def main() -> None:
    """One rank."""
    import torch

    from lmplay.base.runner_list import find_runner
    from lmplay.device import Compute, keep_freed_memory
    from lmplay.modules.matmul import speed_up_linears
    from lmplay.train.objective import Objective
    from lmplay.train.optimizer import clip_gradients, make_optimizer, parameter_groups
    from lmplay.train.parallel import Engine
    from lmplay.train.plan import Stage
    from lmplay.train.ranks import Ranks

    options, ranks, cpu = json.loads(sys.argv[1]), Ranks.of_environment(), torch.device('cpu')
    kind = 'fsdp' if options['kind'] == 'fsdp' else 'ddp'
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[ranks.rank]})
    torch.set_num_threads(1)
    keep_freed_memory()
    s, stage = shape_of(options['shape']), Stage(dataset='embedded')
    model = find_runner('gpt2ish').function(
        num_blocks=s['layers'], embed_dim=s['dim'], num_heads=s['heads'], max_len=options['context']
    )
    with ranks.connected(cpu):
        torch.manual_seed(0)
        built = model.build()
        speed_up_linears(built)
        groups, objective = parameter_groups(built, stage), Objective(built)
        engine = Engine(objective, ranks, kind=kind, compute=Compute(cpu))
        optimizer = make_optimizer(built, stage, engine.placed(groups))
        parameters = [p for p in built.parameters() if p.requires_grad]
        x = torch.randint(0, VOCAB, (options['rows'], options['context']))
        scored = x.numel() * ranks.size

        def step(exchanged: bool) -> list[float]:
            ranks.largest(0.0)
            began = time.perf_counter(), time.process_time()
            optimizer.zero_grad(set_to_none=True)
            share = 1 / ranks.size
            micro = engine(x, x, x >= 0, scored=scored, tokens_share=share, last=exchanged)
            micro.objective.backward()
            clip_gradients(parameters, 1.0)
            optimizer.step()
            taken = time.perf_counter() - began[0], time.process_time() - began[1]
            return [seconds * 1e3 for seconds in ranks.largest(*taken)]

        kinds = (True, False) if options['kind'] == 'ddp' else (True,)
        times: dict[bool, list[list[float]]] = {exchanged: [] for exchanged in kinds}
        for _ in range(2 + options['steps']):
            for exchanged in kinds:
                times[exchanged].append(step(exchanged))
    if ranks.first:
        # the first ones fill caches; wall and CPU time, of which other people's load disturbs the second less
        found = [list(zip(*values[2:])) for values in times.values()]
        figures = summary(found[0][0], 'ms') | summary(found[0][1], 'cpu_ms')
        if len(found) > 1:
            wall, cpu = ([statistics.median(part[i]) for part in found] for i in (0, 1))
            figures |= {'communicating': round(1 - wall[1] / wall[0], 3)}
            figures |= {'cpu_communicating': round(1 - cpu[1] / cpu[0], 3)}
        print(json.dumps(figures))


if __name__ == '__main__':
    main()
