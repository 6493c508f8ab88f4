import errno
import json
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lmplay.base.base_model import LMBase
from lmplay.base.runner_list import find_runner
from lmplay.errors import CheckpointError, UserError
from lmplay.files import sealed
from lmplay.runs import checkpoint as ck
from lmplay.tokenizers import BytesTokenizer
from tests.helpers import rewrite

SHAPE = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=16, tokenizer='bytes')


def tiny(**other):
    return find_runner('gpt2ish').function(**SHAPE | other).build()


def state_of(model):
    return {
        'exp': 'gpt2ish',
        'exp_file': None,
        'parameters': {k: v for k, v in SHAPE.items() if k != 'tokenizer'},
        'tokenizer': {'name': 'bytes', 'fingerprint': BytesTokenizer.fingerprint},
    }


@pytest.fixture
def saved(tmp_path):
    model = tiny()
    ck.save_checkpoint(
        tmp_path / 'run/checkpoints/step-1', model, {'optimizer': {'x': torch.ones(2)}}, state_of(model)
    )
    ck.point(tmp_path / 'run/checkpoints/last', tmp_path / 'run/checkpoints/step-1')
    return tmp_path / 'run', model


def test_a_checkpoint_alone_gives_the_model_back(saved):
    run, model = saved
    for path in (run, run / 'checkpoints/step-1', run / 'checkpoints/last'):
        again, state = ck.load_model(path)
        assert state['exp'] == 'gpt2ish' and again.tokenizer.name == 'bytes'
        for (name, ours), theirs in zip(again.state_dict().items(), model.state_dict().values()):
            assert torch.equal(ours, theirs), name


def test_tied_weights_are_saved_once_and_come_back_tied(tmp_path):
    class Tied(LMBase):
        def __init__(self):
            super().__init__('tied', max_len=4)
            self.tokenizer = BytesTokenizer()
            self.embed = nn.Embedding(257, 4)
            self.fc = nn.Linear(4, 257, bias=False)
            self.fc.weight = self.embed.weight

    model = Tied()
    ck.save_checkpoint(tmp_path / 'c', model, None, {})
    again = Tied()
    ck.load_weights(again, tmp_path / 'c')
    assert torch.equal(again.embed.weight, model.embed.weight) and again.fc.weight is again.embed.weight
    assert (tmp_path / 'c' / ck.WEIGHTS).stat().st_size < 2 * 257 * 4 * 4


def test_another_architecture_is_refused_whole(saved):
    run, _ = saved
    other = tiny(num_blocks=2)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another architecture.*'blocks.1.* is missing"):
        ck.load_weights(other, run / 'checkpoints/step-1')
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    with pytest.raises(CheckpointError, match=r"shape \[1, 16, 16\], the model's has \[1, 16, 32\]"):
        ck.load_weights(tiny(embed_dim=32), run / 'checkpoints/step-1')


@pytest.mark.parametrize('name', [ck.WEIGHTS, ck.OPTIMIZER])
def test_a_truncated_or_missing_file_is_told(saved, name):
    run, _ = saved
    file = run / 'checkpoints/step-1' / name
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f'damaged: {name} has .* bytes instead of'):
        ck.load_model(run)
    file.unlink()
    with pytest.raises(CheckpointError, match=f'damaged: {name} is missing'):
        ck.load_model(run)


def test_other_damage_is_told(saved, tmp_path):
    run, model = saved
    folder = run / 'checkpoints/step-1'
    weights = folder / ck.WEIGHTS
    weights.write_bytes(b'\xff' * weights.stat().st_size)
    with pytest.raises(CheckpointError, match='model.safetensors has changed'):
        ck.load_model(run)
    rewrite(folder)
    with pytest.raises(CheckpointError, match="can't be read"):
        ck.load_model(run)
    for damaged in ('{', '[]'):
        (folder / ck.STATE).write_text(damaged)
        with pytest.raises(CheckpointError, match='state.json'):
            ck.load_model(run)
    with pytest.raises(CheckpointError, match='there is no such path'):
        ck.load_model(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match='neither a checkpoint folder'):
        ck.load_model(tmp_path)


def test_a_pickle_with_code_in_it_does_not_run(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path / "executed"}',)

    folder = saved[0] / 'checkpoints/step-1'
    rewrite(folder)
    (folder / ck.OPTIMIZER).write_bytes(pickle.dumps(Evil()))
    rewrite(folder)
    with pytest.raises(CheckpointError, match="can't be read safely"):
        ck.load_optimizer(folder)
    torch.save(Evil(), folder / ck.OPTIMIZER)
    rewrite(folder)
    with pytest.raises(CheckpointError, match="can't be read safely"):
        ck.load_optimizer(folder)
    assert not (tmp_path / 'executed').exists()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_told(saved, data):
    """Of every file: damage of equal length is refused, or changes nothing that is read."""
    run, _ = saved
    folder = run / 'checkpoints/step-1'
    file = folder / data.draw(st.sampled_from([ck.WEIGHTS, ck.OPTIMIZER, ck.STATE]))
    whole, state = file.read_bytes(), ck.read_state(folder)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    file.write_bytes(flipped)
    try:
        if file.name == ck.STATE:
            assert ck.read_state(folder) == state
        else:
            ck.load_weights(tiny(), folder)
            ck.load_optimizer(folder)
            raise AssertionError(f'bit {bit} of {file.name} went unnoticed')
    except CheckpointError as error:
        assert 'damaged' in str(error) or 'format' in str(error)
    finally:
        file.write_bytes(whole)


