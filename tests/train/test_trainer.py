"""What the loop does when things go wrong, and what it must never do."""

import contextlib
import copy
import dataclasses
import json
import weakref
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmplay.base.base_model import LMBase
from lmplay.base.runner_list import find_runner
from lmplay.data.rows import Batch
from lmplay.device import Compute
from lmplay.errors import UserError
from lmplay.exp.some.keys import Keys
from lmplay.generate.generator import generate
from lmplay.runs.checkpoint import read_state
from lmplay.runs.recorder import read_metrics
from lmplay.train import trainer as trainer_module
from lmplay.train.optimizer import learning_rate
from lmplay.train.plan import Stage
from lmplay.train.state import TrainState
from lmplay.train.stopping import StopTraining
from lmplay.train.trainer import MAX_SKIPPED, step_seed
from tests.helpers import (
    Clock,
    assert_equal,
    events,
    experiment,
    losses,
    make_trainer,
    mixture,
    progress,
    stop_at,
    summary,
    tiny,
    train_records,
    weights,
)


def assert_as_undisturbed(train, whole, step, **how):
    """A run that is interrupted in a step, resumed, and given once more ends with the weights of `whole`."""
    with stop_at(step):
        assert train('parts', **how)[0] == 130
    for _ in range(2):
        assert train('parts', **how)[0] == 0
    assert_equal(weights(whole), weights(whole.parent / 'parts'))


# ---- a trainer by itself


