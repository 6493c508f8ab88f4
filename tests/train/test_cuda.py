"""What only a GPU can show.

Every experiment trains there, fast code computes what the CPU computes, and the loop does not wait.
"""

import os
import signal
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from lmplay.base.runner_list import find_runner
from lmplay.modules.experts import experts_mlp
from lmplay.runs.load import load_model
from lmplay.train.__main__ import main
from lmplay.train.objective import LinearCrossEntropy
from tests.helpers import ROOT, losses, progress, summary

# 'cpu' tries the tests themselves, but those of waiting
DEVICE = os.environ.get('LMPLAY_TEST_DEVICE', 'cuda')
pytestmark = pytest.mark.skipif(DEVICE == 'cuda' and not torch.cuda.is_available(), reason='needs a CUDA GPU')
on_gpu = pytest.mark.skipif(DEVICE != 'cuda', reason='only a GPU is waited for')
WAITS = ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize')
WATCHED = ROOT / 'tests' / 'train' / 'on_gpu.py'
SMALL = ['--num-blocks', '2', '--embed-dim', '64', '--num-heads', '2', '--max-len', '32']
VERSIONS = {'gpt2ish': SMALL, 'gpt2_moe_test': [], 'some_test': []}


def ignore(when, ctx):
    """Watches nothing."""


@pytest.fixture
def train(tiny_plan, tmp_path):
    """Trains for 40 steps; returns the run directory.

    watch: called 'before' and 'after' each step, with its context.
    """

    def run(name, *flags, run='run', stage=None, device=DEVICE, watch=None, code=0):
        plan = tiny_plan({'s': {'steps': 40, 'lr': 3e-3} | (stage or {})})
        exp = f'{WATCHED}:watched_{name}' if watch else name
        options = ['--training-plan', plan, '--run-dir', tmp_path / run, '--device', device, '--quiet']
        with pytest.MonkeyPatch.context() as patch:
            if watch:
                model = find_runner(exp).function().model_class
                patch.setattr(model, 'watch', staticmethod(watch))
            assert main(['--exp', exp, *map(str, options), *VERSIONS[name], *flags]) == code
        return tmp_path / run

    return run


@pytest.mark.parametrize('flags', [[], ['--amp'], ['--amp', '--compile-model']])
@pytest.mark.parametrize('name', VERSIONS)
def test_it_trains_there(train, name, flags):
    run = train(name, *flags)
    seen, found = losses(run), summary(run)
    assert seen[-1] < seen[0] - 0.5
    assert found['steps'] == 40 and found['skipped_steps'] == 0 and found['sample']


@pytest.mark.parametrize('name', VERSIONS)
def test_fp32_learns_as_on_the_cpu(train, name):
    """From one checkpoint, since each device draws weights of its own."""
    drop = {'gpt2ish': ['--attn-dropout', '0', '--ff-dropout', '0', '--embed-dropout', '0']}.get(name, [])
    begun = train(name, *drop, run='begun', stage={'steps': 1}, device='cpu')
    how = {'stage': {'steps': 20, 'init_from': str(begun)}}
    there = losses(train(name, *drop, run='there', **how))
    here = losses(train(name, *drop, run='here', device='cpu', **how))
    assert there[0] == pytest.approx(here[0], abs=0.02)
    # all but gpt2ish draw router noise or dropout from each device's own generator
    assert there[-1] == pytest.approx(here[-1], abs=0.02 if name == 'gpt2ish' else 0.5)


