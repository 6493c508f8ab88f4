import json
import subprocess
import sys

import pytest

from lmplay.base.base_model import BasicModelRunner
from lmplay.base.runner_list import expose_runner, find_entry, find_runner, list_experiments
from lmplay.errors import ExperimentError


def write_experiment(folder, versions: str, model: str | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / '__init__.py').write_text('')
    (folder / 'versions.py').write_text(versions)
    if model is not None:
        (folder / 'model.py').write_text(model)
    return folder / 'versions.py'


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


def test_lists_the_shipped_experiments_without_torch():
    code = (
        'import sys, json; from lmplay.base.runner_list import list_experiments as l; r = [(e.name, e.error) for e in l()];'
        "print(json.dumps([r, 'torch' in sys.modules]))"
    )
    rows, torch_imported = json.loads(
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    )
    assert not torch_imported
    names = [name for name, error in rows if error is None]
    assert {'gpt2ish', 'gpt2ish_med', 'gpt2ish_large', 'test_runner', 's_gpt2ish'} <= set(names)
    assert len(names) == len(set(names))


def test_an_experiment_by_its_path(tmp_path):
    file = write_experiment(tmp_path / 'e', GOOD.format(name="'by_path'"), MODEL)
    assert find_entry(str(file)).parameters == {'max_len': 16, 'width': 7}
    model = find_runner(str(file)).function(max_len=8).build()
    assert model.hyperparameters == {'max_len': 8, 'width': 7}
    assert find_entry(f'{file}:by_path').name == 'by_path'
    with pytest.raises(ExperimentError, match="Did you mean 'by_path'"):
        find_entry(f'{file}:bypath')


def test_names_made_by_a_program_are_found_by_importing(tmp_path):
    file = write_experiment(tmp_path / 'e', GOOD.format(name="'made_' + 'up'"), MODEL)
    assert [e.name for e in list_experiments(file) if e.module == str(file)] == ['made_up']


@pytest.mark.parametrize(
    'versions, model, message',
    [
        ('def (', MODEL, 'SyntaxError'),
        (GOOD.format(name="'x1'"), 'def (', 'SyntaxError'),
        (GOOD.format(name="'x2'"), None, "no module '.model'"),
        (GOOD.format(name="'x3'"), 'class Other: pass', "defines no 'Mine'"),
        (
            'import not_installed_at_all\n' + GOOD.format(name="'x4'"),
            MODEL,
            "no module named 'not_installed_at_all'",
        ),
        ('1 / 0\n' + GOOD.format(name="'x' + '5'"), MODEL, 'ZeroDivisionError'),
    ],
)
def test_a_broken_experiment_is_one_row_with_its_error(tmp_path, versions, model, message):
    file = write_experiment(tmp_path / 'broken', versions, model)
    rows = list_experiments(file)
    own = [e for e in rows if e.module == str(file)]
    assert len(own) == 1 and message in own[0].error
    assert 'gpt2ish' in [e.name for e in rows if e.error is None]
    with pytest.raises(ExperimentError):
        find_runner(str(file))


def test_a_name_taken_twice_shows_both_places(tmp_path):
    file = write_experiment(tmp_path / 'twice', GOOD.format(name="'gpt2ish'"), MODEL)
    row = next(e for e in list_experiments(file) if e.module == str(file))
    assert str(file) in row.error and 'gpt2ish/versions.py' in row.error.replace('\\', '/')

    @expose_runner('taken')
    def first(**kwargs): ...

    with pytest.raises(ExperimentError, match='Two experiments'):

        @expose_runner('taken')
        def second(**kwargs): ...


def test_registering_the_same_module_again_registers_nothing_twice():
    import importlib

    import lmplay.exp.gpt2ish.versions as versions

    importlib.reload(versions)
    assert len([e for e in list_experiments() if e.name == 'gpt2ish']) == 1


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ExperimentError, match="Did you mean 'gpt2ish'"):
        find_runner('gpt2sih')


def test_entry_points_of_other_packages_are_found(tmp_path):
    package = tmp_path / 'their_package'
    write_experiment(package, GOOD.format(name="'theirs'"), MODEL)
    info = tmp_path / 'their_package-1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: their-package\nVersion: 1\n')
    (info / 'entry_points.txt').write_text('[lmplay.experiments]\ntheirs = their_package.versions\n')
    code = (
        'import sys; sys.path.insert(0, sys.argv[1]); from lmplay.base.runner_list import find_runner, list_experiments;'
        "print([e.parameters for e in list_experiments() if e.name == 'theirs'], find_runner('theirs').function().build().name)"
    )
    out = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
    assert out.stdout.strip() == "[{'max_len': 16, 'width': 7}] mine", out.stderr


def test_reading_agrees_with_importing():
    for entry in list_experiments():
        runner = find_runner(entry.name).function()
        assert isinstance(runner, BasicModelRunner)
        read = {k: v for k, v in entry.parameters.items() if k != 'version'}
        assert set(read) == set(runner.declared), entry.name
        assert all(
            read[k] == runner.parameters[k] for k in read if isinstance(read[k], (int, float, bool))
        ), entry.name


def test_what_a_file_raises_on_import_and_a_runner_that_returns_nothing_are_told(tmp_path):
    (tmp_path / 'versions.py').write_text('1 / 0\n')
    with pytest.raises(ExperimentError, match='fails to import: ZeroDivisionError'):
        find_runner(str(tmp_path / 'versions.py'))

    @expose_runner('returns_nothing')
    def nothing(**kwargs): ...

    with pytest.raises(
        ExperimentError, match="'returns_nothing' .* must return a BasicModelRunner; given: NoneType"
    ):
        find_runner_by_name('returns_nothing')()


def find_runner_by_name(name):
    from lmplay.base import runner_list

    return runner_list._registered[name].function
