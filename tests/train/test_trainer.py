"""What the loop does when things go wrong, and what it must never do. The models are experiments given by their path."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from lmplay.base.base_model import StepContext
from lmplay.base.runner_list import find_runner
from lmplay.data.rows import Batch
from lmplay.exp.some.keys import Keys
from lmplay.runs.checkpoint import Checkpoints, load_model, read_state
from lmplay.runs.recorder import read_metrics
from lmplay.train.__main__ import main
from lmplay.train.optimizer import learning_rate
from lmplay.train.plan import Stage
from lmplay.train.trainer import Progress, StopTraining, Trainer, step_seed

MODEL = """
import torch
from torch import nn
from lmplay.base.base_model import BasicModelRunner, LMBase, LMOutput
from lmplay.base.runner_list import expose_runner
from lmplay.tokenizers import BytesTokenizer

class Troubled(LMBase):
    def __init__(self, max_len=32, nan_from=10**9, nan_to=10**9, rows_that_fit=10**9, load=0.0, log=None):
        super().__init__('troubled', max_len=max_len)
        self.tokenizer = BytesTokenizer()
        self.embed = nn.Embedding(257, 8)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(8, 257)
        self.nan_from, self.nan_to, self.rows_that_fit, self.load, self.log = nan_from, nan_to, rows_that_fit, load, log
        self.nan = False

    def before_step(self, ctx):
        self.nan = self.nan_from <= ctx.step < self.nan_to

    def after_step(self, ctx):
        if self.log:
            with open(self.log, 'a') as file:
                print(ctx.stage, ctx.step, ctx.total_steps, ctx.tokens, bool(ctx.stepped), file=file)

    def forward(self, x, cache=None):
        if self.training and x.shape[0] > self.rows_that_fit:
            raise torch.OutOfMemoryError('simulated')
        logits = self.out(self.drop(self.embed(x)))
        if self.training and self.nan:
            logits = logits * float('nan')
        metrics = {'expert_load': torch.tensor([[self.load, 1 - self.load]])} if self.load else {}
        return LMOutput(logits, metrics=metrics) if cache is None else (logits[:, -1:], cache)

@expose_runner('%s')
def runner(*args, **kwargs):
    return BasicModelRunner(Troubled, *args, **kwargs)
