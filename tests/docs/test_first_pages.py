"""docs/start.md and docs/first.md: what they say to type works, with a small model on a small text."""

import json
import re
import shlex

import pytest

from lmplay.compare.__main__ import main as lmp_compare
from lmplay.generate.__main__ import main as lmp_generator
from lmplay.new.__main__ import main as lmp_new
from lmplay.plots.__main__ import main as lmp_plotstats
from lmplay.train.__main__ import main as lmp_trainer
from tests.helpers import ROOT

START, FIRST = ((ROOT / 'docs' / f'{page}.md').read_text(encoding='utf-8') for page in ('start', 'first'))
SMALL = ['--num-blocks', '1', '--embed-dim', '32', '--num-heads', '2', '--max-len', '32', '--steps', '2']
SMALL += ['--batch-size', '4', '--device', 'cpu', '--quiet']


def line(page: str, beginning: str) -> list[str]:
    """The options of the page's one command that begins so."""
    (found,) = re.findall(rf'^{re.escape(beginning)}.*$', page, re.M)
    return shlex.split(found, comments=True)[1:]


@pytest.fixture(autouse=True)
def own_text(corpus, tmp_path, monkeypatch):
    """my_text/ with a file for each of forty documents."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my_text').mkdir()
    for i, text in enumerate(corpus.read_text().splitlines()[:40]):
        (tmp_path / 'my_text' / f'{i}.txt').write_text(json.loads(text)['text'])


def test_getting_started(tmp_path, capsys):
    own = line(START, 'lmp_trainer --exp gpt2ish --training-plan quickstart --dataset my_text/')
    assert lmp_trainer([*own, *SMALL]) == 0
    (tmp_path / 'runs' / 'my_text').rename(tmp_path / 'runs' / 'gpt2ish-quickstart')
    assert lmp_generator([*line(START, 'lmp_generator'), '--device', 'cpu']) == 0
    assert 'def main(' in capsys.readouterr().out
    assert lmp_plotstats(line(START, 'lmp_plotstats')) == 0


def edited(model: str) -> str:
    """A model.py after the changes that docs/first.md shows."""
    for diff in re.findall(r'```diff\n(.*?)```', FIRST, re.S):
        before, after = (
            ''.join(row[1:] + '\n' for row in diff.splitlines() if row[0] in kinds) for kinds in (' -', ' +')
        )
        assert model.count(before) == 1
        model = model.replace(before, after)
    return model


def test_the_first_experiment(tmp_path, capsys):
    assert lmp_new([*line(FIRST, 'lmp_new embed_norm'), '--to', str(tmp_path)]) == 0
    model, versions = tmp_path / 'embed_norm' / 'model.py', tmp_path / 'embed_norm' / 'versions.py'
    model.write_text(edited(model.read_text()))
    assert 'x = self.dropout(self.embed_norm(' in model.read_text()
    assert lmp_new(['--check', str(versions)]) == 0
    assert 'WRONG' not in capsys.readouterr().out

    (plan,) = re.findall(r'```json\n(.*?)```', FIRST, re.S)
    (tmp_path / 'my_plan.json').write_text(plan)
    assert lmp_trainer([*line(FIRST, 'lmp_trainer --training-plan'), *SMALL]) == 0
    compare = [
        word.replace('embed_norm', str(versions))
        for word in line(FIRST, 'lmp_compare gpt2ish embed_norm --plan my_')
    ]
    small = ['--set', 'num_blocks=1', '--set', 'embed_dim=32', '--set', 'num_heads=2', '--dry-run']
    assert lmp_compare([*compare, *small, '--device', 'cpu']) == 0
    assert 'embed_norm' in capsys.readouterr().out
