import errno
import os
import threading

import pytest
import torch

from lmplay.errors import CheckpointError
from lmplay.runs import checkpoint as ck
from lmplay.runs.checkpoints import Checkpoints, prune
from lmplay.runs.links import point
from lmplay.runs.load import load_model
from tests.runs.conftest import state_of, tiny


def test_a_failed_save_in_the_background_cannot_hide(tmp_path, caplog):
    def failing():
        (tmp_path / 'checkpoints').write_text('')  # a file in the way
        saving = Checkpoints(tmp_path / 'checkpoints', keep=2, background=True)
        saving.save(1, tiny(), {'optimizer': {}}, {}, ['last'])
        return saving

    with pytest.raises(CheckpointError, match="Can't write the checkpoint"):
        failing().close()
    with pytest.raises(CheckpointError, match="Can't write the checkpoint"):
        failing().wait()
    with pytest.raises(ZeroDivisionError):
        saving = failing()
        try:
            1 / 0  # noqa: B018
        finally:
            saving.close()
    assert "Can't write the checkpoint" in caplog.text


@pytest.mark.parametrize('background', [False, True])
def test_a_save_is_of_the_moment_and_ends_before_the_next(saved, monkeypatch, background):
    run, model = saved
    moment = threading.Event()
    write = ck.save_file
    monkeypatch.setattr(
        ck, 'save_file', lambda *a, **k: (moment.wait(60) if background else None, write(*a, **k))
    )
    saver = Checkpoints(run / 'checkpoints', keep=2, background=background)
    moments = {'x': torch.ones(2)}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    saver.save(7, model, {'optimizer': {0: moments}}, state_of(model), ['best', 'last'])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
        moments['x'].zero_()
    assert (run / 'checkpoints/step-00000007').exists() is not background
    moment.set()
    saver.save(7, model, {'optimizer': {}}, state_of(model), ['last'])
    saver.wait()
    saver.close()
    assert [(run / 'checkpoints' / name).resolve().name for name in ('best', 'last')] == [
        'step-00000007',
        'step-00000007-2',
    ]
    first = load_model(run / 'checkpoints/best')[0].state_dict()
    assert all(torch.equal(first[k], before[k]) for k in before)
    assert ck.load_optimizer(run / 'checkpoints/best')['optimizer'][0]['x'].tolist() == [1, 1]
    assert all(
        torch.equal(v, model.state_dict()[k])
        for k, v in load_model(run / 'checkpoints/last')[0].state_dict().items()
    )


def test_a_save_in_the_background_that_fails_is_told_at_the_next(saved, monkeypatch):
    run, model = saved

    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(ck, 'save_file', full)
    saver = Checkpoints(run / 'checkpoints', keep=2, background=True)
    saver.save(7, model, {}, state_of(model), ['last'])
    with pytest.raises(CheckpointError, match='the disk is full. The checkpoint before it is untouched'):
        saver.wait()
    saver.close()
    assert sorted(f.name for f in (run / 'checkpoints').iterdir()) == ['last', 'step-1']


def test_pruning_keeps_the_newest_and_what_links_name(saved):
    run, model = saved
    folder = run / 'checkpoints'
    for i in range(2, 7):
        ck.save_checkpoint(folder / f'step-{i}', model, None, state_of(model))
        os.utime(folder / f'step-{i}', ns=(i * 10**15, i * 10**18))
    os.utime(folder / 'step-1', ns=(0, 0))
    point(folder / 'best', folder / 'step-3')
    (folder / '.writing-x').mkdir()
    prune(folder, 2)
    assert sorted(f.name for f in folder.iterdir()) == [
        'best',
        'last',
        'step-1',
        'step-3',
        'step-5',
        'step-6',
    ]