"""


@pytest.fixture
def train(tmp_path, tiny_plan):
    """Trains the troubled model; returns (exit code, run directory)."""
    (tmp_path / 'exp').mkdir()
    file = tmp_path / 'exp' / 'versions.py'
    file.write_text(MODEL % tmp_path.name)

    def run(name='run', stage=None, flags=(), **parameters):
        plan = tiny_plan({'s': {'steps': 12} | (stage or {})})
        sets = [f'--set={k}={v}' for k, v in parameters.items()]
        code = main(
            [
                '--exp',
                str(file),
                '--training-plan',
                str(plan),
                '--run-dir',
                str(tmp_path / name),
                '--device',
                'cpu',
                '--quiet',
                *sets,
                *flags,
            ]
        )
        return code, tmp_path / name

    return run


def weights(run):
    return load_model(run / 'checkpoints/last')[0].state_dict()


def assert_as_undisturbed(train, whole, stop, stage):
    """A run that is interrupted at step `stop`, goes on, and is given once more ends with the weights of `whole`."""
    step = Trainer._train_step

    def interrupted(self, batch, ctx, lr):
        if ctx.step == stop:
            raise StopTraining('interrupted')
        return step(self, batch, ctx, lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, '_train_step', interrupted)
        assert train('parts', stage=stage)[0] == 1
    for _ in range(2):
        assert train('parts', stage=stage)[0] == 0
    for name, w in weights(whole).items():
        assert torch.equal(w, weights(whole.parent / 'parts')[name])


def test_a_step_that_is_not_finite_is_skipped_and_told(train, tmp_path):
    code, run = train(nan_from=3, nan_to=5, log=str(tmp_path / 'log'))
    assert code == 0
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['skipped_steps'] == 2 and summary['validation_loss'] > 0
    assert all(torch.isfinite(w).all() for w in weights(run).values())
    assert [r['message'] for r in read_metrics(run) if r.get('event') == 'skipped'] == [
        f'step {i}: 1 step(s) skipped, the gradient was not finite' for i in (4, 5)
    ]
    lines = [line.split() for line in (tmp_path / 'log').read_text().splitlines()]
    assert [line[4] for line in lines] == ['True'] * 3 + ['False'] * 2 + ['True'] * 7
    assert [int(line[1]) for line in lines] == list(range(12)) and {line[2] for line in lines} == {'12'}
    assert int(lines[-1][3]) == summary['tokens']


def test_it_stops_there_if_asked_with_the_state_kept(train, capsys):
    code, run = train(stage={'on_nan': 'stop', 'save_interval': 1000}, nan_from=6, nan_to=7)
    assert code == 1
    state = json.loads((run / 'checkpoints/last/state.json').read_text())
    assert state['progress']['step'] == 7 and all(torch.isfinite(w).all() for w in weights(run).values())
    assert any('not finite at step 7' in r.get('message', '') for r in read_metrics(run))


def test_a_run_that_never_recovers_stops(train):
    code, run = train(stage={'steps': 60}, nan_from=5, nan_to=10**9)
    assert (
        code == 1 and json.loads((run / 'checkpoints/last/state.json').read_text())['progress']['step'] == 25
    )


def test_auto_halves_what_does_not_fit_without_changing_the_steps(train):
    code, run = train(stage={'mini_batch_size': 'auto'}, rows_that_fit=2)
    assert code == 0
    assert json.loads((run / 'checkpoints/last/state.json').read_text())['progress']['mini_batch_size'] == 2
    code, plain = train('plain', stage={'mini_batch_size': 2}, rows_that_fit=2)
    for name, w in weights(plain).items():
        assert torch.equal(w, weights(run)[name])


def test_without_auto_it_says_what_to_do(train, capsys):
    code, _ = train(stage={'mini_batch_size': 4}, rows_that_fit=2)
    assert code == 2 and 'Use --mini-batch-size auto' in capsys.readouterr().err


@pytest.mark.parametrize('on_collapse, code', [('warn', 0), ('stop', 1), ('snapshot', 0)])
def test_the_collapse_alarm(train, on_collapse, code):
    got, run = train(stage={'on_collapse': on_collapse, 'validation_interval': 8}, load=0.75)
    assert got == code
    events = [r['event'] for r in read_metrics(run) if r['kind'] == 'event']
    assert events[:3] == ['warning', 'warning', 'collapse']
    snapshots = [f.name for f in (run / 'checkpoints').iterdir() if f.name.startswith('collapse-')]
    assert bool(snapshots) == (on_collapse == 'snapshot')
    assert (json.loads((run / 'checkpoints/last/state.json').read_text())['progress']['step'] == 6) == (
        on_collapse == 'stop'
    )


def test_no_alarm_for_a_balanced_load(train):
    _, run = train(stage={'validation_interval': 8}, load=0.55)
    assert not [r for r in read_metrics(run) if r['kind'] == 'event']


def test_evaluation_changes_nothing_in_training(train):
    """However often it is evaluated and saved, the weights are the same: no gradients, no random numbers, no mode left behind."""
    _, rare = train('rare', stage={'validation_interval': 10**6, 'save_interval': 10**6})
    _, often = train('often', stage={'validation_interval': 4, 'save_interval': 4})
    for name, w in weights(rare).items():
        assert torch.equal(w, weights(often)[name])


def test_the_loop_neither_decodes_nor_waits(train, monkeypatch):
    """Between logging points no step turns ids into text or tensors into numbers."""
    from lmplay.tokenizers import BytesTokenizer
    from lmplay.train import trainer

    calls = []
    monkeypatch.setattr(BytesTokenizer, 'decode', lambda self, ids: calls.append('decode') or '')
    original = trainer.Trainer._train_step

    def watched(self, batch, ctx, lr):
        before = len(calls)
        read = {name: getattr(torch.Tensor, name) for name in ('tolist', 'numpy')}
        for name in read:
            monkeypatch.setattr(torch.Tensor, name, lambda *a, n=name: calls.append(n) or read[n](*a))
        out = original(self, batch, ctx, lr)
        for name, method in read.items():
            monkeypatch.setattr(torch.Tensor, name, method)
        assert len(calls) == before, calls
        return out

    monkeypatch.setattr(trainer.Trainer, '_train_step', watched)
    assert train()[0] == 0
    assert 'decode' in calls  # evaluation does show an example


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock on which the first step of a run takes 5 s, every other half a second, and nothing else any time."""
    from lmplay.train import trainer

    now = [0.0]
    original = trainer.Trainer._train_step

    def ticking(self, batch, ctx, lr):
        now[0] += 0.5 if ctx.step else 5.0
        return original(self, batch, ctx, lr)

    monkeypatch.setattr(trainer.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(trainer, 'measured_flops', lambda device, dtype: 1e8)
    monkeypatch.setattr(trainer.Trainer, '_train_step', ticking)


TIMED = {'steps': None, 'seconds': 20.1, 'lr': 0.01, 'warmup': 0.2}


def test_a_stage_of_so_many_seconds_ends_there_and_its_schedule_fits(train, slow_clock):
    code, run = train(stage=TIMED)
    records = read_metrics(run)
    steps = [r for r in records if r['kind'] == 'train']
    assert code == 0 and [r['seconds'] for r in steps] == [
        5 + n / 2 for n in range(31)
    ]  # 20.0 is nearest to 20.1
    stage = Stage(dataset='embedded', lr=0.01, warmup=0.2)
    assert (
        0 < steps[0]['lr'] == steps[1]['lr'] / 2 < steps[2]['lr']
    )  # how many steps there will be is only guessed yet
    assert [r['lr'] for r in steps[2:]] == pytest.approx(
        [learning_rate(stage, step, 31) for step in range(2, 31)]
    )
    at = [r['seconds'] for r in records if r['kind'] == 'validation']
    assert at[0] == 5.0 and at[-1] == 20.0 and max(b - a for a, b in zip(at, at[1:])) <= 20.1 / 20 + 0.5
    assert read_state(run / 'checkpoints/last')['progress']['stage_seconds'] == 20.0


def test_a_stage_of_so_many_seconds_goes_on_where_its_clock_stood(train, slow_clock):
    _, whole = train('whole', stage=TIMED)
    assert_as_undisturbed(train, whole, 13, TIMED)
    assert json.loads((whole.parent / 'parts/summary.json').read_text())['steps'] == 31


def test_the_first_step_is_trained_however_short_the_time(train, slow_clock):
    code, run = train(stage=TIMED | {'seconds': 0.01})
    assert code == 0 and json.loads((run / 'summary.json').read_text())['steps'] == 1


@pytest.mark.parametrize(
    'name', ['gpt2ish', 'gpt2_moe', 'gpt2_moe_top2', 'pythia_moe', 'some', 'some_baseline']
)
def test_a_step_reads_nothing_back_from_the_device(name, monkeypatch):
    """A whole step of the full-size model where no tensor has values: whoever reads one, and on a GPU would wait for it, raises."""
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device: False)  # it knows no device 'meta'
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    model = (
        find_runner(name).function().build('meta').to(torch.bfloat16)
    )  # what autocast would make of products
    for module in model.modules():
        if isinstance(module, Keys):
            module.float()
    stepped = []
    optimizer = SimpleNamespace(
        param_groups=[],
        zero_grad=lambda set_to_none: None,
        step=lambda: stepped.append(1),
        _step_supports_amp_scaling=True,
    )
    run = SimpleNamespace(
        device=torch.device('meta'),
        amp_dtype=None,
        progress=Progress(),
        flops_per_token=lambda length: 1.0,
        seed=0,
        settings=SimpleNamespace(compile_model=False),
    )
    data = SimpleNamespace(row_length=16, samples=4, seconds=0, mixture=SimpleNamespace(tokens_per_row=16))
    trainer = Trainer(run, model, optimizer, Stage(dataset='embedded', batch_size=4, mini_batch_size=2), data)
    x = torch.zeros(4, 16, dtype=torch.int64)
    batch = Batch(x, x, torch.full((4,), 16), 64)
    norm = trainer.train_step(batch, StepContext('s', 0, 10, 0), 1e-3)
    trainer.window.count(batch, norm, 0.0)
    assert stepped and norm.is_meta and optimizer.found_inf.is_meta
    with pytest.raises(RuntimeError, match='meta'):
        trainer.window.read()  # the logging point, where it is read


