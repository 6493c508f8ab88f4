"""The parts of `python -m benchmarks gpu`, in their order: what each runs, and the figures it finds."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from .calls import PYTHON, Bench, PartError, Training, call, several

CUDA_TESTS = 'tests/train/test_cuda.py'
LONG = 300  # seconds at the most for a part that trains as far as time allows
# what scaled_dot_product_attention may use
ATTENTION = {
    'as torch chooses': '',
    'cuDNN first': 'cuda.enable_flash_sdp(False); cuda.enable_mem_efficient_sdp(False); ',
    'no cuDNN': 'cuda.enable_cudnn_sdp(False); ',
}


@dataclass(frozen=True)
class Part:
    """name, what it is for, seconds it may take, and what does it: rows of figures."""

    name: str
    text: str
    limit: float
    run: Callable[[Bench, float], list[dict]]


MACHINE = """
import json, shutil, sysconfig, pathlib, torch
from lmplay.runs.environment import environment
facts = environment()
headers = pathlib.Path(sysconfig.get_paths()['include'], 'Python.h').exists()
keys = ('gpus', 'driver', 'cuda', 'cudnn', 'cuda_visible_devices', 'python')
found = {key: facts[key] for key in keys} | facts['packages']
found |= {'C compiler': shutil.which('cc') or shutil.which('gcc'), 'Python.h': headers}
print('ROWS ' + json.dumps([{'what': key, 'found': str(value)} for key, value in found.items()]))
"""


def machine(bench: Bench, limit: float) -> list[dict]:
    return json.loads(call([PYTHON, '-c', MACHINE], limit).split('ROWS ', 1)[1])


def tests(which: str, tiny: str) -> Callable[[Bench, float], list[dict]]:
    """A part that runs the tests of a GPU whose names match `which`."""

    def run(bench: Bench, limit: float) -> list[dict]:
        command = [
            PYTHON,
            '-m',
            'pytest',
            '-q',
            CUDA_TESTS,
            '-p',
            'no:cacheprovider',
            '-rfE',
            '--tb=line',
            '-k',
        ]
        try:
            said = call([*command, tiny if bench.tiny else which], limit, LMPLAY_TEST_DEVICE=bench.device)
        except PartError as error:
            failed = re.findall(r'(?:FAILED|ERROR) \S+::(\S+)', str(error))
            raise PartError(f'{", ".join(failed)}: {error}' if failed else str(error)) from None
        return [{'tests': said.strip().splitlines()[-1]}]

    return run


EAGER, COMPILED = ('--no-compile-model',), ('--compile-model',)
# fresh weights in the shape of gpt2_moe, since no hub can be reached
MOE = 'gpt2_moe_test'
MOE_SHAPE = ('--moe-layers', 'last 2')
PADDED = {'packing': 'pad'}


def subset(name: str, *options: str) -> Callable[[Bench, float], list[dict]]:
    """A part that runs another subset of the benchmarks on the device."""

    def run(bench: Bench, limit: float) -> list[dict]:
        file = bench.out / f'rows-{name}.json'
        quick = ['--quick'] if bench.tiny else ['--rounds', '3', '--seconds', '1', *options]
        command = [
            PYTHON,
            '-m',
            'benchmarks',
            name,
            '--device',
            bench.device,
            '--dtype',
            'bf16',
            '--json',
            str(file),
            *quick,
        ]
        call(command, limit)
        rows = json.loads(file.read_text())
        hidden = ('environment', 'subset', 'device', 'threads')
        return [
            {k: v for k, v in row.items() if k not in hidden and not k.endswith(('_min', '_max'))}
            for row in rows
        ]

    return run


GENERATE = """
import sys, time, torch
from lmplay.base.runner_list import find_runner
from lmplay.generate.generator import generate
device, tiny = sys.argv[1], sys.argv[2] == 'True'
layers, dim, heads = (2, 64, 2) if tiny else (12, 768, 12)
runner = find_runner('gpt2ish').function(num_blocks=layers, embed_dim=dim, num_heads=heads)
model = runner.build(device).eval()
new = 8 if tiny else 128
with torch.autocast(device, dtype=torch.bfloat16):
    for _ in range(2):
        began = time.perf_counter()
        generate(model, [list(range(100, 132))], max_new_tokens=new, temperature=0)
        seconds = time.perf_counter() - began