def test_it_trains_without_a_session(tmp_path):
    trainer = make_trainer(experiment('mean'), tmp_path)
    trainer.fit()
    state = trainer.state
    assert (state.step, state.samples, state.total_samples) == (6, 24, 24)
    assert state.validation_loss == trainer.evaluation.metrics['loss']
    assert [r['step'] for r in train_records(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert trainer.model.training


def test_the_last_step_of_a_stage_takes_what_is_left(tmp_path):
    trainer = make_trainer(experiment('mean'), tmp_path, data=mixture(10), steps=None, epochs=1, batch_size=4)
    trainer.fit()
    assert [r['samples'] for r in train_records(tmp_path)] == [4, 8, 10]


def test_the_first_loss_is_that_of_the_fresh_model(tmp_path):
    model = experiment('mean')
    trainer = make_trainer(model, tmp_path)
    batch = trainer.loader.mixture.batch(0, 4)
    losses = trainer.objective.token_losses(batch.x, batch.y, batch.x >= 0)[0]
    expected = losses.sum().item() / batch.scored
    trainer.fit()
    assert train_records(tmp_path)[0]['loss'] == pytest.approx(expected, rel=1e-6)


def test_a_signal_ends_it_before_the_next_step(tmp_path):
    class Stopping(type(experiment('mean'))):
        def after_step(self, ctx):
            if ctx.step == 2:
                trainer.stop.number = 2

    trainer = make_trainer(Stopping(), tmp_path)
    with pytest.raises(StopTraining, match='interrupted'):
        trainer.fit()
    assert trainer.state.step == 3


def test_evaluating_between_steps_leaves_the_model_in_training(tmp_path):
    trainer = make_trainer(experiment('mean'), tmp_path)
    found = trainer.evaluate()
    assert trainer.model.training and trainer.evaluation is found and found.metrics['tokens'] > 0


def test_the_last_evaluation_is_of_the_last_weights(tmp_path):
    """Made again only where it is not there: in a process that resumed at the very end of a stage."""
    trainer = make_trainer(experiment('mean'), tmp_path)
    trainer.fit()
    assert trainer.final_evaluation() is trainer.evaluation
    resumed = make_trainer(trainer.model, tmp_path / 'again', state=trainer.state)
    resumed.fit()
    assert resumed.final_evaluation().metrics == trainer.evaluation.metrics
    assert not read_metrics(tmp_path / 'again')  # it was recorded before
    trainer.state.advance(4, 100, 1.0)  # killed between its last step and the evaluation
    late = make_trainer(trainer.model, tmp_path / 'late', state=trainer.state)
    late.final_evaluation()
    assert [r['kind'] for r in read_metrics(tmp_path / 'late')] == ['validation']


def test_seeds_of_steps_differ():
    seeds = {step_seed(seed, stage, step) for seed in range(5) for stage in 'ab' for step in range(50)}
    assert len(seeds) == 500 and all(0 <= s < 2**63 for s in seeds)


# ---- steps that fail


def test_a_step_that_is_not_finite_is_skipped_and_reported(train, tmp_path):
    code, run = train(nan_from=3, nan_to=5, log=str(tmp_path / 'log'))
    assert code == 0
    assert summary(run)['skipped_steps'] == 2 and summary(run)['validation_loss'] > 0
    assert all(torch.isfinite(w).all() for w in weights(run).values())
    assert [r['message'] for r in events(run, 'skipped')] == [
        f'step {i}: 1 step(s) skipped, the gradient was not finite' for i in (4, 5)
    ]
    lines = [line.split() for line in (tmp_path / 'log').read_text().splitlines()]
    assert [line[4] for line in lines] == ['True'] * 3 + ['False'] * 2 + ['True'] * 7
    assert [int(line[1]) for line in lines] == list(range(12)) and {line[2] for line in lines} == {'12'}
    assert int(lines[-1][3]) == summary(run)['tokens']


def test_it_stops_there_if_asked_with_the_state_kept(train):
    code, run = train(stage={'on_nan': 'stop', 'save_interval': 1000}, nan_from=6, nan_to=7)
    assert code == 1
    assert progress(run)['step'] == 7 and all(torch.isfinite(w).all() for w in weights(run).values())
    assert any('not finite at step 7' in r.get('message', '') for r in read_metrics(run))


def test_a_run_that_never_recovers_stops(train):
    code, run = train(stage={'steps': 60}, nan_from=5)
    assert code == 1 and progress(run)['step'] == 5 + MAX_SKIPPED


def test_auto_halves_what_does_not_fit_without_changing_the_steps(train):
    code, run = train(stage={'mini_batch_size': 'auto'}, rows_that_fit=2)
    assert code == 0 and progress(run)['mini_batch_size'] == 2
    code, plain = train('plain', stage={'mini_batch_size': 2}, rows_that_fit=2)
    assert_equal(weights(plain), weights(run))
    assert losses(plain) == losses(run)  # what the retried step had measured is dropped


def test_without_auto_it_says_what_to_do(train, capsys):
    code, _ = train(stage={'mini_batch_size': 4}, rows_that_fit=2)
    assert code == 2 and 'Use --mini-batch-size auto' in capsys.readouterr().err


def test_a_single_sequence_that_does_not_fit_ends_auto(tmp_path):
    state = TrainState(mini_batch_size=4)
    trainer = make_trainer(
        experiment('troubled', rows_that_fit=0), tmp_path, mini_batch_size='auto', state=state
    )
    with pytest.raises(UserError, match='Out of memory at mini-batch size 1 x'):
        trainer.fit()


class Pass(NamedTuple):
    hidden: torch.Tensor


def test_nothing_of_a_failed_pass_is_alive_when_it_is_retried(tmp_path):
    """Whatever a module keeps of its pass, and the exception with its frames."""
    kept = []

    class Keeping(type(experiment('troubled'))):
        def before_step(self, ctx):
            super().before_step(ctx)
            assert not [r for r in kept if r() is not None]

        def forward(self, x):
            hidden = self.embed(x)
            kept.append(weakref.ref(hidden))
            self.embed.last = Pass(hidden * 2)
            self.lists = {'all': [hidden]}
            self.steps_seen = 3
            return super().forward(x)

    trainer = make_trainer(Keeping(rows_that_fit=1), tmp_path, mini_batch_size='auto', state=auto(4))
    kept.clear()
    trainer.train_step(trainer.loader.mixture.batch(0, 4), 6, 0.01)
    assert trainer.state.mini_batch_size == 1 and len(kept) == 2 + 4
    assert trainer.model.steps_seen == 3


class FullAtTheUpdate(torch.optim.SGD):
    def step(self):
        raise torch.OutOfMemoryError('CUDA out of memory')


def test_an_update_that_does_not_fit_is_never_retried(tmp_path):
    model = experiment('mean')
    trainer = make_trainer(model, tmp_path, mini_batch_size='auto', state=auto(4))
    trainer = dataclasses.replace(trainer, optimizer=FullAtTheUpdate(model.parameters()))
    with pytest.raises(UserError, match='Out of memory in the update of the weights by adamw'):
        trainer.train_step(trainer.loader.mixture.batch(0, 4), 6, 0.01)
    assert trainer.state.mini_batch_size == 4


def auto(mini_batch_size):
    return TrainState(mini_batch_size=mini_batch_size)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'sgd'])
