import subprocess
import sys

import pytest
import torch

from lmplay.base.lazy_dynamo import NoRandomInit, step_without_dynamo
from lmplay.checks import smallest

TRAINS = """
import sys
from lmplay.train.__main__ import main
main(['--exp', 'test_runner', '--embed-dim', '16', '--max-len', '32', '--device', 'cpu', *sys.argv[1:]])
print('compiler imported:', 'torch._dynamo' in sys.modules)
"""


def test_training_without_compiling_imports_no_compiler(tiny_plan, tmp_path):
    arguments = ['--training-plan', str(tiny_plan()), '--run-dir', str(tmp_path / 'run')]
    done = subprocess.run(
        [sys.executable, '-c', TRAINS, *arguments], capture_output=True, text=True, check=True
    )
    assert 'compiler imported: False' in done.stdout


@pytest.mark.parametrize('name', ['test_runner', 'gpt2_moe_test', 'some_test'])
def test_operations_counted_with_weights_are_those_counted_without(name):
    """Attention too: the counter does not know the CPU's fused one."""
    assert smallest(name, 'cpu').flops_per_token(32) == smallest(name, 'meta').flops_per_token(32)


@pytest.mark.parametrize('kind', ['AdamW', 'SGD', 'Adagrad', 'RMSprop', 'Adam'])
def test_a_stripped_step_does_what_the_step_does(kind):
    ends = []
    for strip in (step_without_dynamo, lambda optimizer: optimizer):
        w = torch.nn.Parameter(torch.arange(4.0))
        optimizer = strip(getattr(torch.optim, kind)([w], lr=0.1))
        for _ in range(3):
            optimizer.zero_grad()
            (w**2).sum().backward()
            optimizer.step()
        ends.append(w.detach().clone())
    assert torch.equal(*ends)


def test_only_the_meta_device_is_left_without_random_numbers():
    with NoRandomInit():
        drawn = torch.nn.Linear(8, 8)
        torch.nn.init.normal_(drawn.bias)
        with torch.device('meta'):
            torch.nn.init.trunc_normal_(torch.nn.Linear(8, 8).weight)
    assert drawn.weight.std() > 0 and drawn.bias.std() > 0
