"""lmp_export and lmp_cleanmodel on a run."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lmplay.errors import UserError
from lmplay.export.__main__ import main as export_main
from lmplay.export.clean import main as clean_main
from lmplay.export.formats import export
from lmplay.runs.load import load_model
from lmplay.train.api import train


@pytest.fixture(scope='module', params=['test_runner', 'gpt2_moe_test'])
def run_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / 'a.txt').write_text(''.join(f'Line {i} of the text.\n' for i in range(400)))
    train(
        request.param,
        plan={'t': {'dataset': str(folder / 'a.txt'), 'steps': 2, 'batch_size': 2, 'row_length': 16}},
        quiet=True,
        run_dir=folder / 'run',
        device='cpu',
        seed=1,
    )
    return folder / 'run'


def logits(path):
    model = load_model(path)[0].eval()
    return model(torch.arange(10)[None])


def plain(output):
    return getattr(output, 'logits', output)


def test_safetensors(run_dir, tmp_path):
    files = export(run_dir, tmp_path / 'out', format='safetensors')
    weights, own = load_file(files[0]), load_model(run_dir)[0].state_dict()
    assert weights.keys() == own.keys() and all(torch.equal(weights[k], own[k]) for k in own)
    about = json.loads(files[1].read_text())
    assert about['exp'] == load_model(run_dir)[1]['exp'] and about['step'] == 2
    with pytest.raises(UserError, match='is not empty'):
        export(run_dir, tmp_path / 'out', format='safetensors')


def test_formats_of_one_kind_of_model(run_dir, tmp_path, capsys):
    code = export_main([str(run_dir), '--to', str(tmp_path / 'out'), '--format', 'moe-emergence'])
    if 'gpt2_moe' not in load_model(run_dir)[1]['exp']:
        assert code == 2 and 'Unknown format' in capsys.readouterr().err and not (tmp_path / 'out').exists()
    else:
        assert code == 0 and torch.equal(plain(logits(tmp_path / 'out')), plain(logits(run_dir)))


def test_a_clean_checkpoint_is_a_checkpoint_without_the_optimizer(run_dir, tmp_path, capsys):
    out = tmp_path / 'clean'
    assert clean_main([str(run_dir), '--model-out', str(out)]) == 0
    assert not (out / 'optimizer.pt').exists()
    assert torch.equal(plain(logits(out)), plain(logits(run_dir)))
    assert (
        clean_main([str(run_dir), '--model-out', str(out)]) == 2
        and 'exists already' in capsys.readouterr().err
    )
    assert clean_main([str(run_dir)]) == 0 and (run_dir.parent / 'run_clean' / 'state.json').is_file()
