"""The source of the models that a run trains, kept in the run's directory.

    RUN/source/          the folder of the experiment's versions.py: its .py and .json files
    RUN/source/FOLDER/   the same, where the stages train experiments of several folders

It is kept to be read and compared. Loading a run executes nothing of it: a model is always built from the
experiment as it is installed.
"""

import itertools
import json
import os
from collections import deque
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..base.runner_list import Entry
from ..files import new_folder, write_json

SOURCE = 'source'
ORIGINS = '.origins.json'  # folder of RUN/source -> where its files come from
SUFFIXES = ('.py', '.json')
CACHES = ('__pycache__', 'node_modules', 'build', 'dist')
MOST_BYTES = 1_000_000  # of a file
MOST_FILES, MOST_FOLDERS = 500, 200  # of an experiment; its versions.py may stand in a crowded folder


def keep_source(run_dir: Path, experiments: Iterable[Entry]) -> None:
    """Copies the source of these experiments into the run, in one step.

    Where the run has kept another source, that moves to RUN/source-before-1, -2, ...
    """
    places = dict.fromkeys(place for entry in experiments if (place := origin(entry)).exists())
    origins: dict[str, Path] = {}
    for place in places:
        name = place.name if len(places) > 1 else ''
        origins[_free(name, origins)] = place
    files = {
        f'{name}/{path}' if name else path: content
        for name, place in origins.items()
        for path, content in read_files(place).items()
    }
    folder = run_dir / SOURCE
    if folder.exists():
        if read_files(folder) == files:
            return
        os.rename(folder, run_dir / _free(f'{SOURCE}-before-1', os.listdir(run_dir)))
    with new_folder(folder) as temporary:
        for path, content in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
        write_json(temporary / ORIGINS, {name: str(place) for name, place in origins.items()})


def origin(entry: Entry) -> Path:
    """The folder around an experiment's versions.py; of one that a script defines, the script alone."""
    file = Path(entry.file).resolve()
    return file if entry.module == '__main__' else file.parent


def kept_source(run_dir: Path) -> dict[str, str]:
    """Path relative to RUN/source -> text; empty where none was kept."""
    return {path: content.decode(errors='replace') for path, content in read_files(run_dir / SOURCE).items()}


def changed_source(run_dir: Path) -> list[str]:
    """The kept files that are no longer the same where they came from: edited, new or gone."""
    try:
        origins = dict(json.loads((run_dir / SOURCE / ORIGINS).read_text()))
    except (OSError, ValueError, TypeError):
        return []
    now: dict[str, bytes] = {}
    for name, place in origins.items():
        now |= {f'{name}/{path}' if name else path: b for path, b in read_files(Path(str(place))).items()}
    kept = read_files(run_dir / SOURCE)
    return sorted(path for path in kept.keys() | now.keys() if kept.get(path) != now.get(path))


def read_files(place: Path) -> dict[str, bytes]:
    """Relative path -> content of the source files of a folder, or of one file; empty where it is missing."""
    if place.is_file():
        return {place.name: place.read_bytes()}
    found: dict[str, bytes] = {}
    root = place.resolve()
    for file in _source_files(root):
        with suppress(OSError):
            if file.resolve().is_relative_to(root) and file.stat().st_size <= MOST_BYTES:
                found[file.relative_to(root).as_posix()] = file.read_bytes()
        if len(found) == MOST_FILES:
            break
    return found


def _source_files(root: Path) -> Iterator[Path]:
    """The source files at and below a folder, nearest first. Caches, hidden folders, links to folders and
    run directories are left out."""
    waiting, entered = deque([root]), 0
    while waiting and entered < MOST_FOLDERS:
        folder = waiting.popleft()
        entered += 1
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            continue
        names = {e.name for e in entries}
        if folder != root and {'settings.json', 'plan.json'} <= names:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith('.') and entry.name not in CACHES:
                    waiting.append(Path(entry.path))
            elif entry.is_file() and entry.name.endswith(SUFFIXES) and not entry.name.startswith('.'):
                yield Path(entry.path)


def _free(name: str, taken: Container[str]) -> str:
    """`name`, or the first of name-2, name-3, ... that is not taken."""
    stem = name.removesuffix('-1')
    names = itertools.chain([name], (f'{stem}-{i}' for i in itertools.count(2)))
    return next(n for n in names if n not in taken)
