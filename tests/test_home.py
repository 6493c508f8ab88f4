"""`~` is the home directory wherever a path is given: no shell fills it in in Python, in a plan, or behind
`--out=`."""

import json
import shutil

import pytest

import lmplay
from lmplay.base.runner_list import find_entry
from lmplay.compare.api import verify
from lmplay.compare.leaderboard import leaderboard
from lmplay.errors import UserError
from lmplay.export.__main__ import main as lmp_export
from lmplay.export.clean import main as lmp_cleanmodel
from lmplay.generate.__main__ import main as lmp_generator
from lmplay.new.__main__ import main as lmp_new
from lmplay.plots.__main__ import main as lmp_plotstats
from lmplay.routing.__main__ import main as lmp_routing
from lmplay.tokenizers import get_tokenizer
from lmplay.train.__main__ import main as lmp_trainer

MODEL = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=32, tokenizer='bytes')
STAGE = dict(dataset='~/stories.jsonl', steps=1, batch_size=2, mini_batch_size=2, validation_bytes=300)


@pytest.fixture
def home(tmp_path, monkeypatch, corpus):
    """A home directory with a plan and its data; the work goes on elsewhere."""
    home, elsewhere = tmp_path / 'home', tmp_path / 'elsewhere'
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('LMP_DATASETS', '~/cache')
    monkeypatch.chdir(elsewhere)
    shutil.copy(corpus, home / 'stories.jsonl')
    (home / 'plan.json').write_text(json.dumps({'model': MODEL, 'stages': {'s': STAGE}}))
    yield home
    assert [*elsewhere.iterdir()] == [], 'nothing is written to a folder called ~'


def test_what_is_written_and_read_again(home):
    assert lmp_trainer(['--training-plan=~/plan.json', '--run-dir=~/a', '--device=cpu', '--quiet']) == 0
    again = dict(plan='~/plan.json', run_dir='~/b', init_from='~/a', device='cpu', quiet=True)
    assert lmplay.train(**again).folder == home / 'b'
    assert lmplay.load('~/a').folder == home / 'a' and (home / 'cache').is_dir()
    (home / 'prompt.txt').write_text('Ada')
    assert lmp_generator(['~/a', '--prompt-file=~/prompt.txt', '--max-new-tokens=2', '--device=cpu']) == 0
    assert lmp_export(['~/a', '--to=~/exported', '--format=safetensors']) == 0
    assert lmp_cleanmodel(['~/a', '--model-out=~/clean']) == 0
    assert lmp_trainer(['--lr=0.1', '--dump-config=~/c.yaml']) == 0
    assert lmp_trainer(['--use-config=~/c.yaml', '--dump-config']) == 0
    assert lmp_new(['mine', '--from=gpt2ish', '--to=~']) == 0
    assert find_entry('~/mine').name == find_entry('~/mine/versions.py').name == 'mine'
    assert {'exported', 'clean', 'c.yaml'} <= {file.name for file in home.iterdir()}


@pytest.mark.parametrize(
    'ask',
    [
        lambda none: lmplay.compare(runs=[none], out='~/compared'),
        lambda none: leaderboard([none], metric='loss', out=None),
        lambda none: verify(none),
        lambda none: get_tokenizer(f'{none}/tokenizer.json'),
        lambda none: lmplay.xray(none),
    ],
)
def test_what_is_not_there_is_looked_for_there(home, ask):
    with pytest.raises(UserError, match='home/none'):
        ask('~/none')


@pytest.mark.parametrize('command', [lmp_plotstats, lmp_routing])
def test_what_commands_do_not_find(home, command, capsys):
    assert command(['~/none']) == 2
    assert 'home/none' in capsys.readouterr().err
