"""The benchmark of a GPU, tried on the CPU."""

import json

import pytest

from benchmarks import gpu
from benchmarks.gpu import parts
from benchmarks.gpu.calls import Bench, PartError, call, several


def fails(bench, limit):
    raise PartError('it broke')


def breaks(bench, limit):
    raise ZeroDivisionError('also broke')


def works(bench, limit):
    return [{'name': 'a | b', 'figure': 3, 'nothing': None}]


def use(monkeypatch, **runs):
    made = [parts.Part(name, f'what {name} is for', 60, run) for name, run in runs.items()]
    monkeypatch.setattr(gpu, 'PARTS', made)


def test_a_part_that_fails_ends_no_other_and_a_rerun_does_only_what_is_missing(tmp_path, monkeypatch, capsys):
    use(monkeypatch, first=fails, second=breaks, third=works)
    given = ['--out', str(tmp_path), '--device', 'cpu', '--tiny']
    assert gpu.main(given) == 1
    found = json.loads((tmp_path / 'gpu.json').read_text())['parts']
    assert [part['failure'] for part in found] == ['it broke', 'ZeroDivisionError: also broke', None]
    page = (tmp_path / 'gpu.md').read_text()
    assert 'Failed: it broke' in page and '| a \\| b | 3 |  |' in page
    (tmp_path / 'first.json').unlink()
    use(monkeypatch, first=works, second=works, third=fails)
    (tmp_path / 'second.json').unlink()
    assert gpu.main(given) == 0 and 'failed: none' in capsys.readouterr().out


def test_no_part_begins_when_the_time_is_over(tmp_path, monkeypatch, capsys):
    use(monkeypatch, only=works)
    assert gpu.main(['--out', str(tmp_path), '--minutes', '0']) == 0
    assert 'Missing: only' in capsys.readouterr().out and not (tmp_path / 'only.json').exists()


def test_a_command_that_fails_or_takes_too_long_is_told_with_its_last_words():
    with pytest.raises(PartError, match='exit code 3; last lines: gone'):
        call([parts.PYTHON, '-c', 'print("gone"); raise SystemExit(3)'], 60)
    with pytest.raises(PartError, match='took more than 0 s'):
        call([parts.PYTHON, '-c', 'import time; time.sleep(60)'], 0.1)


def test_a_training_and_the_machine_are_measured(tmp_path, cache, monkeypatch):
    monkeypatch.setenv('LMP_DATASETS', str(cache))
    bench = Bench(tmp_path, 'cpu', True)
    padded = parts.Training('padded', 'gpt2ish', parts.EAGER, stage=parts.PADDED)
    wrong = parts.Training('wrong', 'gpt2ish', ('--no-such-option',))
    good, bad = several(padded, wrong)(bench, 120)
    assert good['tokens_per_second'] > 0 and good['memory_gb'] > 0 and good['loss'] > 0
    assert bad['name'] == 'wrong' and 'no-such-option' in bad['failure']
    assert {'driver', 'torch', 'C compiler'} <= {row['what'] for row in parts.machine(bench, 60)}