def test_a_checkpoint_of_the_gpu_loads_on_the_cpu_and_training_continues(train):
    def stop(when, ctx):
        if ctx.step == 20 and when == 'before':
            signal.raise_signal(signal.SIGINT)

    whole = losses(train('gpt2ish', '--amp', run='whole', watch=ignore))
    stopped = train('gpt2ish', '--amp', run='parts', watch=stop, code=130)
    assert progress(stopped)['step'] == 21
    parts = train('gpt2ish', '--amp', run='parts', watch=ignore)
    assert losses(parts)[-1] == pytest.approx(whole[-1], abs=1e-3)
    model, state = load_model(parts)
    assert next(model.parameters()).device.type == 'cpu' and state['progress']['total_step'] == 40


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('K', [1, 2])
def test_grouped_experts_against_their_plain_form(K, bias):
    """bf16 on the device against float64, outputs and all gradients; one expert gets no token."""
    torch.manual_seed(0)
    N, D, H, E = 300, 64, 128, 5
    x, w1, w2 = torch.randn(N, D), torch.randn(E, D, H) / D**0.5, torch.randn(E, H, D) / H**0.5
    b1, b2 = (torch.randn(E, H), torch.randn(E, D)) if bias else (None, None)
    ids, gates = torch.stack([torch.randperm(E - 1)[:K] for _ in range(N)]), torch.rand(N, K)
    dy = torch.randn(N, D)

    def parts(dtype, device):
        return [t if t is None else t.to(device, dtype).requires_grad_() for t in (x, gates, w1, b1, w2, b2)]

    a, g, *p = parts(torch.bfloat16, DEVICE)
    ours = experts_mlp(
        a, expert_ids_NK=ids.to(DEVICE), weights_NK=g, w1_EDF=p[0], b1_EF=p[1], w2_EFD=p[2], b2_ED=p[3]
    )
    A, G, *P = parts(torch.float64, 'cpu')
    wanted = torch.zeros(N, D, dtype=torch.float64)
    for k in range(K):
        h = torch.einsum('nd,ndf->nf', A, P[0][ids[:, k]]) + (P[1][ids[:, k]] if bias else 0)
        y = torch.einsum('nf,nfd->nd', F.gelu(h), P[2][ids[:, k]]) + (P[3][ids[:, k]] if bias else 0)
        wanted = wanted + G[:, k, None] * y
    close(ours, wanted)
    got = torch.autograd.grad(ours, [t for t in (a, g, *p) if t is not None], dy.to(DEVICE, torch.bfloat16))
    for mine, exact in zip(
        got, torch.autograd.grad(wanted, [t for t in (A, G, *P) if t is not None], dy.double())
    ):
        close(mine, exact)


def test_fused_head_and_loss_against_the_plain_form():
    torch.manual_seed(0)
    x, w, b, t = (
        torch.randn(500, 64),
        torch.randn(1003, 64) / 8,
        torch.randn(1003),
        torch.randint(0, 1003, (500,)),
    )

    def parts(dtype, device):
        return [v.to(device, dtype).requires_grad_() for v in (x, w, b)]

    mine, exact = parts(torch.float32, DEVICE), parts(torch.float64, 'cpu')
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        targets = t.to(DEVICE)
        loss, *_ = LinearCrossEntropy.apply(*mine, targets, targets == targets, 1 / 500, 128)
    wanted = F.cross_entropy(F.linear(*exact), t)
    assert loss.item() == pytest.approx(wanted.item(), abs=0.01)
    for a, e in zip(torch.autograd.grad(loss, mine), torch.autograd.grad(wanted, exact)):
        close(a, e)


def close(mine, exact):
    difference = (mine.detach().cpu().double() - exact).norm() / exact.norm().clamp(min=1e-9)
    assert difference < 0.02, difference


@on_gpu
@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'sgd', 'adagrad', 'rmsprop', 'adam'])
@pytest.mark.parametrize('name', VERSIONS)
def test_no_step_waits_for_the_device(train, name, optimizer):
    """torch itself raises where an operation between the two hooks of a step would synchronise."""
    watched = []

    def strict(when, ctx):
        if ctx.step < 3:  # first uses fill caches and may wait
            return
        torch.cuda.set_sync_debug_mode('error' if when == 'before' else 'default')
        if when == 'after':
            watched.append(ctx.step)

    try:
        train(name, '--amp', '--optimizer', optimizer, watch=strict)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert watched == list(range(3, 40))


@on_gpu
def test_the_loop_waits_at_logging_points_alone(train):
    """Seen by the profiler between two logging points: no call that waits for a stream or the device."""
    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def profiled(when, ctx):
        if when == 'before' and ctx.step == 21:
            profiler.__enter__()
        if when == 'before' and ctx.step == 28:
            profiler.__exit__(None, None, None)

    train('gpt2ish', '--amp', stage={'validation_interval': 10**6, 'save_interval': 10**6}, watch=profiled)
    events = sorted(profiler.events(), key=lambda e: e.time_range.start)
    calls = Counter(e.name for e in events)
    assert calls['cudaLaunchKernel'] > 100
    waits = [e for e in events if e.name in WAITS]
    # the profiler itself synchronises once, as it is left
    last_launch = max(e.time_range.start for e in events if e.name == 'cudaLaunchKernel')
    assert len(waits) <= 1 and all(e.time_range.start > last_launch for e in waits), calls


@on_gpu
def test_full_size_some_takes_a_step_in_under_12_gb():
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast('cuda', dtype=torch.bfloat16):
        model = find_runner('some').function().build('cuda')
        x = torch.randint(0, 8192, (12, 512), device='cuda')  # the plan's mini-batch
        out = model(x)
        loss = F.cross_entropy(getattr(out, 'logits', out).flatten(0, 1).float(), x.flatten())
    loss.backward()
    assert torch.cuda.max_memory_allocated() < 12e9
