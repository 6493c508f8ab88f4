"""The registry: names are found by importing, and what is broken says so without breaking the rest."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner, find_entry, find_runner, list_experiments
from lmplay.errors import ExperimentError

GOOD = """
from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner
from .model import Mine

@expose_runner({name}, description='my own')
def runner(*args, **kwargs):
    return BasicModelRunner(Mine, *args, overrides=dict(width=7), **kwargs)
"""
MODEL = """
import tiktoken
from lmplay.base.base_model import LMBase
class Mine(LMBase):
    def __init__(self, max_len=16, width=5, **ignore):
        super().__init__('mine', max_len=max_len, width=width)
        self.tokenizer = tiktoken.get_encoding('gpt2')
"""


def write_experiment(folder: Path, versions: str, model: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / '__init__.py').write_text('')
    (folder / 'versions.py').write_text(versions)
    if model is not None:
        (folder / 'model.py').write_text(model)
    return folder / 'versions.py'


def write_package(folder: Path, name: str, entry_points: str) -> None:
    """What pip would leave of an installed package."""
    info = folder / f'{name}-1.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1\n')
    (info / 'entry_points.txt').write_text(f'[lmplay.experiments]\n{entry_points}\n')


def listed(folder: Path, *more: str, python: str = '') -> dict[str, dict]:
    """The list, by name, of a process that finds packages in `folder`; `more` is looked up before."""
    code = (
        'import json, sys\n'
        'from lmplay.base.runner_list import find_entry, find_runner, list_experiments\n'
        f'{python}\n'
        'for name in sys.argv[1:]:\n    find_entry(name)\n'
        'print(json.dumps({e.name: [e.file, e.error, e.parameters] for e in reversed(list_experiments())}))'
    )
    path = os.pathsep.join([str(folder), *sys.path])
    out = subprocess.run(
        [sys.executable, '-c', code, *more],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {'PYTHONPATH': path},
    )
    assert out.returncode == 0, out.stderr
    rows = json.loads(out.stdout)
    assert rows['gpt2ish'][1] is None
    return {name: dict(zip(('file', 'error', 'parameters'), row)) for name, row in rows.items()}


def broken(file: Path) -> str:
    """What find_entry says of a broken file, one line; all other experiments are still there."""
    with pytest.raises(ExperimentError) as error:
        find_entry(str(file))
    assert '\n' not in str(error.value)
    assert find_entry('gpt2ish').error is None
    return str(error.value)


def test_the_shipped_experiments_are_listed_with_their_parameters():
    entries = {e.name: e for e in list_experiments() if e.module.startswith('lmplay.exp.')}
    assert {'gpt2ish', 'gpt2ish_med', 'gpt2ish_large', 'test_runner', 's_gpt2ish'} <= entries.keys()
    assert not [e for e in entries.values() if e.error]
    assert entries['gpt2ish_med'].parameters['num_blocks'] == 24
    for name, entry in entries.items():
        runner = find_runner(name).function()
        assert isinstance(runner, BasicModelRunner) and runner.parameters == entry.parameters
        assert Path(entry.file).is_file() and entry.line and entry.where == f'{entry.file}:{entry.line}'


def test_importing_the_registry_imports_no_torch():
    code = (
        'import sys, lmplay.base.runner_list\n'
        'assert not [m for m in sys.modules if m == "torch" or m.startswith("lmplay.exp.")]'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_experiments_import_no_more_than_torch():
    code = (
        'import sys\nfrom lmplay.base.runner_list import list_experiments\nlist_experiments()\n'
        'assert not {"transformers", "datasets", "matplotlib"} & sys.modules.keys()'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_an_experiment_by_its_path(tmp_path):
    file = write_experiment(tmp_path / 'e', GOOD.format(name="'by_path'"), MODEL)
    assert find_entry(str(file)).parameters == {'max_len': 16, 'width': 7}
    assert find_entry(str(file)).module == str(file)
    model = find_runner(str(file)).function(max_len=8).build()
    assert model.hyperparameters == {'max_len': 8, 'width': 7}
    assert find_entry(f'{file}:by_path').name == 'by_path'
    with pytest.raises(ExperimentError, match="Did you mean 'by_path'"):
        find_entry(f'{file}:bypath')
    with pytest.raises(ExperimentError, match="No file '.*none.py' for --exp"):
        find_entry(str(tmp_path / 'none.py'))
    with pytest.raises(ExperimentError, match="No file '.*none/versions.py' for --exp"):
        find_entry(str(tmp_path / 'none'))


def test_one_file_is_one_experiment_however_its_path_is_spelled(tmp_path, monkeypatch):
    file = write_experiment(tmp_path / 'e', GOOD.format(name="'spelled'"), MODEL)
    (tmp_path / 'link').symlink_to(tmp_path / 'e')
    (tmp_path / 'x').mkdir()
    monkeypatch.chdir(tmp_path)
    spellings = [
        str(file),
        'e/versions.py',
        './x/../e/versions.py',
        'link/versions.py',
        'e',
        './e',
        f'{tmp_path}/e/',
        'e:spelled',
        'link/versions.py:spelled',
    ]
    functions = {find_runner(spelling).function for spelling in spellings}
    assert len(functions) == 1
    assert find_entry('link').file == str(file)


def test_a_shipped_file_given_by_its_path_is_the_shipped_experiment():
    entry = find_entry('gpt2ish_med')
    by_path = find_entry(f'{entry.file}:gpt2ish_med')
    assert by_path == entry and entry.module == 'lmplay.exp.gpt2ish.versions'
    assert find_entry(entry.file).name == 'gpt2ish'


def test_a_name_wins_over_a_folder(tmp_path, monkeypatch):
    write_experiment(tmp_path / 'gpt2ish', GOOD.format(name="'not_this'"), MODEL)
    monkeypatch.chdir(tmp_path)
    assert find_entry('gpt2ish').module == 'lmplay.exp.gpt2ish.versions'
    assert find_entry('./gpt2ish').name == 'not_this'


def test_a_file_imported_by_its_dotted_name_is_the_same_by_its_path(tmp_path):
    write_experiment(tmp_path / 'dotted', GOOD.format(name="'dotted'"), MODEL)
    python = (
        'import dotted.versions\n'
        'assert find_runner("dotted/versions.py").function().model_class is dotted.versions.Mine'
    )
    assert listed(tmp_path, 'dotted/versions.py', python=python)['dotted']['error'] is None


def test_names_made_by_a_program_are_found(tmp_path):
    looped = GOOD.format(name="'unlooped'") + (
        '\nfrom .helper import version\nfor n in (1, 2):\n    version(f"looped_{n}", Mine, n)\n'
    )
    file = write_experiment(tmp_path / 'e', looped, MODEL)
    (tmp_path / 'e/helper.py').write_text(
        'from lmplay.base.base_model import BasicModelRunner\n'
        'from lmplay.base.runner_list import expose_runner\n'
        'def version(name, model, width):\n'
        '    @expose_runner(name)\n'
        '    def runner(**kwargs):\n'
        '        return BasicModelRunner(model, overrides=dict(width=width), **kwargs)\n'
    )
    assert find_entry(f'{file}:looped_2').parameters['width'] == 2
    for name in ('looped_1', 'looped_2', 'unlooped'):
        assert find_entry(name).module == find_entry(name).file == str(file)
    assert find_entry(str(file)).name == 'unlooped'  # the first declared


@pytest.mark.parametrize(
    'versions, model, message',
    [
        ('def (', MODEL, r'SyntaxError: .*versions\.py:1'),
        (GOOD.format(name="'x1'"), '\n\ndef (', r'SyntaxError: .*model\.py:3'),
        (GOOD.format(name="'x2'"), None, r"ModuleNotFoundError: .*\.model'.*versions\.py:4"),
        (GOOD.format(name="'x3'"), 'class Other: pass', r"ImportError: cannot import name 'Mine'.*py:4"),
        ('import not_there\n' + GOOD.format(name="'x4'"), MODEL, r"No module named 'not_there' .*py:1"),
        ('1 / 0\n', MODEL, r'ZeroDivisionError: division by zero \(.*versions\.py:1\)'),
        (GOOD.format(name="'x5'"), MODEL + '\n1 / 0\n', r'ZeroDivisionError: .*model\.py:9\)'),
        ('import json\njson.loads("")\n', MODEL, r'JSONDecodeError: .*versions\.py:2\)'),
        ('raise SystemExit(3)', MODEL, r'SystemExit: 3 \(.*versions\.py:1\)'),
        ('class Odd(BaseException): pass\nraise Odd', MODEL, r'Odd \(.*versions\.py:2\)'),
        ('raise ValueError("two\\nlines\\x1b[31m")', MODEL, r'ValueError: two lines'),
        ('x = 1\n', MODEL, r"exposes no runner: decorate a function with @expose_runner\('NAME'\)"),
    ],
)
def test_a_broken_experiment_is_told_with_the_place_of_its_error(tmp_path, versions, model, message):
    import re

    file = write_experiment(tmp_path / 'broken', versions, model)
    error = broken(file)
    assert re.search(message, error) and '\x1b' not in error, error


def test_what_a_broken_file_registered_before_it_failed_is_forgotten(tmp_path):
    file = write_experiment(tmp_path / 'half', GOOD.format(name="'half_done'") + '1 / 0\n', MODEL)
    assert 'ZeroDivisionError' in broken(file)
    with pytest.raises(ExperimentError, match="Unknown experiment 'half_done'.*Broken: .*half"):
        find_entry('half_done')
    with pytest.raises(ExperimentError, match="Experiment 'half' is broken: ZeroDivisionError"):
        find_entry('half')


def test_a_version_whose_runner_fails_is_broken_alone(tmp_path):
    bad = GOOD.format(name="'runs'") + (
        "\n@expose_runner('widht')\n"
        'def second(**kwargs):\n'
        '    return BasicModelRunner(Mine, overrides=dict(widht=7), **kwargs)\n'
    )
    file = write_experiment(tmp_path / 'e', bad, MODEL)
    assert find_entry(str(file)).name == 'runs'
    with pytest.raises(ExperimentError, match="'widht' is broken: .*Did you mean 'width'"):
        find_entry('widht')


def test_ctrl_c_passes(tmp_path):
    file = write_experiment(tmp_path / 'slow', 'raise KeyboardInterrupt', MODEL)
    with pytest.raises(KeyboardInterrupt):
        find_entry(str(file))


def test_what_an_experiment_prints_does_not_spoil_the_list(tmp_path):
    write_experiment(tmp_path / 'loud', 'print("hello")\n' + GOOD.format(name="'loud'"), MODEL)
    write_package(tmp_path, 'loud', 'loud = loud.versions')
    assert listed(tmp_path)['loud']['error'] is None


def test_a_name_taken_twice_shows_both_places(tmp_path):
    file = write_experiment(tmp_path / 'twice', GOOD.format(name="'gpt2ish'"), MODEL)
    error = broken(file)
    assert "Two experiments are named 'gpt2ish'" in error
    assert f'{file}:6' in error and f'{find_entry("gpt2ish").where}' in error


def test_registering_the_same_module_again_registers_nothing_twice():
    import lmplay.exp.gpt2ish.versions as versions

    importlib.reload(versions)
    assert len([e for e in list_experiments() if e.name == 'gpt2ish']) == 1


def test_a_runner_defined_again_in_a_notebook_replaces_the_first(tmp_path):
    python = (
        'from lmplay.base.runner_list import expose_runner\n'
        'cell = "@expose_runner(\'cell\')\\ndef runner(**k): ..."\n'
        'exec(compile(cell, "/tmp/cell_1.py", "exec"))\n'
        'exec(compile("\\n" + cell, "/tmp/cell_2.py", "exec"))\n'
    )
    assert 'must return a BasicModelRunner' in listed(tmp_path, python=python)['cell']['error']


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ExperimentError, match="Did you mean 'gpt2ish'"):
        find_runner('gpt2sih')


def test_a_name_is_a_string():
    with pytest.raises(ExperimentError, match='needs a name, a non-empty string; given: 3'):
        expose_runner(3)  # type: ignore[arg-type]


@pytest.mark.parametrize('value', ['theirs.versions', 'theirs.versions:runner', 'theirs:versions'])
def test_entry_points_of_other_packages_are_found(tmp_path, value):
    file = write_experiment(tmp_path / 'theirs', GOOD.format(name="'their_exp'"), MODEL)
    write_package(tmp_path, 'their-package', f'theirs = {value}')
    for spellings in ([], ['theirs/versions.py'], ['theirs', 'their_exp']):
        row = listed(tmp_path, *spellings)['their_exp']
        assert row == {'file': str(file), 'error': None, 'parameters': {'max_len': 16, 'width': 7}}


def test_two_entry_points_into_one_file_are_one_module(tmp_path):
    write_experiment(tmp_path / 'theirs', GOOD.format(name="'their_exp'"), MODEL)
    write_package(tmp_path, 'theirs', 'a = theirs.versions:runner\nb = theirs.versions:runnr')
    rows = listed(tmp_path)
    assert rows['their_exp']['error'] is None and 'a' not in rows
    assert "theirs.versions has no 'runnr'" in rows['b']['error']


@pytest.mark.parametrize(
    'value, message',
    [
        ('nowhere.versions', "ModuleNotFoundError: No module named 'nowhere'"),
        ('theirs.version', "ModuleNotFoundError: No module named 'theirs.version'"),
        ('theirs.versions:nothing', "theirs.versions has no 'nothing'"),
        ('theirs.model', 'exposes no runner'),
        ('theirs.fails', 'ZeroDivisionError: division by zero (TMP/theirs/fails.py:2)'),
        ('not a module', "must be PACKAGE.versions or PACKAGE.versions:NAME; given: 'not a module'"),
    ],
)
def test_an_entry_point_that_does_not_load_says_why(tmp_path, value, message):
    write_experiment(tmp_path / 'theirs', GOOD.format(name="'their_exp'"), MODEL)
    (tmp_path / 'theirs/fails.py').write_text('\n1 / 0\n')
    write_package(tmp_path, 'theirs', f'point = {value}')
    assert message.replace('TMP', str(tmp_path)) in listed(tmp_path)['point']['error']


def test_a_name_of_two_packages_is_refused_with_both_files_and_nothing_else_is(tmp_path):
    for package in ('one', 'two'):
        more = GOOD.format(name=f"'only_{package}'").replace('def runner', 'def more')
        write_experiment(tmp_path / package, GOOD.format(name="'same_name'") + more, MODEL)
        write_package(tmp_path, package, f'{package} = {package}.versions')
    one, two = (str(tmp_path / package / 'versions.py') for package in ('one', 'two'))
    python = (
        'from lmplay.errors import ExperimentError\n'
        'rows = [e for e in list_experiments() if e.name == "same_name"]\n'
        'assert [e.file for e in rows] == sys.argv[1:] and rows[1].error\n'
        'for name in ("same_name", sys.argv.pop()):\n'
        '    try:\n        find_entry(name)\n'
        '    except ExperimentError as error:\n'
        '        assert "Two experiments" in str(error) and "one/versions.py:6" in str(error)\n'
        '        assert "two/versions.py:6" in str(error)\n'
        '    else:\n        raise AssertionError(name)\n'
    )
    rows = listed(tmp_path, one, two, python=python)
    assert rows['only_one']['error'] is None and rows['only_two']['error'] is None


def test_what_a_program_registers_itself_is_listed(tmp_path):
    python = (
        'from lmplay.base.runner_list import expose_runner\n'
        'from lmplay.errors import ExperimentError\n'
        '@expose_runner("returns_nothing")\ndef nothing(**kwargs): ...\n'
        'try:\n    @expose_runner("returns_nothing")\n    def second(**kwargs): ...\n'
        'except ExperimentError as error:\n    assert "Two experiments are named" in str(error)\n'
        'else:\n    raise AssertionError'
    )
    row = listed(tmp_path, python=python)['returns_nothing']
    assert 'must return a BasicModelRunner; given: NoneType' in row['error']


def test_the_list_has_no_files_given_by_their_paths(tmp_path):
    before = list_experiments()
    write_experiment(tmp_path / 'good', GOOD.format(name="'unlisted'"), MODEL)
    find_entry(str(tmp_path / 'good'))
    broken(write_experiment(tmp_path / 'bad', '1 / 0'))
    assert list_experiments() == before