def test_a_retried_step_leaves_the_moments_of_one_that_fitted(optimizer, tmp_path):
    trainers = []
    for fits, begin in ((1, 4), (10, 1)):
        model = experiment('troubled', rows_that_fit=fits)
        model.out = torch.nn.Sequential(torch.nn.Linear(8, 8), model.out)
        how = dict(optimizer=optimizer, mini_batch_size='auto', state=auto(begin))
        trainers.append(make_trainer(model, tmp_path / str(fits), **how))
        for _ in range(2):
            trainers[-1].train_step(trainers[-1].loader.mixture.batch(0, 4), 6, 0.01)
    retried, plain = trainers
    assert_equal(retried.model.state_dict(), plain.model.state_dict())
    assert_equal(retried.optimizer.state_dict(), plain.optimizer.state_dict())


# ---- the load of the experts


@pytest.mark.parametrize('on_collapse, code', [('warn', 0), ('stop', 1), ('snapshot', 0)])
def test_the_collapse_alarm(train, on_collapse, code):
    got, run = train(stage={'on_collapse': on_collapse, 'validation_interval': 8}, load=0.95)
    assert got == code
    found = [r['event'] for r in read_metrics(run) if r['kind'] == 'event']
    assert found[:3] == ['warning', 'warning', 'collapse']
    snapshots = [f.name for f in (run / 'checkpoints').iterdir() if f.name.startswith('collapse-')]
    assert len(snapshots) == (on_collapse == 'snapshot')  # of its onset alone
    assert (progress(run)['step'] == 6) == (on_collapse == 'stop')


def test_no_alarm_for_a_balanced_load(train):
    _, run = train(stage={'validation_interval': 8}, load=0.62)
    assert not [r for r in read_metrics(run) if r['kind'] == 'event']


# ---- what a step must not do


def test_evaluation_changes_nothing_in_training(train):
    """However often it is evaluated and saved, the weights are the same."""
    _, rare = train('rare', stage={'validation_interval': 10**6, 'save_interval': 10**6})
    _, often = train('often', stage={'validation_interval': 4, 'save_interval': 4})
    assert_equal(weights(rare), weights(often))


def test_a_step_turns_neither_ids_into_text_nor_tensors_into_numbers(train):
    code, run = train(exp='watched')
    records = [r for r in read_metrics(run) if r['kind'] in ('train', 'validation')]
    assert code == 0 and records[-1]['kind'] == 'validation'
    assert [r['model/reads'] for r in records] == [0.0] * len(records)
    assert records[-1]['model/decoded'] > 0  # evaluation does show an example


class Waits(TorchDispatchMode):
    """Counts what would make a GPU's host wait: numbers and shapes read from the values of tensors.

    Those of int64 are lengths of sequences, which the host has anyway. `nonzero` is left out: the
    accuracy asks for it on a CPU alone.
    """

    NAMES = ('_local_scalar_dense', 'equal', 'masked_select', 'is_nonzero', '_unique2')

    def __init__(self, on_host=()):
        super().__init__()
        self.on_host, self.seen = [id(t) for t in on_host], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = func._schema.name.partition('::')[2] in self.NAMES
        if waits and id(args[0]) not in self.on_host and args[0].dtype is not torch.int64:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('amp', [None, torch.float16])
