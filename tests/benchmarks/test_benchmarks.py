"""The benchmarks run, and compare what is comparable: all contenders compute the same.

No time is asserted.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import limit, measure, moe, references
from benchmarks.step import flops_per_token
from lmplay.base.runner_list import find_runner
from lmplay.tokenizers import get_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPE = {'layers': 2, 'dim': 64, 'heads': 1}
FIGURES = {
    'step': {
        'tokens_per_second',
        'gflops',
        'matmul_gflops',
        'mfu',
        'peak_mb',
        'shape',
        'dtype',
        'threads',
        'allocator',
    },
    'overhead': {'ms', 'dtype', 'shape', 'pairs'},
    'data': {'part', 'ms'},
    'moe': {'ms', 'of_dense', 'tokens', 'top_k', 'dtype'},
    'some': {'ms', 'part', 'dtype'},
    'generate': {'tokens_per_second', 'setting', 'shape'},
    'checkpoint': {'ms', 'part', 'megabytes', 'mb_per_second'},
    'startup': {'seconds', 'part'},
    'weak': {'ms', 'ranks', 'efficiency'},
    'flat': {'ms', 'part', 'at', 'ratio'},
}
NAMES = {
    'step': {'ours', 'limit', 'original'},
    'overhead': {'ours', 'bare'},
    'data': {'ours', 'tokenizer', 'nanogpt'},
    'moe': {'ours', 'dense', 'loop'},
    'some': {'ours', 'published', 'dense'},
    'generate': {'ours', 'hf'},
    'checkpoint': {'ours', 'torch'},
    'startup': {'ours', 'python'},
    'weak': {'one', 'ddp', 'fsdp'},
    'flat': {'ours'},
}


def run(*arguments, cache: Path):
    environment = os.environ | {'LMP_DATASETS': str(cache)}
    return subprocess.run(
        [sys.executable, '-m', 'benchmarks', *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope='module')
def rows(cache, tmp_path_factory) -> list[dict]:
    file = tmp_path_factory.mktemp('benchmarks') / 'rows.json'
    done = run(
        '--quick', '--dtype', 'bf16', '--threads', 1, '--only', *NAMES['step'], '--json', file, cache=cache
    )
    assert done.returncode == 0, done.stderr
    for subset in FIGURES:
        assert subset in done.stdout
    return json.loads(file.read_text())


@pytest.mark.parametrize('subset', FIGURES)
def test_every_subset_gives_rows(rows, subset):
    mine = [row for row in rows if row['subset'] == subset]
    assert {row['name'] for row in mine} == NAMES[subset]
    for row in mine:
        assert FIGURES[subset] <= row.keys(), row
        assert (
            row['device'] == 'cpu'
            and row['environment']['cpu']
            and row['environment']['torch'] == torch.__version__.split('+')[0]
            or row['environment']['torch'] == torch.__version__
        )
        for figure in row:
            if f'{figure}_min' in row:
                assert 0 < row[f'{figure}_min'] <= row[figure] <= row[f'{figure}_max'], row
        assert row.get('threads', 1) == 1


def test_a_contender_that_fails_is_told_and_the_rest_goes_on():
    args = argparse.Namespace(rounds=2, seconds=0.0, quick=True, failures=[], tell=lambda text: None)
    options = {'tokens': 16, 'top_k': 1, 'dtype': 'fp32', 'device': 'cpu', 'shrink': 16}
    found = measure.by_turns([('nobody', {}), ('moe', options)], args, together=False)
    assert [process.name for process in found] == ['moe'] and found[0].parts == ['ours', 'dense', 'loop']
    assert [len(samples) for samples in found[0].samples.values()] == [2, 2, 2]
    assert (
        len(args.failures) == 2 and 'nobody' in args.failures[0] and 'ended with code 1' in args.failures[0]
    )


@pytest.mark.parametrize(
    'arguments, message', [(['stp'], "unknown subset 'stp'"), (['step', '--only', 'me'], "no contender 'me'")]
)
def test_mistakes(cache, arguments, message):
    done = run(*arguments, cache=cache)
    assert done.returncode != 0 and message in done.stderr


def gpt2ish():
    torch.manual_seed(0)
    return (
        find_runner('gpt2ish')
        .function(
            num_blocks=2,
            embed_dim=64,
            num_heads=1,
            max_len=32,
            attn_dropout=0.0,
            ff_dropout=0.0,
            embed_dropout=0.0,
        )
        .build()
    )


def renamed(model, names: dict[str, str]) -> dict:
    state = {}
    for key, value in model.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value.clone()
    return state


LIMIT = {
    'tok_embed': 'tok',
    'pos_embed': 'pos',
    'attn.qkv': 'qkv',
    'attn.proj': 'proj',
    'ff.0': 'fc',
    'ff.2': 'out',
}


@pytest.mark.parametrize('dtype, tolerance', [('fp32', 1e-5), ('bf16', 3e-2)])
def test_the_limit_is_the_same_model(dtype, tolerance):
    ours = gpt2ish()
    step, model = limit.make_step(**SHAPE, context=32, vocab=50257, dtype=dtype, compiled=False, chunk=20)
    state = renamed(ours, LIMIT)
    state = {('head' + k[2:] if k.startswith('fc.') else k): v for k, v in state.items()}
    state['pos'] = state['pos'][0]
    model.load_state_dict(state)
    x, y = torch.randint(0, 50257, (2, 2, 32))
    loss = torch.nn.functional.cross_entropy(ours(x).flatten(0, 1), y.flatten())
    loss.backward()
    before = model.head.weight.detach().clone()
    assert step(x, y).item() == pytest.approx(loss.item(), rel=tolerance)
    for mine, theirs in (
        (model.head.weight, ours.fc.weight),
        (model.head.bias, ours.fc.bias),
        (model.tok.weight, ours.tok_embed.weight),
        (model.blocks[0].qkv.weight, ours.blocks[0].attn.qkv.weight),
    ):
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=tolerance, atol=tolerance * theirs.grad.abs().max().item()
        )
    assert not torch.equal(before, model.head.weight)


def test_the_original_is_the_same_model():
    ours = gpt2ish()
    model = references.Original(**SHAPE, context=32, tokenizer=get_tokenizer('gpt2'))
    state = renamed(ours, {'attn.proj': 'proj'})
    for i in range(2):
        for part in ('weight', 'bias'):
            for name, piece in zip(
                ('query', 'key', 'value'), state.pop(f'blocks.{i}.attn.qkv.{part}').chunk(3)
            ):
                state[f'blocks.{i}.{name}.{part}'] = piece
        state[f'blocks.{i}.mask'] = model.blocks[i].mask
    model.load_state_dict(state)
    texts = ['One text is short.', 'The other one is a little longer, and so the first is padded.']
    results, loss, tokens = model.train_prompts([{'prompt': '', 'truth': text} for text in texts])
    encoded = [[50256, *get_tokenizer('gpt2').encode(text), 50256] for text in texts]
    expected = [
        torch.nn.functional.cross_entropy(ours(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:]))
        for ids in encoded
    ]
    assert loss.item() == pytest.approx(sum(expected).item() / 2, rel=1e-5)
    assert tokens == sum(map(len, encoded)) - 2
    assert len(results) == 2 and all(isinstance(text, str) for text in results)


def test_nanogpt_is_the_same_model():
    ours = gpt2ish()
    torch.nn.init.zeros_(ours.fc.bias)  # there it has none
    model = references.Nano(**SHAPE, context=32)
    state = renamed(
        ours,
        {
            'tok_embed': 'wte',
            'attn.qkv': 'c_attn',
            'attn.proj': 'c_proj',
            'ff.': 'mlp.',
            'blocks': 'h',
            'ln1': 'ln_1',
            'ln2': 'ln_2',
            'fc.': 'lm_head.',
        },
    )
    del state['lm_head.bias']
    state = {('ln_f' + k[2:] if k.startswith('ln.') else k): v for k, v in state.items()}
    state['wpe.weight'] = state.pop('pos_embed')[0]
    model.load_state_dict(state)
    x, y = torch.randint(0, 50257, (2, 2, 32))
    torch.testing.assert_close(model(x, y)[0], ours(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('top_k', [1, 2])
def test_moe_forms_compute_the_same(top_k):
    x, forms = moe.layers(tokens=48, top_k=top_k, shrink=16)
    results = []
    for name in ('ours', 'loop'):
        given = x.detach().clone().requires_grad_()
        y = forms[name](given)
        y.square().sum().backward()
        results.append((y, given.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    load = forms['ours'].routing.expert_ids_NK[:, 0].bincount(minlength=moe.EXPERTS) / 48
    assert load.argmax() == 0 and abs(load[0] - moe.BUSIEST) < 0.05


def test_flops_of_the_documented_shapes():
    assert flops_per_token('6x768', 1024) == pytest.approx(543e6, rel=0.005)
    assert flops_per_token('12x768', 1024) == pytest.approx(855e6, rel=0.005)


def test_rows_of_a_file_go_round(tmp_path):
    np.save(tmp_path / 'rows.npy', np.arange(5 * 4, dtype=np.uint16).reshape(5, 4))
    batches = references.load_rows(str(tmp_path), 2, 'cpu')
    x, y = next(batches)
    assert x.tolist() == [[0, 1, 2], [4, 5, 6]] and y.tolist() == [[1, 2, 3], [5, 6, 7]]
    next(batches)
    assert torch.equal(next(batches)[0], x)


NANOGPT = """
import itertools, sys, time
settings = dict(flag.removeprefix('--').split('=') for flag in sys.argv[1:])
open(settings['dataset'] + '/train.bin', 'rb').read()
print('number of parameters: 1.00M')
for i in itertools.count():
    time.sleep(0.01)
    print(f'iter {i}: loss 9.0000, time 10.00ms, mfu -100.00%')
"""


def test_a_program_in_a_checkout_is_measured_from_outside(tmp_path):
    """It goes on for a step at a time; iterations that end before it rests are counted."""
    (tmp_path / 'train.py').write_text(NANOGPT)
    args = argparse.Namespace(rounds=2, seconds=0.2, quick=True, failures=[], tell=print)
    np.save(tmp_path / 'rows.npy', np.zeros((8, 33), np.int64))
    options = {'path': str(tmp_path), 'folder': str(tmp_path), 'shape': '1x64', 'context': 32, 'rows': 2}
    options |= {'dtype': 'fp32', 'device': 'cpu'}
    (process,) = measure.by_turns([('nanogpt_program', options)], args)
    for sample in process.samples['']:
        assert sample['units'] % 64 == 0
        assert 0 < sample['units'] / 64 <= sample['seconds'] / 0.01 + 1  # none from before the block
    assert process.report['peak_mb'] > 0 and not args.failures


def test_where_no_checkout_is_named_there_is_no_such_contender(tmp_path):
    done = run('step', '--quick', '--only', 'original_itself', cache=tmp_path)
    assert done.returncode != 0 and "no contender 'original_itself'" in done.stdout + done.stderr