def test_a_checkpoint_without_checksums_loads_and_says_so_once(saved, caplog):
    folder = saved[0] / 'checkpoints/step-1'
    state = {k: v for k, v in ck.read_state(folder).items() if not k.startswith('checksum')}
    (folder / ck.STATE).write_text(json.dumps(state))
    for _ in range(2):
        ck.load_model(saved[0])
    assert caplog.text.count('without checksums') == 1


def test_weights_of_another_dtype_are_refused(saved):
    model = tiny().to(torch.bfloat16)
    folder = saved[0] / 'checkpoints/step-2'
    ck.save_checkpoint(folder, model, None, state_of(model))
    with pytest.raises(CheckpointError, match="is bfloat16, the model's is float32"):
        ck.load_model(folder)


def test_a_checkpoint_has_the_permissions_of_any_other_file(tmp_path):
    before = os.umask(0o027)
    try:
        ck.save_checkpoint(tmp_path / 'c', tiny(), {'optimizer': {}}, {})
    finally:
        os.umask(before)
    assert (tmp_path / 'c').stat().st_mode & 0o777 == 0o750
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / 'c').iterdir()} == {0o640}


def test_a_failed_save_in_the_background_cannot_hide(tmp_path, caplog):
    def failing():
        (tmp_path / 'checkpoints').write_text('')  # a file in the way
        saving = ck.Checkpoints(tmp_path / 'checkpoints', keep=2, background=True)
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


WRONG = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(['exp', 'exp_file', 'parameters', 'tokenizer', 'sizes', 'links']), value=WRONG)
def test_a_state_of_the_wrong_shape_is_a_sentence(saved, key, value):
    folder = saved[0] / 'checkpoints/step-1'
    before = (folder / ck.STATE).read_text()
    try:
        rewrite(folder, **{key: value})
        ck.load_model(folder)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        (folder / ck.STATE).write_text(before)


@pytest.mark.parametrize('key', ['exp', 'exp_file', 'parameters', 'tokenizer'])
def test_a_state_that_lacks_something_is_a_sentence(saved, key):
    folder = saved[0] / 'checkpoints/step-1'
    state = {k: v for k, v in ck.read_state(folder).items() if k not in (key, 'checksum')}
    (folder / ck.STATE).write_text(json.dumps(sealed(state)))
    with pytest.raises(CheckpointError, match=f'lacks {key}'):
        ck.load_model(folder)


def test_a_full_disk_is_called_that_though_torch_hides_it(tmp_path, monkeypatch):
    """Where an error bears no number the file system is asked: here one whose every write fails."""

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(torch, 'save', lambda *_: (_ for _ in ()).throw(RuntimeError('unexpected pos 64')))
    with pytest.raises(CheckpointError, match='unexpected pos 64'):
        ck.save_checkpoint(tmp_path / 'a', tiny(), {'optimizer': {}}, {})
    syncs = iter([full])
    monkeypatch.setattr(os, 'fsync', lambda *_: next(syncs)())
    with pytest.raises(CheckpointError, match='the disk is full'):
        ck.save_checkpoint(tmp_path / 'a', tiny(), {'optimizer': {}}, {})


def test_a_full_disk_leaves_the_checkpoint_before_it(saved):
    """A limit on the size of files stands in for the full disk: the write fails half way."""
    run, model = saved
    code = (
        'import resource, sys, signal, torch; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'from pathlib import Path; from lmplay.runs import checkpoint as ck\n'
        'from lmplay.errors import CheckpointError\n'
        'run = Path(sys.argv[1]); model, state = ck.load_model(run)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n'
        'try: ck.save_checkpoint(run / "checkpoints/step-2", model, {"optimizer": {}}, state)\n'
        'except CheckpointError as e: print("REFUSED", e)'
    )
    out = subprocess.run([sys.executable, '-c', code, str(run)], capture_output=True, text=True)
    assert 'REFUSED' in out.stdout and 'The checkpoint before it is untouched' in out.stdout, out.stderr
    assert sorted(f.name for f in (run / 'checkpoints').iterdir()) == ['last', 'step-1']
    ck.load_model(run)


@pytest.mark.parametrize('background', [False, True])
def test_a_save_is_of_the_moment_and_ends_before_the_next(saved, monkeypatch, background):
    run, model = saved
    moment = threading.Event()
    write = ck.save_file
    monkeypatch.setattr(
        ck, 'save_file', lambda *a, **k: (moment.wait(60) if background else None, write(*a, **k))
    )
    saver = ck.Checkpoints(run / 'checkpoints', keep=2, background=background)
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
    first = ck.load_model(run / 'checkpoints/best')[0].state_dict()
    assert all(torch.equal(first[k], before[k]) for k in before)
    assert ck.load_optimizer(run / 'checkpoints/best')['optimizer'][0]['x'].tolist() == [1, 1]
    assert all(
        torch.equal(v, model.state_dict()[k])
        for k, v in ck.load_model(run / 'checkpoints/last')[0].state_dict().items()
    )


def test_a_save_in_the_background_that_fails_is_told_at_the_next(saved, monkeypatch):
    run, model = saved

    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(ck, 'save_file', full)
    saver = ck.Checkpoints(run / 'checkpoints', keep=2, background=True)
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
    ck.point(folder / 'best', folder / 'step-3')
    (folder / '.writing-x').mkdir()
    ck.prune(folder, 2)
    assert sorted(f.name for f in folder.iterdir()) == [
        'best',
        'last',
        'step-1',
        'step-3',
        'step-5',
        'step-6',
    ]


def test_a_checkpoint_of_a_changed_tokenizer_is_refused(saved):
    run, _ = saved
    rewrite(run / 'checkpoints/step-1', tokenizer={'name': 'bytes', 'fingerprint': 'other'})
    with pytest.raises(CheckpointError, match='is not the one that'):
        ck.load_model(run)
