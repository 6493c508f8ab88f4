import errno
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lmplay.base.base_model import LMBase
from lmplay.errors import CheckpointError, UserError
from lmplay.files import sealed
from lmplay.runs import checkpoint as ck
from lmplay.runs.load import load_model
from lmplay.tokenizers import BytesTokenizer
from tests.helpers import rewrite
from tests.runs.conftest import state_of, tiny


def test_a_checkpoint_alone_gives_the_model_back(saved):
    run, model = saved
    for path in (run, run / 'checkpoints/step-1', run / 'checkpoints/last'):
        again, state = load_model(path)
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
    with pytest.raises(CheckpointError, match="a different architecture.*'blocks.1.* is missing"):
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
        load_model(run)
    file.unlink()
    with pytest.raises(CheckpointError, match=f'damaged: {name} is missing'):
        load_model(run)


def test_other_damage_is_told(saved, tmp_path):
    run, model = saved
    folder = run / 'checkpoints/step-1'
    weights = folder / ck.WEIGHTS
    weights.write_bytes(b'\xff' * weights.stat().st_size)
    with pytest.raises(CheckpointError, match='model.safetensors has changed'):
        load_model(run)
    rewrite(folder)
    with pytest.raises(CheckpointError, match="can't be read"):
        load_model(run)
    for damaged in ('{', '[]'):
        (folder / ck.STATE).write_text(damaged)
        with pytest.raises(CheckpointError, match='state.json'):
            load_model(run)
    with pytest.raises(CheckpointError, match='there is no such path'):
        load_model(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match='neither a checkpoint folder'):
        load_model(tmp_path)


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
        load_model(saved[0])
    assert caplog.text.count('without checksums') == 1


def test_weights_of_another_dtype_are_refused(saved):
    model = tiny().to(torch.bfloat16)
    folder = saved[0] / 'checkpoints/step-2'
    ck.save_checkpoint(folder, model, None, state_of(model))
    with pytest.raises(CheckpointError, match="is bfloat16, the model's is float32"):
        load_model(folder)


def test_a_checkpoint_has_the_permissions_of_any_other_file(tmp_path):
    before = os.umask(0o027)
    try:
        ck.save_checkpoint(tmp_path / 'c', tiny(), {'optimizer': {}}, {})
    finally:
        os.umask(before)
    assert (tmp_path / 'c').stat().st_mode & 0o777 == 0o750
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / 'c').iterdir()} == {0o640}


WRONG = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(['exp', 'exp_file', 'parameters', 'tokenizer', 'sizes', 'links']), value=WRONG)
def test_a_state_of_the_wrong_shape_is_a_sentence(saved, key, value):
    folder = saved[0] / 'checkpoints/step-1'
    before = (folder / ck.STATE).read_text()
    try:
        rewrite(folder, **{key: value})
        load_model(folder)
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
        load_model(folder)


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
        'from lmplay.runs.load import load_model\n'
        'from lmplay.errors import CheckpointError\n'
        'run = Path(sys.argv[1]); model, state = load_model(run)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n'
        'try: ck.save_checkpoint(run / "checkpoints/step-2", model, {"optimizer": {}}, state)\n'
        'except CheckpointError as e: print("REFUSED", e)'
    )
    out = subprocess.run([sys.executable, '-c', code, str(run)], capture_output=True, text=True)
    assert 'REFUSED' in out.stdout and 'The checkpoint before it is untouched' in out.stdout, out.stderr
    assert sorted(f.name for f in (run / 'checkpoints').iterdir()) == ['last', 'step-1']
    load_model(run)


def test_a_checkpoint_of_a_changed_tokenizer_is_refused(saved):
    run, _ = saved
    rewrite(run / 'checkpoints/step-1', tokenizer={'name': 'bytes', 'fingerprint': 'other'})
    with pytest.raises(CheckpointError, match='is not the one that'):
        load_model(run)