def test_seeds_of_steps_differ():
    seeds = {step_seed(seed, stage, step) for seed in range(5) for stage in 'ab' for step in range(50)}
    assert len(seeds) == 500 and all(0 <= s < 2**63 for s in seeds)


def test_amp_on_the_cpu_trains_and_resumes(train):
    code, run = train(flags=['--amp'])
    assert code == 0 and json.loads((run / 'summary.json').read_text())['validation_loss'] < 5.7


def test_loss_falls_and_the_seed_decides_everything(train):
    runs = [
        train(name, stage={'steps': 60, 'lr': 0.01}, flags=['--seed', seed])[1]
        for name, seed in (('a', '3'), ('b', '3'), ('c', '4'))
    ]
    losses = [[r['loss'] for r in read_metrics(run) if r['kind'] == 'train'] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][-1] < losses[0][0] - 1.0


@pytest.mark.parametrize('optimizer', ['adam', 'adagrad', 'sgd', 'rmsprop'])
def test_every_optimizer_lowers_the_loss(train, optimizer):
    lr = {'sgd': 3.0, 'adagrad': 0.05}.get(optimizer, 0.01)
    code, run = train(stage={'steps': 40, 'optimizer': optimizer, 'lr': lr})
    losses = [r['loss'] for r in read_metrics(run) if r['kind'] == 'train']
    assert code == 0 and losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize('stop', [5, 8])
