"""Each file of examples/ runs from its first line to its last, with little to train."""

import importlib.util
import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import ROOT

EXAMPLES = ROOT / 'examples'


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Imports an example and runs it in a folder of the test's own."""

    def run(name: str, *arguments: object) -> None:
        monkeypatch.chdir(tmp_path)
        spec = importlib.util.spec_from_file_location(f'example_{name}', EXAMPLES / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main([str(argument) for argument in arguments])

    return run


def test_a_mixture_and_its_xray(script, corpus, tmp_path, capsys):
    script('mixture', corpus, '--tokens', 4000)
    assert (tmp_path / 'runs/mixture/routing/index.html').is_file()
    told = capsys.readouterr().out
    assert 'Share of the tokens, by expert:' in told and '--- mixture, temperature 0.8\nThe ' in told


def test_a_model_of_ones_own(corpus, cache, tmp_path):
    """As a user starts it: the comparison imports the script a second time."""
    command = [sys.executable, EXAMPLES / 'own_model.py', corpus, '--tokens', '3000', '--seeds', '1']
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'LMP_DATASETS': str(cache)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'no verdict' in done.stdout and 'The factors it learned: mean ' in done.stdout
    assert (tmp_path / 'compare/smeared/report.html').is_file()


def test_the_notebook(corpus, tmp_path, monkeypatch):
    for name, value in {'DATA': corpus, 'TOKENS': 3000, 'SEEDS': 2}.items():
        monkeypatch.setenv(f'LMPLAY_{name}', str(value))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    notebook = nbformat.read(EXAMPLES / 'two_models.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells), 'notebooks are kept without outputs'
    NotebookClient(notebook, timeout=280, resources={'metadata': {'path': str(tmp_path)}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get('outputs', [])]
    pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
    told = ''.join(o.get('text', '') for o in outputs)
    assert len(pictures) == 2 and 'nats per token (' in told and '--- modern\nThe ' in told
