"""A run says what it takes, and one that does not fit into memory is not started."""

import pytest

from lmplay.device import available_memory
from lmplay.train import cost
from lmplay.train.__main__ import main
from lmplay.train.cost import training_memory
from tests.helpers import tiny

BIG = ['--exp', 'gpt2ish', '--num-blocks', '1', '--embed-dim', '16', '--num-heads', '1', '--max-len', '64']


@pytest.fixture
def machine(monkeypatch):
    """A machine with so much free memory, on which no pass is light."""

    def has(size: int):
        monkeypatch.setattr(cost, 'LIGHT', 0.0)
        monkeypatch.setattr(cost, 'available_memory', lambda: size)

    return has


def run(tmp_path, corpus, *flags):
    short = [
        '--steps',
        '1',
        '--batch-size',
        '4',
        '--validation-bytes',
        '300',
        '--device',
        'cpu',
        '--dataset',
        str(corpus),
    ]
    return main([*BIG, *short, '--set', 'tokenizer=bytes', '--run-dir', str(tmp_path / 'run'), *flags])


def test_a_run_that_does_not_fit_is_told_and_not_started(machine, tmp_path, corpus, capsys):
    model = tiny(num_heads=1, max_len=64, attn_dropout=0.1, ff_dropout=0.1, embed_dropout=0.1).to('meta')
    one, four = (sum(training_memory(model, rows=n, length=64, amp=False).values()) for n in (1, 4))
    machine(cost.PYTHON + cost.PER_ENTRY * 257 + (one + four) // 2)
    assert run(tmp_path, corpus) == 2
    told = capsys.readouterr().err
    assert '4 x 64 tokens at a time' in told and '--mini-batch-size 1 needs' in told
    assert '--yes starts it' in told and not (tmp_path / 'run').exists()
    assert run(tmp_path, corpus, '--mini-batch-size', '1', '--quiet') == 0


def test_yes_starts_it_all_the_same(machine, tmp_path, corpus, capsys):
    machine(1)
    assert run(tmp_path, corpus) == 2 and '--mini-batch-size 1' not in capsys.readouterr().err
    assert run(tmp_path, corpus, '--yes', '--quiet') == 0


def test_a_stage_of_hours_says_so(monkeypatch, tmp_path, corpus, capsys):
    monkeypatch.setattr(cost, 'SLOW', 0.0)
    monkeypatch.setattr(cost, 'measured_flops', lambda *_: 1.0)
    assert run(tmp_path, corpus, '--row-length', '8') == 0
    assert (
        'here (lmp_trainer without arguments trains a small model within minutes)' in capsys.readouterr().err
    )


def test_memory_of_this_machine():
    assert 2**20 < available_memory() < 2**50
