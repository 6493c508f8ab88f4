import json
import os
import subprocess
import sys
import threading

import pytest

from lmplay.files import locked, write_json, write_text
from tests.helpers import ROOT


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / 'a.txt'
    for text in ('one', 'zwei ü 漢'):
        write_text(file, text)
        assert file.read_text(encoding='utf-8') == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_sees_the_old_text_or_the_new_one(tmp_path):
    file = tmp_path / 'a.txt'
    texts = {letter * 100_000 for letter in 'ab'}
    write_text(file, 'a' * 100_000)
    done = threading.Event()

    def write():
        while not done.is_set():
            for text in texts:
                write_text(file, text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {file.read_text() for _ in range(300)} <= texts
    finally:
        done.set()
        writer.join()


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path):
    file = tmp_path / 'a.json'
    write_json(file, {'a': 1})
    with pytest.raises(UnicodeEncodeError):
        write_text(file, '\ud800')
    assert json.loads(file.read_text()) == {'a': 1}


def test_what_json_does_not_know_is_its_string(tmp_path):
    write_json(tmp_path / 'a.json', {'where': tmp_path, 'n': 1, 'list': [None]})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'where': str(tmp_path), 'n': 1, 'list': [None]}


TRY = (
    'import sys; from pathlib import Path; from lmplay.files import locked\n'
    'with locked(Path(sys.argv[1])): pass'
)


def taken(file):
    """Whether another process fails to lock the file."""
    done = subprocess.run(
        [sys.executable, '-c', TRY, str(file)],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode or 'BlockingIOError' in done.stderr, done.stderr
    return bool(done.returncode)


def test_a_lock_is_held_inside_and_free_afterwards(tmp_path):
    file = tmp_path / '.lock'
    with locked(file):
        assert taken(file)
    assert not taken(file)
    with pytest.raises(ValueError, match='within'), locked(file):
        raise ValueError('within')
    assert not taken(file)
