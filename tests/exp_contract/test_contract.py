"""Every registered experiment, at its smallest size, keeps the contract of lmplay.base.base_model."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch

from lmplay.base.base_model import LMOutput, StepContext
from lmplay.base.fusion import fused_head
from lmplay.base.runner_list import find_runner, list_experiments
from lmplay.checks import check_contract, check_runnable, smallest, smallest_parameters
from lmplay.data.rows import IGNORE
from lmplay.runs.checkpoint import save_checkpoint
from lmplay.runs.load import load_model
from lmplay.tokenizers import as_tokenizer
from lmplay.train.__main__ import main
from lmplay.train.describe import describe
from lmplay.train.objective import Objective
from lmplay.train.optimizer import make_optimizer
from lmplay.train.plan import Stage

spec = importlib.util.spec_from_file_location(
    'resume_tests', Path(__file__).resolve().parents[1] / 'train' / 'test_resume.py'
)
resume = importlib.util.module_from_spec(spec)
spec.loader.exec_module(resume)

EXPERIMENTS = [e.name for e in list_experiments() if e.error is None]
every_experiment = pytest.mark.parametrize('name', EXPERIMENTS)
TINY = [name for name in EXPERIMENTS if name.endswith('_test')]
model_of = {name: find_runner(name).function().model_class for name in EXPERIMENTS}
OTHERS = {model_of[name]: name for name in EXPERIMENTS if model_of[name] not in {model_of[t] for t in TINY}}
one_of_each_model = pytest.mark.parametrize('name', [*TINY, *OTHERS.values()])


def text(rows=2, length=24, seed=0):
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model, x):
    out = model(x)
    return out.logits if isinstance(out, LMOutput) else out


def test_nothing_shipped_is_broken():
    assert not [e for e in list_experiments() if e.error]


@every_experiment
def test_shape_figures_and_hyperparameters(name):
    model = smallest(name, 'meta')
    check_runnable(model)
    figures = describe(model, rows=2, length=16, amp=False)
    assert 0 < figures['trainable_parameters'] <= figures['total_parameters']
    assert (
        0 < figures['active_parameters'] <= figures['total_parameters']
        and figures['forward_flops_per_token'] > 0
    )
    json.dumps(model.hyperparameters)
    assert model.hyperparameters['max_len'] == model.max_len == 64
    assert as_tokenizer(model.tokenizer).name == 'bytes'


@every_experiment
def test_it_keeps_the_contract_and_fuses_its_head(name):
    model = smallest(name)
    assert [found for found in check_contract(model) if found.problem] == []
    assert fused_head(model) is model.fc


@every_experiment
def test_a_few_steps_train_every_trainable_parameter_and_lower_the_loss(name):
    model = smallest(name)
    stage = Stage(dataset='embedded', lr=3e-3)
    optimizer = make_optimizer(model, stage)
    x = text(4)
    y = torch.cat([x[:, 1:], torch.full((4, 1), IGNORE)], 1)
    mask = torch.ones_like(x, dtype=torch.bool)
    objective = Objective(model)
    losses, touched = [], set()
    for step in range(30):
        torch.manual_seed(step)
        model.before_step(StepContext('s', step, 30, 0))
        optimizer.zero_grad()
        micro = objective(x, y, mask, scored=int((y != IGNORE).sum()), tokens_share=1.0)
        micro.objective.backward()
        output = objective.output(x, mask)
        assert all(v.ndim == 0 and torch.isfinite(v) for v, _ in output.losses.values())
        assert not any(m.requires_grad for m in output.metrics.values())
        touched |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        model.after_step(StepContext('s', step, 30, 100))
        losses.append(micro.loss.item())
    # positions and expert choices not met in 30 steps of 24 tokens may stay without; whole layers may not
    missing = [n for n, p in model.named_parameters() if p.requires_grad and n not in touched]
    assert not missing, missing
    assert losses[-1] < losses[0] - 0.1


@every_experiment
def test_a_checkpoint_gives_the_same_model_back(name, tmp_path):
    model = smallest(name)
    tokenizer = as_tokenizer(model.tokenizer)
    save_checkpoint(
        tmp_path / 'c',
        model,
        None,
        {
            'exp': name,
            'exp_file': None,
            'parameters': {k: v for k, v in smallest_parameters(name).items() if k != 'tokenizer'},
            'tokenizer': {'name': tokenizer.name, 'fingerprint': tokenizer.fingerprint},
        },
    )
    again, _ = load_model(tmp_path / 'c')
    with torch.no_grad():
        assert torch.equal(logits_of(again.eval(), text()), logits_of(model.eval(), text()))


@one_of_each_model
def test_killed_twice_it_ends_as_if_it_had_not_been(name, tiny_plan, cache, tmp_path):
    """Two stages, more than an epoch, dropout as the experiment has it; SIGKILL at two random moments."""
    plan = tiny_plan(
        {
            'first': {'steps': 14, 'init_from': 'scratch'},
            'second': {'steps': 8, 'packing': 'pad', 'row_length': 24},
        },
        model=smallest_parameters(name),
    )
    flags = ['--exp', name, '--validation-interval', '24', '--save-interval', '12', '--on-collapse', 'warn']
    assert (
        main(
            [
                '--training-plan',
                str(plan),
                '--run-dir',
                str(tmp_path / 'whole'),
                '--device',
                'cpu',
                '--quiet',
                *flags,
            ]
        )
        == 0
    )
    rng = random.Random(name)
    for at in sorted(rng.sample(range(4, 22), 2)):
        resume.kill_after_records(
            resume.start(plan, tmp_path / 'killed', cache, *flags), tmp_path / 'killed', at
        )
    assert (
        main(
            [
                '--training-plan',
                str(plan),
                '--run-dir',
                str(tmp_path / 'killed'),
                '--device',
                'cpu',
                '--quiet',
                *flags,
            ]
        )
        == 0
    )
    resume.assert_same_run(tmp_path / 'whole', tmp_path / 'killed')