@pytest.mark.parametrize('optimizer', ['adamw', 'adam', 'adagrad', 'sgd', 'rmsprop', 'muon'])
def test_a_step_does_not_read_the_gradients_norm(optimizer, amp, tmp_path):
    """And where the gradient is not finite it leaves weights and moments as they are, the first step too."""
    model = experiment('troubled')
    model.hidden = torch.nn.Linear(8, 8)
    model.out = torch.nn.Sequential(model.hidden, model.out)
    trainer = make_trainer(model, tmp_path, optimizer=optimizer, weight_decay=0.1)
    if amp:
        scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
        trainer = dataclasses.replace(trainer, scaler=scaler, compute=Compute(torch.device('cpu'), amp))
    batch = trainer.loader.mixture.batch(0, 4)
    mode = Waits()
    for finite in (False, True, True, False, True):
        trainer.model.nan_from, trainer.model.nan_to = (9, 9) if finite else (0, 9)
        before = copy.deepcopy((model.state_dict(), moments(trainer.optimizer)))
        mode.on_host = [id(t) for t in counters(trainer.optimizer)]  # torch keeps those on the host
        with mode:
            trainer.train_step(batch, 10, 1e-2)
        after = model.state_dict(), moments(trainer.optimizer)
        if finite:
            assert not torch.equal(before[0]['hidden.weight'], after[0]['hidden.weight'])
            assert all(torch.isfinite(w).all() for w in after[0].values())
        else:
            assert_equal(before[0], after[0])
            assert all(torch.equal(t, before[1].get(k, torch.zeros_like(t))) for k, t in after[1].items())
    assert mode.seen == []


def states(optimizer):
    parts = getattr(optimizer, 'parts', [optimizer])
    for part in parts:
        for i, p in enumerate(p for g in part.param_groups for p in g['params']):
            yield from ((f'{type(part).__name__} {i} {k}', t) for k, t in part.state.get(p, {}).items())


def moments(optimizer):
    return {k: t for k, t in states(optimizer) if isinstance(t, torch.Tensor)}


def counters(optimizer):
    return [t for k, t in moments(optimizer).items() if k.endswith('step')]


class SteppingOnTheDevice(torch.optim.Optimizer):
    """As the fused kernels of a GPU: the device decides by `found_inf` whether it steps."""

    _step_supports_amp_scaling = True

    def __init__(self, groups, lr):
        super().__init__(groups, {'lr': lr})
        self.steps = 0

    @torch.no_grad()
    def step(self):
        self.steps += 1
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    p.sub_(group['lr'] * p.grad * (1 - self.found_inf))


@pytest.mark.parametrize('optimizer', ['fused', 'adagrad', 'rmsprop', 'muon'])
@pytest.mark.parametrize(
    'name', ['gpt2ish', 'gpt2_moe', 'gpt2_moe_top2', 'pythia_moe', 'some', 'some_baseline']
)
def test_a_step_reads_nothing_back_from_the_device(name, optimizer, tmp_path, monkeypatch):
    """A whole step of the full-size model where no tensor has values.

    Reading one, which on a GPU would wait for it, raises.
    """
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device: False)  # it knows no device 'meta'
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    model: LMBase = find_runner(name).function().build('meta')
    model.to(torch.bfloat16)  # what autocast would make of products
    for module in model.modules():
        if isinstance(module, Keys):
            module.float()
    trainer = make_trainer(model, tmp_path, mini_batch_size=2, optimizer=optimizer.replace('fused', 'adamw'))
    steps = trainer.optimizer
    if optimizer == 'fused':
        steps = SteppingOnTheDevice(model.param_groups(0.1), lr=1e-3)
    elif optimizer == 'muon':  # fused AdamW has no kernel for meta tensors
        steps.parts[1] = SteppingOnTheDevice(steps.parts[1].param_groups, lr=1e-3)
        steps._step_supports_amp_scaling = True
    trainer = dataclasses.replace(trainer, optimizer=steps, compute=Compute(torch.device('meta')))
    x = torch.zeros(4, 16, dtype=torch.int64)
    batch = Batch(x, x, torch.full((4,), 16), 64)
    norm = trainer.train_step(batch, 10, 1e-3)
    trainer.metrics.end_step(batch, norm, seconds=0.0, waited=0.0)
    assert norm.is_meta and steps.found_inf.is_meta
    with pytest.raises(RuntimeError, match='meta'):
        trainer.metrics.pop()  # the logging point, where it is read