def test_saving_in_the_background_changes_nothing(train, monkeypatch, stop):
    """As on a GPU: a run that saves often, is interrupted and goes on, ends with the weights of one that was not disturbed."""
    from lmplay.train import stages

    stage = {'lr': 0.01, 'save_interval': 4, 'batch_size': 4}
    _, whole = train('whole', stage=stage)
    monkeypatch.setattr(stages, 'Checkpoints', lambda *a, **k: Checkpoints(*a, **k | {'background': True}))
    assert_as_undisturbed(train, whole, stop, stage)
    assert {f.name for f in (whole / 'checkpoints').iterdir()} <= {
        f.name for f in (whole.parent / 'parts/checkpoints').iterdir()
    }


def test_fp16_trains_with_a_scaler_whose_state_survives(train, monkeypatch):
    """What a GPU without bf16 does, on the CPU: the loss is scaled, an overflow is skipped, a resumed run goes on exactly."""
    from lmplay.train import stages

    monkeypatch.setattr(stages, 'amp_dtype', lambda device, amp: torch.float16)
    stage = {'steps': 24, 'lr': 0.01, 'save_interval': 16}
    _, whole = train('whole', stage=stage)
    losses = [r['loss'] for r in read_metrics(whole) if r['kind'] == 'train']
    assert losses[-1] < losses[0] - 0.3
    scaler = torch.load(whole / 'checkpoints/last/optimizer.pt', weights_only=True)['scaler']
    assert scaler['scale'] > 1
    assert_as_undisturbed(train, whole, 13, stage)
