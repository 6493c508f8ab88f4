"""Names of checkpoints: `last`, `best` and `stage-NAME` are links to folders `step-N` beside them.

Copying may follow links or leave them out. Then the checkpoints' own words say what a name means: how far
each was, in which stage, and which names it was saved under.
"""

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from ..files import from_json, replacing

log = logging.getLogger(__name__)
STATE = 'state.json'
LAST, BEST, STAGE = 'last', 'best', 'stage-'


class Saved(NamedTuple):
    """A checkpoint by its own words; `links` are the names it was saved under. The newest is the largest."""

    total_step: int
    again: int
    folder: Path
    stage: str
    links: tuple[str, ...]


def point(link: Path, folder: Path) -> None:
    """Makes `link` point to `folder`, in one step."""
    with replacing(link) as temporary:
        temporary.symlink_to(folder.name)


def named(checkpoints: Path, name: str) -> Path | None:
    """The checkpoint folder of a name; where its link is lost, by what the checkpoints say; None without."""
    if (checkpoints / name / STATE).is_file():
        return (checkpoints / name).resolve()
    saved = _saved(checkpoints)
    if name == BEST:
        saved = [s for s in saved if BEST in s.links]
    elif name.startswith(STAGE):
        saved = [s for s in saved if s.stage == name.removeprefix(STAGE)]
    elif name != LAST:
        return None
    return max(saved).folder if saved else None


def restore_links(checkpoints: Path) -> None:
    """Makes links again of names that have become folders or point nowhere, and says so.

    Only of a directory that nobody else writes. Raises OSError.
    """
    if not checkpoints.is_dir():
        return
    for copy in sorted(f for f in checkpoints.iterdir() if _is_copy(f)):
        _replace_copy(copy)
    saved = _saved(checkpoints)
    if not saved:
        return
    stages = {STAGE + s.stage for s in saved if s.stage != max(saved).stage}
    for name in (*sorted(stages), BEST, LAST):
        link = checkpoints / name
        if not (link / STATE).is_file() and (folder := named(checkpoints, name)) is not None:
            point(link, folder)
            log.warning("The link '%s' was lost; it names %s now.", link, folder.name)


def _is_copy(entry: Path) -> bool:
    links = entry.name in (LAST, BEST) or entry.name.startswith(STAGE)
    return links and not entry.is_symlink() and (entry / STATE).is_file()


def _replace_copy(copy: Path) -> None:
    """Makes a link of a folder that a followed link has become."""
    same = [f for f in copy.parent.glob('step-*') if _content(f) == _content(copy)]
    if same:
        folder = same[0]
        shutil.rmtree(copy)
    else:
        state = _read(copy)
        folder = copy.with_name(f'step-{state.total_step if state else 0:08d}')
        while folder.exists():
            folder = folder.with_name(f'{folder.name}-copy')
        os.rename(copy, folder)
    point(copy, folder)
    log.warning("'%s' was a copy in place of a link; it is a link to %s again.", copy, folder.name)


def _content(folder: Path) -> bytes:
    with contextlib.suppress(OSError):
        return (folder / STATE).read_bytes()
    return os.urandom(8)  # equal to none


def _saved(checkpoints: Path) -> list[Saved]:
    folders = [f for f in checkpoints.glob('*') if f.name.startswith('step-') or _is_copy(f)]
    return [s for f in folders if f.is_dir() and (s := _read(f)) is not None]


def _read(folder: Path) -> Saved | None:
    """What a checkpoint says of itself; None where that can't be read."""
    try:
        state = from_json((folder / STATE).read_bytes())
        step, links = int(state['progress']['total_step']), state.get('links') or []
        again = re.search(r'^step-\d+-(\d+)$', folder.name)
        return Saved(step, int(again[1]) if again else 1, folder, str(state['stage']), tuple(map(str, links)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None
