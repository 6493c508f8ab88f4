"""No file that lmplay loads runs code: only what the user names himself does, and what is installed."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import lmplay
from lmplay.compare.__main__ import main as compare
from lmplay.errors import UserError
from lmplay.exp.gpt2_moe.verify import main as verify
from lmplay.generate.__main__ import main as generate
from lmplay.plots.__main__ import main as plotstats
from lmplay.routing.__main__ import main as routing
from lmplay.train.__main__ import main as train
from tests.helpers import rewrite, unseal

SMALL = ['--device', 'cpu', '--num-blocks', '1', '--embed-dim', '16', '--num-heads', '2', '--max-len', '32']
HOSTILE = """
from pathlib import Path
Path({mark!r}).touch()
from lmplay.base.runner_list import expose_runner, find_runner

@expose_runner({name!r})
def runner(**parameters):
    return find_runner('test_runner').function(**parameters)
"""


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A small finished run."""
    folder = tmp_path_factory.mktemp('finished')
    (folder / 'text.txt').write_text('Tom saw the old tree. ' * 400)
    stage = {'dataset': 'mine', 'steps': 2, 'batch_size': 2, 'row_length': 32, 'validation_bytes': 600}
    data = {'mine': {'loader': 'text', 'path': str(folder / 'text.txt')}}
    (folder / 'plan.json').write_text(json.dumps({'datasets': data, 'stages': {'s': stage}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LMP_DATASETS', str(folder / 'cache'))
        options = [
            '--tokenizer',
            'bytes',
            '--training-plan',
            folder / 'plan.json',
            '--run-dir',
            folder / 'run',
        ]
        assert train([*map(str, ['--exp', 'test_runner', '--quiet', *SMALL, *options])]) == 0
    return folder


@pytest.fixture
def hostile(finished, tmp_path, monkeypatch):
    """(a copy of the run, a file of code that leaves a mark when it is run, the mark)."""
    monkeypatch.setenv('LMP_DATASETS', str(finished / 'cache'))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / 'run', tmp_path / 'run', symlinks=True)
    (tmp_path / 'code').mkdir()
    code, mark = tmp_path / 'code' / 'versions.py', tmp_path / 'executed'
    code.write_text(HOSTILE.format(mark=str(mark), name=f'hostile-{tmp_path.name}'))
    yield tmp_path / 'run', code, mark
    assert not mark.exists(), 'a file ran code that nobody named'


def checkpoints(run: Path):
    return [f for f in (run / 'checkpoints').glob('step-*')]


def point_at(run: Path, **named) -> None:
    for folder in checkpoints(run):
        rewrite(folder, **named)


SPELLINGS = {
    'exp_file': lambda code: {'exp': 'mine', 'exp_file': f'{code}:mine'},
    'exp_file of a known name': lambda code: {'exp': 'test_runner', 'exp_file': f'{code}:test_runner'},
    'exp, a path': lambda code: {'exp': str(code), 'exp_file': None},
    'exp, a folder': lambda code: {'exp': code.parent.name, 'exp_file': None},
    'exp, a version': lambda code: {'exp': f'{code.parent}:mine', 'exp_file': None},
}


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_a_checkpoint_runs_no_code_whatever_loads_it(hostile, spelling, capsys):
    run, code, _ = hostile
    point_at(run, **SPELLINGS[spelling](code))
    new = [*SMALL, '--exp', 'test_runner', '--training-plan', run.parent / 'plan.json', '--quiet']
    shutil.copy(run / 'plan.json', run.parent / 'plan.json')
    for main, arguments in (
        (generate, [run]),
        (generate, ['--model', run / 'checkpoints' / 'last']),
        (routing, [run]),
        (verify, [run / 'checkpoints' / 'last']),
        (train, [*new, '--initial-model', run, '--run-dir', run.parent / 'new']),
    ):
        assert main([str(a) for a in arguments]) != 0
        said = capsys.readouterr().err
        assert 'Traceback' not in said and 'versions.py' in said and '--exp' in said, said
    for load in (
        lambda: lmplay.load(run).model(),
        lambda: lmplay.generate(run),
        lambda: lmplay.generate(str(run)),
    ):
        with pytest.raises(UserError, match='--exp'):
            load()


def test_readers_of_the_records_run_no_code(hostile, capsys):
    run, code, _ = hostile
    point_at(run, exp='mine', exp_file=f'{code}:mine')
    for name in ('summary.json', 'settings.json', 'stages.json', 'plan.json'):
        text = (run / name).read_text().replace('"test_runner"', json.dumps(str(code)))
        (run / name).write_text(text)
    unseal(run)
    lmplay.load(run)
    assert plotstats([str(run)]) == 0
    assert compare(['--leaderboard', str(run)]) == 0
    assert compare(['--runs', str(run), str(run)]) in (0, 2)


def test_a_plan_runs_no_code(hostile, capsys):
    run, code, _ = hostile
    plan = json.loads((run / 'plan.json').read_text())
    (stage,) = plan['stages'].values()
    for content in (plan | {'exp': str(code)}, plan | {'stages': {'s': stage | {'exp': str(code.parent)}}}):
        (run.parent / 'plan.json').write_text(json.dumps(content))
        for more in ([], ['--describe'], ['--dry-run'], ['--save-datasets'], ['--set', 'num_blocks=1']):
            assert train(['--training-plan', 'plan.json', '--run-dir', 'new', *more]) == 2
            assert '--exp' in capsys.readouterr().err


def test_pickles_do_not_run(hostile, capsys):
    run, code, mark = hostile

    class Evil:
        def __reduce__(self):
            return Path.touch, (mark,)

    for folder in checkpoints(run):
        (folder / 'optimizer.pt').write_bytes(pickle.dumps(Evil()))
        rewrite(folder)
    options = ['--exp', 'test_runner', '--tokenizer', 'bytes', '--training-plan', run / 'plan.json']
    options += ['--run-dir', run, '--steps', 9]
    assert train([*map(str, [*options, *SMALL, '--quiet'])]) == 2
    assert "can't be read safely" in capsys.readouterr().err
    (documents,) = run.glob('held_out-*.npz')
    np.savez(documents, **{name: np.array([Evil()], object) for name in ('hash', 'domain', 'bytes', 'loss')})
    with pytest.raises(UserError, match='damaged'):
        lmplay.load(run)
    config = run.parent / 'config.yaml'
    config.write_text(
        f'exp: !!python/object/apply:pathlib.Path.touch [!!python/object/new:pathlib.Path [{mark}]]'
    )
    assert train(['--use-config', str(config)]) == 2


def test_what_the_user_names_runs(hostile, capsys):
    """Here the mark is wanted: the fixture's own check is met by removing it."""
    run, code, mark = hostile
    point_at(run, exp='mine', exp_file=f'{code}:mine')
    assert generate([str(run), '--exp', str(code), '--max-new-tokens', '2']) == 0
    assert mark.exists()
    mark.unlink()
    point_at(run, exp=f'hostile-{code.parent.parent.name}', exp_file='/elsewhere/versions.py:x')
    lmplay.generate(run, max_new_tokens=1)  # by its name: this process knows it now
