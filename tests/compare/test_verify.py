"""The same answer twice: a receipt that holds, ones that were tampered with, and a source that was edited."""

import json
import shutil
from pathlib import Path

import pytest

from lmplay.compare.__main__ import main
from lmplay.compare.receipt import read_receipt
from lmplay.errors import DataError
from lmplay.new.copying import copy_experiment
from tests.helpers import unseal


@pytest.fixture(scope='module')
def compared(tmp_path_factory, write_plan):
    """A finished comparison of gpt2ish with a copy outside the package, one seed."""
    folder = tmp_path_factory.mktemp('verify')
    copy_experiment('verified', origin='gpt2ish', folder=folder)
    model = folder / 'verified' / 'model.py'
    model.write_text(model.read_text().replace('std=0.02)', 'std=0.03)'))
    plan = write_plan(folder, tokens=3000, batch_size=8, mini_batch_size=8, validation_bytes=3000)
    arguments = ['gpt2ish', str(folder / 'verified'), '--plan', str(plan), '--seeds', '1', '--device', 'cpu']
    arguments += ['--set', 'embed_dim=16', '--out', str(folder / 'c')]
    assert main(arguments) == 0
    return folder


def test_a_finished_comparison_comes_out_the_same_from_the_source_it_kept(compared, capsys):
    """Its own experiment was edited since: what is trained again is what the runs keep."""
    model = compared / 'verified' / 'model.py'
    before = model.read_text()
    model.write_text('raise SystemExit("never run")\n')
    try:
        assert main(['--verify', str(compared / 'c' / 'report.html')]) == 0
    finally:
        model.write_text(before)
    out, error = capsys.readouterr()
    assert out.count('bit-identical') == 2 and 'gpt2ish seed 0' in out and 'from the source' in error


def test_another_result_is_told(compared, tmp_path, capsys):
    """A receipt that fits its files, of numbers that nobody gets."""
    shutil.copytree(compared / 'c', tmp_path / 'c')
    receipt = json.loads((tmp_path / 'c/receipt.json').read_text())
    receipt['runs'] = receipt['runs'][:1]
    name = next(
        n for n in receipt['files'] if n.endswith('metrics.jsonl') and receipt['runs'][0]['folder'] in n
    )
    lines = (tmp_path / 'c' / name).read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if json.loads(line)['kind'] == 'train')
    record = json.loads(lines[at])
    lines[at] = json.dumps(record | {'loss': record['loss'] - 1e-6})
    (tmp_path / 'c' / name).write_text('\n'.join(lines) + '\n')
    from lmplay.compare.receipt import sha256

    unseal((tmp_path / 'c' / name).parent)
    for changed in (name, str(Path(name).with_name('summary.json'))):
        receipt['files'][changed] = sha256(tmp_path / 'c' / changed)
    (tmp_path / 'c/receipt.json').write_text(json.dumps(receipt))
    assert main(['--verify', str(tmp_path / 'c')]) == 1
    assert 'NOT the same' in capsys.readouterr().out


@pytest.mark.parametrize(
    'pattern',
    ['plans/*/*.json', 'results.json', 'runs/*/seed-0/settings.json', 'runs/*/seed-0/held_out-*.npz'],
)
def test_what_was_altered_by_hand_is_refused_and_named(compared, tmp_path, capsys, pattern):
    shutil.copytree(compared / 'c', tmp_path / 'c')
    file = sorted((tmp_path / 'c').glob(pattern))[0]
    file.write_bytes(file.read_bytes() + b' ')
    assert main(['--verify', str(tmp_path / 'c')]) == 2
    error = capsys.readouterr().err
    assert f"'{file}' is not what the comparison wrote" in error and error.count('\n') == 1
    file.unlink()
    with pytest.raises(DataError, match='is missing'):
        read_receipt(tmp_path / 'c')


def test_without_a_receipt_there_is_nothing_to_verify(tmp_path, capsys):
    assert main(['--verify', str(tmp_path)]) == 2
    assert 'holds no receipt.json' in capsys.readouterr().err
    assert main(['gpt2ish', 'some', '--verify', 'x']) == 2
    assert 'not experiments and --verify together' in capsys.readouterr().err