print('SPEED', new / seconds)
"""


def generation(bench: Bench, limit: float) -> list[dict]:
    """Tokens per second, second run of two, under each choice of attention."""
    rows = []
    for name, before in ATTENTION.items():
        said = call(
            [
                PYTHON,
                '-c',
                f'from torch.backends import cuda; {before}\n{GENERATE}',
                bench.device,
                str(bench.tiny),
            ],
            limit,
        )
        rows.append({'attention': name, 'tokens_per_second': round(float(said.split('SPEED', 1)[1]), 1)})
    return rows


def attention(bench: Bench, limit: float) -> list[dict]:
    """Padded sequences, each batch as long as its longest, under each choice of attention."""
    trainings = [
        Training(f'padded, {name}', 'gpt2ish', EAGER, stage=PADDED, before=before, steps=40)
        for name, before in ATTENTION.items()
    ]
    return several(*trainings)(bench, limit)


def study(plan: str, exp: str | None, *flags: str) -> Callable[[Bench, float], list[dict]]:
    """A part that trains a shipped plan for as long as time allows, and says how far it came."""

    def run(bench: Bench, limit: float) -> list[dict]:
        run_dir = bench.out / 'runs' / plan
        options = [
            '--training-plan',
            plan,
            '--run-dir',
            str(run_dir),
            '--device',
            bench.device,
            '--amp',
            *flags,
        ]
        if bench.tiny:
            options += ['--steps', '2']
        command = [PYTHON, '-m', 'lmplay.train', *(['--exp', exp] if exp else []), *options]
        try:
            call(command, limit)
        except PartError as error:
            if 'took more than' not in str(error):
                raise
        lines = (run_dir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
        records = [json.loads(line) for line in lines if line.endswith('}')]
        rows = []
        for stage in dict.fromkeys(r['stage'] for r in records):
            found = [r for r in records if r['stage'] == stage]
            held_out = [r['loss'] for r in found if r['kind'] == 'validation']
            trained = [r for r in found if r['kind'] == 'train']
            rows.append(
                {
                    'stage': stage,
                    'steps': trained[-1]['step'] if trained else 0,
                    'validation_loss': round(held_out[-1], 4) if held_out else None,
                    'memory_gb': round(trained[-1]['memory'] / 1e9, 2) if trained else None,
                }
            )
        return rows

    return run


STORIES = ('--dataset', 'embedded')  # TinyStories need the hub
PARTS = (
    Part('machine', 'driver, compiler, cuDNN', 40, machine),
    Part(
        'tests',
        'the tests of a GPU, without the compiler',
        110,
        tests('not compile', 'grouped or fused'),
    ),
    Part('moe', 'gpt2_moe, eager', 60, several(Training('gpt2_moe', MOE, MOE_SHAPE + EAGER))),
    Part(
        'moe_compiled',
        'gpt2_moe, compiled, with recompiles and graph breaks counted',
        110,
        several(
            Training(
                'gpt2_moe compiled',
                MOE,
                MOE_SHAPE + COMPILED,
                variables={'TORCH_LOGS': 'recompiles,graph_breaks'},
            )
        ),
    ),
    Part(
        'micro_batches',
        'gpt2_moe in micro-batches of 2, as the study trains',
        50,
        several(
            Training(
                'gpt2_moe, micro-batch 2', MOE, MOE_SHAPE + EAGER, stage={'mini_batch_size': 2}, steps=20
            )
        ),
    ),
    Part('padded', 'padded sequences, cuDNN attention first and not', 100, attention),
    Part('generation', 'generation, cuDNN attention first and not', 90, generation),
    Part(
        'out_of_memory',
        'a batch that does not fit, with mini_batch_size auto',
        60,
        several(
            Training(
                'gpt2ish, 2,048 sequences',
                'gpt2ish',
                EAGER,
                stage={'batch_size': 2048, 'mini_batch_size': 'auto'},
                steps=2,
            )
        ),
    ),
    Part('tests_compiled', 'the tests of a GPU that compile', 110, tests('compile', 'nothing_here or fused')),
    Part('moe_layer', "gpt2_moe's layer against dense and a loop", 60, subset('moe')),
    Part('some_layer', "SoME's layer against dense and the published form", 60, subset('some')),
    Part(
        'steps',
        'the step of each experiment at context 1,024 (some: 512), eager and compiled',
        240,
        several(
            *(
                Training(f'{exp}{" compiled" if flags == COMPILED else ""}', exp, flags)
                for exp in ('gpt2ish', 'modern')
                for flags in (EAGER, COMPILED)
            ),
            Training('some', 'some', EAGER, context=512, rows=12, steps=30),
        ),
    ),
    Part('generate', 'generation against Hugging Face', 60, subset('generate', '--shape', '12x768')),
    Part('checkpoint', 'saving and loading', 40, subset('checkpoint', '--shape', '12x768')),
    Part('emergence', 'moe_emergence_small, as far as time allows', LONG, study('moe_emergence_small', None)),
    Part(
        'some_vs_gpt2',
        'the protocol of SoME, as far as time allows',
        LONG,
        study('some_vs_gpt2', 'some', *STORIES),
    ),
)
