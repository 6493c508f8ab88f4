"""Runs whose links were followed, dropped or left dangling by a copy."""

import json
import shutil

import pytest

from lmplay.runs.checkpoints import Checkpoints, find_checkpoint
from lmplay.runs.links import named, point, restore_links
from tests.helpers import rewrite, tiny

NAMES = ('best', 'last', 'stage-a')


@pytest.fixture
def checkpoints(tmp_path):
    """Of a run in its second stage: the first ended at step 4, the best was at step 6, the last at 8."""
    folder = tmp_path / 'run' / 'checkpoints'
    saving = Checkpoints(folder, keep=2, background=False)
    for step, stage, links in (
        (2, 'a', ['best', 'last']),
        (4, 'a', ['last']),
        (6, 'b', ['best', 'last']),
        (8, 'b', ['last']),
    ):
        state = {'stage': stage, 'progress': {'total_step': step}}
        saving.save(step, tiny(), {'optimizer': {}}, state, links)
        if step == 4:
            point(folder / 'stage-a', folder / 'step-00000004')
    return folder


def names(folder):
    assert all((folder / name).is_symlink() for name in NAMES if (folder / name).exists())
    return {name: (folder / name).resolve().name for name in NAMES if (folder / name).exists()}


WHOLE = {'best': 'step-00000006', 'last': 'step-00000008', 'stage-a': 'step-00000004'}


def follow(folder):
    shutil.copytree(folder, folder.with_name('copy'))  # follows links
    shutil.rmtree(folder)
    folder.with_name('copy').rename(folder)


def drop(folder):
    for name in NAMES:
        (folder / name).unlink()


def empty(folder):
    """As copies to file systems without links leave them: files that hold the target's name."""
    for name in NAMES:
        target = (folder / name).resolve().name
        (folder / name).unlink()
        (folder / name).write_text(target)


@pytest.mark.parametrize('harm', [lambda folder: None, follow, drop, empty])
def test_links_are_restored_and_mean_the_same_before_that(checkpoints, harm, caplog):
    assert names(checkpoints) == WHOLE
    harm(checkpoints)
    for name, folder in WHOLE.items():
        found = find_checkpoint(checkpoints / name)
        assert json.loads((found / 'state.json').read_text())['progress']['total_step'] == int(folder[-2:])
    restore_links(checkpoints)
    assert names(checkpoints) == WHOLE
    assert len(list(checkpoints.iterdir())) == 6
    assert bool(caplog.records) == (harm in (follow, drop, empty))


@pytest.mark.parametrize('left', ['best', 'last', 'stage-a', 'step-00000004', 'step-00000008'])
def test_one_checkpoint_that_is_left_is_the_last(checkpoints, left):
    follow(checkpoints)
    for entry in checkpoints.iterdir():
        if entry.name != left:
            shutil.rmtree(entry)
    found = find_checkpoint(checkpoints.parent)
    restore_links(checkpoints)
    assert names(checkpoints)['last'] == names(checkpoints).get(left, left)
    assert (found / 'state.json').is_file()


def test_a_dangling_last_is_the_newest_that_is_whole(checkpoints):
    shutil.rmtree(checkpoints / 'step-00000008')
    assert named(checkpoints, 'last').name == 'step-00000006'
    restore_links(checkpoints)
    assert names(checkpoints) == WHOLE | {'last': 'step-00000006'}


def test_a_retried_step_is_newer(checkpoints):
    shutil.copytree(checkpoints / 'step-00000008', checkpoints / 'step-00000008-2')
    (checkpoints / 'last').unlink()
    assert named(checkpoints, 'last').name == 'step-00000008-2'


def test_checkpoints_that_say_nothing_are_not_named(checkpoints):
    for step in (4, 6):
        rewrite(checkpoints / f'step-0000000{step}', progress=None)
    (checkpoints / 'step-00000008' / 'state.json').write_text('[]')
    drop(checkpoints)
    restore_links(checkpoints)
    assert names(checkpoints) == {}
