"""docs/export.md: its commands run, with small models, and a model that was exported is a start again."""

import re
import shlex

from lmplay.export.__main__ import main as lmp_export
from lmplay.runs.finished import read_run
from lmplay.train.__main__ import main as lmp_trainer
from tests.helpers import ROOT

PAGE = (ROOT / 'docs' / 'export.md').read_text(encoding='utf-8')
SIZE = dict(num_blocks=4, embed_dim=32, num_heads=2, max_len=48, tokenizer='bytes')
LIKE = {
    'gpt2ish': ('gpt2-folder', dict(tie_head=True, gelu='tanh')),
    'modern': ('llama-folder', {}),
}


def commands(name):
    lines = re.findall(rf'^{name} .*$', PAGE, re.M)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_page(tiny_plan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = ['--quiet', '--device', 'cpu', '--training-plan']
    for exp, (folder, own) in LIKE.items():
        plan = str(tiny_plan({'only': {'lr': 0.01, 'steps': 20}}, model=SIZE | own))
        assert lmp_trainer(['--exp', exp, '--run-dir', f'runs/{exp}', *runs, plan]) == 0
        assert lmp_export([f'runs/{exp}', '--to', folder]) == 0
    (tmp_path / 'runs' / 'gpt2ish').rename(tmp_path / 'runs' / 'mine')
    (command,) = commands('lmp_export')
    assert lmp_export(command) == 0

    block = re.search(r'```python\n(.*?)```', PAGE, re.S)
    exec(compile(block[1], 'export.md', 'exec'), {})  # noqa: S102  the page is ours
    assert 'Once upon a time' in capsys.readouterr().out

    starts = commands('lmp_trainer')
    assert len(starts) == 3
    plan = str(tiny_plan(model=SIZE))
    for i, command in enumerate(starts):
        assert lmp_trainer([*command, '--run-dir', f'runs/{i}', *runs, plan]) == 0
        before = read_run('runs/modern' if 'modern' in command else 'runs/mine')
        started = read_run(f'runs/{i}').validations[0]['loss']
        assert before.loss() < 5 and abs(started - before.loss()) < 0.3  # from nothing it is ln 257, 5.55
