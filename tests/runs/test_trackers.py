"""Trackers: those of lmplay, and one that a package brings."""

import importlib
import json
import subprocess
import sys

import pytest

from lmplay.errors import UserError
from lmplay.runs.recorder import Recorder
from lmplay.runs.trackers import OWN

PLUGIN = """
import json

class Fake:
    def __init__(self, run):
        if run.name == 'refused':
            raise ConnectionError('nobody is there.')
        self.file = open(run.folder / 'fake.jsonl', 'a')
        self.write('begin', run.resumed_at, run.config)

    def write(self, *what):
        print(json.dumps(what), file=self.file, flush=True)

    def log(self, scalars, samples):
        if samples == 13:
            raise OSError('the line is down')
        self.write('log', samples, scalars)

    def flush(self):
        self.write('flush')

    def close(self):
        self.write('close')
        self.file.close()
"""
TRACKIO = """
given = []

class Run:
    def log(self, metrics, step):
        given.append((metrics, step))

    def finish(self):
        given.append('finish')

def init(**options):
    given.append(options)
    return Run()
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package with a tracker `fake`, one named as one of lmplay's, and one that is broken."""
    site = tmp_path / 'site'
    (site / 'fake_tracker-1.dist-info').mkdir(parents=True)
    (site / 'fake_tracker.py').write_text(PLUGIN)
    (site / 'fake_tracker-1.dist-info' / 'METADATA').write_text('Metadata-Version: 2.1\nName: fake_tracker\n')
    (site / 'fake_tracker-1.dist-info' / 'entry_points.txt').write_text(
        '[lmplay.trackers]\nfake = fake_tracker:Fake\n'
        'wandb = fake_tracker:Fake\nbroken = fake_tracker:None_\n'
    )
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop('fake_tracker', None)


def point(samples: int) -> dict:
    return {
        'stage': 'a',
        'step': samples,
        'samples': samples,
        'tokens': samples,
        'loss': 1.0,
        'accuracy': 0.5,
    }


def read(folder) -> list:
    return [json.loads(line) for line in (folder / 'fake.jsonl').read_text().splitlines()]


def test_a_package_brings_a_tracker(plugin, tmp_path):
    run = tmp_path / 'run'
    recorder = Recorder(run, report_to=['fake', 'fake'], run_name='run', config={'lr': 1e-3, 'x': (1, 2)})
    assert 'fake_tracker' in sys.modules
    recorder.train(point(1))
    offsets = recorder.offsets()
    recorder.train(point(2))
    recorder.close()
    recorder = Recorder(run, report_to=['fake'], offsets=offsets)
    recorder.validation(point(2))
    recorder.close()
    first, *others = read(run)
    assert first == ['begin', None, {'lr': 1e-3, 'x': [1, 2]}]
    assert others[0] == ['log', 1, {'train/loss': 1.0, 'train/accuracy': 0.5}]
    assert [line[0] for line in others] == ['log', 'flush', 'log', 'close', 'begin', 'log', 'close']
    assert others[4] == ['begin', 1, {}]


def test_one_that_fails_ends_no_run(plugin, tmp_path, caplog):
    recorder = Recorder(tmp_path / 'run', report_to=['fake'])
    for n in (12, 13, 14):
        recorder.train(point(n))
    recorder.close()
    assert [line[0] for line in read(tmp_path / 'run')] == ['begin', 'log']
    assert 'Fake is given no more: it raised OSError: the line is down.' in caplog.text
    assert (tmp_path / 'run' / 'metrics.jsonl').read_text().count('\n') == 3


@pytest.mark.parametrize(
    'name, message',
    [
        ('tensorbord', "Unknown tracker 'tensorbord'.*Did you mean 'tensorboard'.*fake"),
        ('wandb', "two packages offer a tracker 'wandb': lmplay and fake_tracker:Fake"),
        ('broken', "the tracker 'broken' .fake_tracker:None_. raised AttributeError"),
    ],
)
def test_what_cannot_be_had_is_told_before_anything_is_written(plugin, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        Recorder(tmp_path / 'run', report_to=[name])
    assert not (tmp_path / 'run').exists()


def test_one_that_cannot_start_is_told(plugin, tmp_path):
    with pytest.raises(UserError, match='Fake raised ConnectionError: nobody is there.$'):
        Recorder(tmp_path / 'run', report_to=['fake'], run_name='refused')


@pytest.mark.parametrize('name', OWN)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=rf'pip install lmplay\[{name}\]'):
        Recorder(tmp_path / 'run', report_to=[name])
    assert not (tmp_path / 'run').exists()


def test_none_is_imported_unless_asked_for(tmp_path):
    code = (
        'import sys; from pathlib import Path; from lmplay.runs.recorder import Recorder\n'
        f'Recorder(Path({str(tmp_path)!r})).close()\n'
        'assert not {"wandb", "trackio", "tensorboard", "torch"} & sys.modules.keys()'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_trackio_is_given(tmp_path, monkeypatch):
    (tmp_path / 'trackio.py').write_text(TRACKIO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'trackio', raising=False)
    given = importlib.import_module('trackio').given
    for offsets in (None, {}):
        recorder = Recorder(
            tmp_path, report_to=['trackio'], run_name='mine', config={'lr': 1}, offsets=offsets
        )
        recorder.train(point(3))
        recorder.close()
    assert given[0]['project'] == 'lmplay' and given[0]['name'] == 'mine' and given[0]['config'] == {'lr': 1}
    assert [g['resume'] for g in given if isinstance(g, dict)] == ['never', 'allow']
    assert given[1] == ({'train/loss': 1.0, 'train/accuracy': 0.5}, 3) and given[2] == 'finish'