# ---- the scale of the loss in fp16


def scaled(model, folder, *, scale, **stage):
    """A trainer in fp16 whose loss scale begins there."""
    trainer = make_trainer(model, folder, **{'steps': 40, 'on_nan': 'stop'} | stage)
    scaler = torch.amp.GradScaler('cpu', init_scale=scale)
    return dataclasses.replace(trainer, scaler=scaler, compute=Compute(torch.device('cpu'), torch.float16))


def test_a_loss_scale_that_begins_too_high_is_no_failure(tmp_path):
    trainer = scaled(experiment('mean'), tmp_path, scale=2.0**34)
    trainer.fit()
    skipped = [r['skipped'] for r in train_records(tmp_path)]
    assert 3 <= sum(skipped) <= 25 and not any(skipped[30:]) and trainer.state.step == 40
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    assert events(tmp_path, 'loss_scale') and not events(tmp_path, 'skipped')
    assert trainer.state.skipped_in_a_row == 0


@pytest.mark.parametrize('on_nan, at', [('stop', 4), ('skip', 3 + MAX_SKIPPED)])
def test_a_loss_that_is_not_finite_is_one(tmp_path, on_nan, at):
    trainer = scaled(experiment('troubled', nan_from=3), tmp_path, scale=8.0, on_nan=on_nan)
    with pytest.raises(StopTraining, match='not finite'):
        trainer.fit()
    assert trainer.state.step == at and not events(tmp_path, 'loss_scale')


class Broken(torch.autograd.Function):
    """Passes values on, and NaN back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float('nan')


def test_a_scale_that_falls_to_its_floor_is_one(tmp_path):
    """A finite loss whose gradient is NaN whatever the scale."""

    class NoGradient(type(experiment('mean'))):
        def logits(self, x):
            return Broken.apply(super().logits(x))

    trainer = scaled(NoGradient(), tmp_path, scale=16.0)
    with pytest.raises(StopTraining, match='not finite'):
        trainer.fit()
    assert trainer.state.step == 5  # after 16, 8, 4, 2 and 1
    assert [r['step'] for r in events(tmp_path, 'loss_scale')] == [1, 2, 3, 4]


# ---- stages that take a time


@pytest.fixture
def still_clock(monkeypatch):
    """A clock that only the steps of `troubled` move: a stage's first by 5 s, others by half a second."""
    monkeypatch.setattr(trainer_module, 'time', Clock())


TIMED = {'steps': None, 'seconds': 20.1, 'lr': 0.01, 'warmup': 0.2}


def test_a_stage_of_so_many_seconds_ends_there_and_its_schedule_fits(train, still_clock):
    code, run = train(stage=TIMED)
    steps = train_records(run)
    # 20.0 is nearest to 20.1
    assert code == 0 and [r['seconds'] for r in steps] == [5 + n / 2 for n in range(31)]
    stage = Stage(dataset='embedded', lr=0.01, warmup=0.2)
    # of the first two, how many steps there will be is only guessed
    assert 0 < steps[0]['lr'] == steps[1]['lr'] / 2 < steps[2]['lr']
    assert [r['lr'] for r in steps[2:]] == pytest.approx(
        [learning_rate(stage, step, 31) for step in range(2, 31)]
    )
    at = [r['seconds'] for r in read_metrics(run) if r['kind'] == 'validation']
    assert at[0] == 5.0 and at[-1] == 20.0 and max(b - a for a, b in zip(at, at[1:])) <= 20.1 / 20 + 0.5
    assert read_state(run / 'checkpoints/last')['progress']['stage_seconds'] == 20.0


def test_a_stage_of_so_many_seconds_resumes_where_its_clock_stood(train, still_clock):
    stage = TIMED | {'warmup': 3}  # a number of steps: no rate depends on the guess of how many there will be
    _, whole = train('whole', stage=stage)
    assert_as_undisturbed(train, whole, 13, stage=stage)
    assert summary(whole.parent / 'parts')['steps'] == 31


