"""What a run keeps of its model's source: whole, small, and nothing from outside the experiment's folder."""

import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmplay.base.runner_list import Entry, find_entry
from lmplay.runs.finished import StartedRun
from lmplay.runs.source import MOST_BYTES, SOURCE, keep_source, read_files
from tests.helpers import ROOT


@pytest.fixture
def package(tmp_path):
    """The folder of an experiment."""
    folder = tmp_path / 'mine'
    (folder / 'parts').mkdir(parents=True)
    (folder / 'versions.py').write_text('raise SystemExit("executed")')
    (folder / 'model.py').write_text('width = 1\n')
    (folder / 'parts' / 'block.py').write_text('depth = 2\n')
    (folder / 'README.md').write_text('# Mine\n')
    return folder


def entry(folder, name='mine', file='versions.py', module='mine.versions') -> Entry:
    return Entry(name, '', module, str(folder / file))


@pytest.fixture
def run(tmp_path, package) -> StartedRun:
    (tmp_path / 'run').mkdir()
    keep_source(tmp_path / 'run', [entry(package)])
    return StartedRun(tmp_path / 'run', {}, {})


def test_the_folder_of_the_experiment_is_kept(run):
    assert run.source == {
        'versions.py': 'raise SystemExit("executed")',
        'model.py': 'width = 1\n',
        'parts/block.py': 'depth = 2\n',
    }
    assert run.source_changed() == []


def test_files_that_are_edited_new_or_gone_are_named(run, package):
    (package / 'model.py').write_text('width = 2\n')
    (package / 'parts' / 'block.py').unlink()
    (package / 'parts' / 'more.py').write_text('')
    assert run.source_changed() == ['model.py', 'parts/block.py', 'parts/more.py']


def test_a_new_readme_is_no_new_source(run, package):
    (package / 'README.md').write_text('# Mine: what was measured\n')
    assert run.source_changed() == []


def test_an_experiment_that_is_gone_has_changed_whole(run, package):
    package.rename(package.with_name('elsewhere'))
    assert run.source_changed() == sorted(run.source)


def test_a_run_that_kept_nothing_has_no_source(tmp_path):
    run = StartedRun(tmp_path, {}, {})
    assert run.source == {} and run.source_changed() == []


@pytest.mark.parametrize('origins', ['', '[]', '3', '{"": 3}', '{"": "/nowhere"}'])
def test_a_mangled_index_is_no_crash(run, origins):
    (run.folder / SOURCE / '.origins.json').write_text(origins)
    assert isinstance(run.source_changed(), list) and run.source


def test_caches_large_files_and_nested_runs_are_left_out(tmp_path, package):
    for folder in ('__pycache__', '.git', 'runs/a'):
        (package / folder).mkdir(parents=True)
        (package / folder / 'extra.py').write_text('')
    for name in ('settings.json', 'plan.json'):
        (package / 'runs' / 'a' / name).write_text('{}')
    (package / 'weights.json').write_text('1' * (MOST_BYTES + 1))
    (package / 'data.bin').write_bytes(b'\0')
    assert set(read_files(package)) == {'versions.py', 'model.py', 'parts/block.py'}


def test_links_lead_nowhere_outside(tmp_path, package):
    (tmp_path / 'secret').mkdir()
    (tmp_path / 'secret' / 'key.json').write_text('{}')
    (package / 'linked').symlink_to(tmp_path / 'secret')
    (package / 'key.json').symlink_to(tmp_path / 'secret' / 'key.json')
    (package / 'loop').symlink_to(package)
    (package / 'gone.py').symlink_to(package / 'nothing.py')
    os.mkfifo(package / 'pipe.py')
    (package / 'same.py').symlink_to(package / 'model.py')
    found = read_files(package)
    assert set(found) == {'versions.py', 'model.py', 'parts/block.py', 'same.py'}


def test_several_experiments_are_kept_side_by_side(tmp_path, package):
    other = tmp_path / 'other' / 'mine'
    other.mkdir(parents=True)
    (other / 'versions.py').write_text('')
    keep_source(tmp_path, [entry(package), entry(other), entry(package, 'again')])
    assert set(StartedRun(tmp_path, {}, {}).source) >= {'mine/model.py', 'mine-2/versions.py'}
    (other / 'versions.py').write_text('changed')
    assert StartedRun(tmp_path, {}, {}).source_changed() == ['mine-2/versions.py']


def test_what_was_kept_before_is_not_lost(run, package):
    for width in (2, 3):
        (package / 'model.py').write_text(f'width = {width}\n')
        keep_source(run.folder, [entry(package)])
    kept = {f.name: (f / 'model.py').read_text() for f in run.folder.glob('source*')}
    assert kept == {
        'source': 'width = 3\n',
        'source-before-1': 'width = 1\n',
        'source-before-2': 'width = 2\n',
    }


def test_a_script_is_kept_alone_and_a_notebook_not_at_all(tmp_path, package):
    keep_source(tmp_path, [entry(package, file='model.py', module='__main__')])
    assert list(StartedRun(tmp_path, {}, {}).source) == ['model.py']
    (tmp_path / 'b').mkdir()
    keep_source(tmp_path / 'b', [entry(package, file='<ipython-input-1>', module='__main__')])
    assert StartedRun(tmp_path / 'b', {}, {}).source == {}


@settings(max_examples=20)
@given(st.dictionaries(st.text(string.ascii_lowercase, min_size=1), st.binary(max_size=50), max_size=5))
def test_any_files_come_back_byte_for_byte(tmp_path_factory, contents):
    folder, run = (tmp_path_factory.mktemp(name) for name in ('package', 'run'))
    for name, content in contents.items():
        (folder / f'{name}.py').write_bytes(content)
    keep_source(run, [entry(folder)])
    assert read_files(run / SOURCE) == {f'{name}.py': content for name, content in contents.items()}


def test_shipped_experiments_are_kept_whole(tmp_path):
    keep_source(tmp_path, [find_entry('gpt2_moe')])
    folder = ROOT / 'lmplay' / 'exp' / 'gpt2_moe'
    assert set(StartedRun(tmp_path, {}, {}).source) >= {f.name for f in folder.glob('*.py')}
