import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lmplay.errors import UserError
from lmplay.runs.directory import RunDirectory
from tests.helpers import ROOT


def test_a_new_directory_is_made_with_its_parents_and_known_as_new(tmp_path):
    directory = RunDirectory(tmp_path / 'runs' / 'a')
    for new in (True, False):
        with directory.opened() as was_new:
            assert was_new is new and directory.path.is_dir()
    assert directory.checkpoints == directory.path / 'checkpoints'


HOLD = """
import sys
from lmplay.runs.directory import RunDirectory
with RunDirectory(sys.argv[1]).opened():
    print('held', flush=True)
    sys.stdin.read()
"""


def hold(folder):
    """A process that has the directory open until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert process.stdout.readline() == b'held\n'
    return process


@pytest.mark.parametrize('end', ['close', 'kill'])
def test_one_process_at_a_time(tmp_path, end):
    """The lock goes with its process, however that ends."""
    directory = RunDirectory(tmp_path / 'run')
    with hold(directory.path) as process:
        with pytest.raises(UserError, match='Another process is training in .*another --run-dir'):
            with directory.opened():
                pytest.fail('two processes in one directory')
        process.kill() if end == 'kill' else process.stdin.close()
        process.wait()
        with directory.opened() as new:
            assert not new


def test_an_error_within_is_not_one_of_opening_it(tmp_path):
    with pytest.raises(OSError, match='of its own'), RunDirectory(tmp_path / 'run').opened():
        raise OSError('of its own')
    with RunDirectory(tmp_path / 'run').opened():  # and it is free again
        pass


def test_a_directory_that_can_not_be_had_is_told(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file', tmp_path / 'file' / 'run', tmp_path / ('a' * 300)):
        with pytest.raises(UserError, match="Can't write the run directory"):
            with RunDirectory(path).opened():
                pytest.fail('it was opened')


WRITTEN = ('settings.json', 'plan.json', 'environment.json', 'stages.json', 'metrics.jsonl', 'samples.jsonl')


def test_a_start_that_failed_is_taken_back(tmp_path):
    directory = RunDirectory(tmp_path / 'run')
    with directory.opened():
        for name in (*WRITTEN, 'train_stats.csv', 'validate_stats.csv'):
            (directory.path / name).write_text('half')
        directory.take_back()
        assert not directory.path.exists()
    directory.take_back()  # nothing there is nothing to do
    assert tmp_path.exists()


@pytest.mark.parametrize('foreign', ['notes.txt', 'checkpoints/step-00000001/state.json', 'mine/.hidden'])
def test_taking_back_leaves_what_it_did_not_write(tmp_path, foreign):
    directory = RunDirectory(tmp_path / 'run')
    with directory.opened():
        file = directory.path / foreign
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('precious')
        directory.write(settings={}, plan={})
        directory.take_back()
    assert [str(f.relative_to(directory.path)) for f in directory.path.rglob('*') if f.is_file()] == [foreign]
    assert file.read_text() == 'precious'


def test_files_are_json_and_whole(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write(settings={'lr': 0.1, 'where': tmp_path}, plan=[1])
    assert json.loads((tmp_path / 'settings.json').read_text()) == {'lr': 0.1, 'where': str(tmp_path)}
    assert sorted(f.name for f in tmp_path.iterdir()) == ['plan.json', 'settings.json']


def test_held_out_losses_are_arrays_without_code(tmp_path):
    documents = {
        'hash': np.array([1, 2], np.uint64),
        'domain': np.array(['a', 'b']),
        'loss': np.array([0.5, 1.5]),
    }
    documents |= {name: np.array([3, 4]) for name in ('bytes', 'right', 'tokens')}
    for _ in range(2):  # a stage that is trained again replaces its file
        RunDirectory(tmp_path).write_held_out('one', documents)
    assert [f.name for f in tmp_path.iterdir()] == ['held_out-one.npz']
    with np.load(tmp_path / 'held_out-one.npz') as found:
        assert {k: found[k].tolist() for k in documents} == {k: v.tolist() for k, v in documents.items()}