def test_the_first_step_is_trained_however_short_the_time(train, still_clock):
    code, run = train(stage=TIMED | {'seconds': 0.01})
    assert code == 0 and summary(run)['steps'] == 1


# ---- whole runs


def test_amp_on_the_cpu_trains_and_resumes(train):
    code, run = train(flags=['--amp'])
    assert code == 0 and summary(run)['validation_loss'] < 5.7


def test_loss_falls_and_the_seed_decides_everything(train):
    runs = [
        train(name, stage={'steps': 60, 'lr': 0.01}, flags=['--seed', seed])[1]
        for name, seed in (('a', '3'), ('b', '3'), ('c', '4'))
    ]
    a, b, c = map(losses, runs)
    assert a == b != c
    assert a[-1] < a[0] - 1.0


@pytest.mark.parametrize('optimizer', ['adam', 'adagrad', 'sgd', 'rmsprop'])
def test_every_optimizer_lowers_the_loss(train, optimizer):
    lr = {'sgd': 3.0, 'adagrad': 0.05}.get(optimizer, 0.01)
    code, run = train(stage={'steps': 40, 'optimizer': optimizer, 'lr': lr})
    seen = losses(run)
    assert code == 0 and seen[-1] < seen[0] - 0.5


class LikeAGPU(Compute):
    """The CPU, treated as a GPU: checkpoints are written in the background, and logs are ten steps apart."""

    is_cpu = False


@pytest.mark.parametrize('step', [5, 8])
def test_saving_in_the_background_changes_nothing(train, step):
    """A run that saves often, is interrupted and resumed, ends with the weights of an undisturbed one."""
    stage = {'lr': 0.01, 'save_interval': 4, 'batch_size': 4}
    _, whole = train('whole', stage=stage)
    background = LikeAGPU(torch.device('cpu'))
    assert_as_undisturbed(train, whole, step, stage=stage, compute=background)
    names = [{f.name for f in (whole.parent / run / 'checkpoints').iterdir()} for run in ('whole', 'parts')]
    assert names[0] <= names[1]


def test_between_logging_points_nothing_is_recorded(train):
    _, run = train(stage={'validation_interval': 10**6}, compute=LikeAGPU(torch.device('cpu')))
    records = train_records(run)
    assert [(r['step'], r['steps']) for r in records] == [(10, 10), (12, 2)]
    _, every = train('every', stage={'validation_interval': 10**6})
    assert_equal(weights(run), weights(every))
    mean = [sum(losses(every)[:10]) / 10, sum(losses(every)[10:]) / 2]
    assert losses(run) == pytest.approx(mean, rel=1e-5)


def test_fp16_trains_with_a_scaler_whose_state_survives(train):
    """What a GPU without bf16 does, on the CPU: the loss is scaled, a resumed run continues exactly."""
    how = dict(stage={'steps': 24, 'lr': 0.01, 'save_interval': 16})
    how['compute'] = Compute(torch.device('cpu'), torch.float16)
    _, whole = train('whole', **how)
    seen = losses(whole)
    assert seen[-1] < seen[0] - 0.3
    scaler = torch.load(whole / 'checkpoints/last/optimizer.pt', weights_only=True)['scaler']
    assert scaler['scale'] > 1
    assert_as_undisturbed(train, whole, 13, **how)


def test_what_a_run_measured_is_strict_json(train):
    _, run = train(nan_from=3, nan_to=5)
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)


@pytest.mark.parametrize('packing', ['pack', 'pad'])
def test_texts_of_many_lengths_do_without_cudnn_attention(tmp_path, packing):
    """Its plans, one for each shape, cost most of a second."""
    model, seen = tiny(), []
    model.blocks[0].register_forward_pre_hook(
        lambda *_: seen.append((model.training, torch.backends.cuda.cudnn_sdp_enabled()))
    )
    fitted = make_trainer(model, tmp_path, packing=packing, steps=1)
    seen.clear()
    fitted.fit()
    fitted.final_evaluation()
    generate(model, [[1, 2]], max_new_tokens=2)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert {on for training, on in seen if training} == {packing == 'pack'}
    assert {on for training, on in seen if not training} == {False}
