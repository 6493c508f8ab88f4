"""Files that appear whole or not at all, and locks between processes."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def write_text(file: Path, text: str) -> None:
    """Replaces the file's content in one step: a reader sees the old text or the new one."""
    temporary = file.with_name(f'.{file.name}')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, file)


def write_json(file: Path, content: Any) -> None:
    """As `write_text`, of JSON; a value that JSON lacks is written as its string."""
    write_text(file, json.dumps(content, indent=1, default=str))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, unless another process was first."""
    temporary = folder.with_name(f'.{folder.name}.{os.getpid()}')
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[IO]:
    """Creates the file and locks it exclusively. Raises BlockingIOError where another process has."""
    with open(file, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
