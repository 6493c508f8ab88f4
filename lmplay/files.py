"""Files that appear whole or not at all, and locks between processes."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def write_text(file: Path, text: str) -> None:
    """Replaces the file's content in one step: a reader sees the old text or the new one."""
    temporary = file.with_name(f'.{file.name}')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, file)


def write_json(file: Path, content: Any) -> None:
    """As `write_text`, of JSON; what JSON does not know is written as its string."""
    write_text(file, json.dumps(content, indent=1, default=str))


@contextlib.contextmanager
def locked(file: Path) -> Iterator[IO]:
    """Holds an exclusive lock on the file, which is created. Raises BlockingIOError where another process holds it."""
    with open(file, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
