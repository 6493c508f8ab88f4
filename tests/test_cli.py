import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lmplay
from lmplay.cli import CommandParser, console, run_command
from lmplay.errors import PlanError, UserError
from tests.helpers import ROOT


def parser():
    p = CommandParser('lmp_test', description='A test.', examples='lmp_test x\nlmp_test x --number 3')
    p.add_argument('name')
    p.add_argument('--number', type=int)
    p.add_argument('--kind', choices=('a', 'b'))
    return p


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        (['x', '--numbr', '3'], "Unknown option '--numbr'. Did you mean '--number'? See lmp_test --help."),
        (
            ['x', '--num', '3'],
            "Unknown option '--num'. Did you mean '--number'? See lmp_test --help.",
        ),  # no abbreviations
        (['x', 'y'], "Unknown argument 'y'. See lmp_test --help."),
        (['x', '--number', '3.5'], "Argument --number: invalid int value: '3.5'. See lmp_test --help."),
        (['x', '--kind', 'c'], "Argument --kind: invalid choice: 'c'"),
        ([], 'The following arguments are required: name. See lmp_test --help.'),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError) as error:
        parser().parse_args(arguments)
    assert str(error.value).startswith(sentence) and '\n' not in str(error.value)


def test_good_options_pass():
    given = vars(parser().parse_args(['x', '--number', '3']))
    assert given == {'name': 'x', 'number': 3, 'kind': None}


def test_exit_codes(capsys):
    def fail(error):
        raise error

    assert run_command('lmp_test', lambda: None) == 0 and run_command('lmp_test', lambda: 3) == 3
    assert run_command('lmp_test', lambda: fail(PlanError('No plan.'))) == 2
    assert capsys.readouterr().err == 'lmp_test: No plan.\n'
    assert run_command('lmp_test', lambda: fail(KeyboardInterrupt()), stopped='stopped here.') == 130
    assert capsys.readouterr().err == '\nlmp_test: stopped here.\n'
    with pytest.raises(ZeroDivisionError):  # a bug stays one
        run_command('lmp_test', lambda: 1 / 0)


def test_sigterm_ends_any_command_with_143_and_ctrl_c_with_130(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert run_command('lmp_test', lambda: signal.raise_signal(signal.SIGTERM)) == 143
    assert run_command('lmp_test', lambda: signal.raise_signal(signal.SIGINT)) == 130
    assert 'stopped' in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_before_training_begins_is_handled(tmp_path):
    """While torch is imported, long before the trainer's own handlers stand."""
    code = (
        'import os, signal, sys\n'
        'from lmplay.train.__main__ import main\n'
        'class Finder:\n'
        '    def find_spec(self, name, *rest):\n'
        '        if name == "torch": os.kill(os.getpid(), signal.SIGTERM)\n'
        'sys.meta_path.insert(0, Finder())\n'
        'sys.exit(main(["--exp", "gpt2ish", "--run-dir", sys.argv[1]]))'
    )
    run = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'run')], capture_output=True, text=True)
    assert run.returncode == 143 and run.stderr == '\nlmp_trainer: stopped.\n'
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('path', ['/', 'x' * 300, '/dev/null/x'])
def test_what_the_system_refuses_is_one_sentence(path, capfd):
    assert run_command('lmp_test', lambda: open(path, 'w')) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_closed_standard_error_changes_no_exit_code():
    code = (
        'import os, sys\nfrom lmplay.cli import run_command\nfrom lmplay.errors import UserError\n'
        'def fail(): raise UserError("x.")\nsys.stderr.close()\nsys.exit(run_command("x", fail))'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 2


SCRIPTS = dict(re.findall(r"'(lmp_\w+)=([\w.:]+)'", (ROOT / 'setup.py').read_text()))


@pytest.fixture(params=SCRIPTS)
def told(request, capsys):
    """A command's name, and what it prints for an option before it exits with 0."""

    def tell(*options: str) -> str:
        module, function = SCRIPTS[request.param].split(':')
        with pytest.raises(SystemExit) as ended:
            getattr(importlib.import_module(module), function)(list(options))
        assert ended.value.code == 0
        return capsys.readouterr().out

    return request.param, tell


def test_every_command_tells_its_version(told):
    name, tell = told
    assert f'{name} (lmplay {lmplay.__version__})' in tell('--version')


def test_help_is_as_wide_as_asked_and_ends_with_examples_and_exit_codes(told, monkeypatch):
    name, tell = told
    monkeypatch.setenv('COLUMNS', '70')
    options, _, examples = tell('--help').partition('\nexamples:\n')
    assert max(map(len, options.splitlines())) <= 70
    assert examples.count(f'  {name}') >= 2 and 'exit codes: 0 done; 2 ' in examples
    for option in re.findall(r'--[a-z-]+', examples):
        assert option in ''.join(options.split()), option


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_every_command_prints_its_completion(told, shell, tmp_path):
    name, tell = told
    script = tell('--print-completion', shell)
    assert name in script and 'version' in script
    if shutil.which(shell):
        (tmp_path / 'script').write_text(script)
        parsed = subprocess.run([shell, '-n', str(tmp_path / 'script')], capture_output=True, text=True)
        assert parsed.returncode == 0, parsed.stderr


def test_bash_completes_an_option(tmp_path):
    if not shutil.which('bash'):
        pytest.skip('bash is not here')
    code = 'from lmplay.train.__main__ import main; main()'
    script = subprocess.run(
        [sys.executable, '-c', code, '--print-completion', 'bash'], capture_output=True, text=True
    ).stdout
    ask = 'COMP_WORDS=(lmp_trainer --valid) COMP_CWORD=1; _shtab_lmp_trainer; echo "${COMPREPLY[@]}"'
    found = subprocess.run(['bash', '-c', f'{script}\n{ask}'], capture_output=True, text=True)
    assert found.stdout.split() == [
        '--validation-bytes',
        '--validation-document-bytes',
        '--validation-interval',
    ], found.stderr


@pytest.mark.parametrize('no_color', [False, True])
def test_colours_are_left_out_where_asked(monkeypatch, capsys, no_color):
    """NO_COLOR, see no-color.org; a terminal is stood in for by FORCE_COLOR."""
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.delenv('NO_COLOR', raising=False)
    if no_color:
        monkeypatch.setenv('NO_COLOR', '1')
    console().print('red', style='red')
    assert ('\x1b[31m' in capsys.readouterr().out) is not no_color
    colours = subprocess.run(
        ['grep', '-rnE', r'\\(x1b|033|e)\[', str(ROOT / 'lmplay'), '--include=*.py'],
        capture_output=True,
        text=True,
    )
    assert not colours.stdout, 'colours are for rich, which asks NO_COLOR'


@pytest.mark.parametrize('columns, width', [(None, 160), ('60', 60)])
def test_tables_in_a_pipe_are_as_wide_as_columns_says(monkeypatch, capsys, columns, width):
    monkeypatch.delenv('COLUMNS', raising=False)
    if columns:
        monkeypatch.setenv('COLUMNS', columns)
    console().print('x ' * 200)
    assert width - 2 <= max(map(len, capsys.readouterr().out.splitlines())) <= width


NAMES = ['a\0b', '\ud800', 'x' * 5000, '/'.join('y' * 200 for _ in range(40)), '/dev/null/x', '/proc/1/mem/x']


@pytest.mark.parametrize('action', ['open', 'stat', 'resolve', 'mkdir', 'iterdir'])
@pytest.mark.parametrize('name', NAMES, ids=ascii)
def test_what_the_system_says_of_a_path_is_one_sentence(name, action, capsys):
    path = Path(name)
    actions = {
        'open': path.read_bytes,
        'stat': path.stat,
        'resolve': lambda: path.resolve(strict=True),
        'mkdir': path.mkdir,
        'iterdir': lambda: list(path.iterdir()),
    }
    assert run_command('x', actions[action]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_errors_of_the_program_are_not_taken_for_the_systems():
    for error in (ValueError('no'), RuntimeError('no'), LookupError('no')):

        def fail(error=error):
            raise error

        with pytest.raises(type(error)):
            run_command('x', fail)


def test_memory_that_can_not_be_had_is_said(capsys):
    import torch

    for ask in (lambda: torch.zeros(10**15), lambda: np.zeros(10**15), lambda: torch.zeros(2**62, 2**62)):
        assert run_command('x', ask) == 2
        assert 'memory' in capsys.readouterr().err


@pytest.mark.parametrize('closed', ['1', '2'])
def test_a_command_that_is_started_with_a_closed_stream_does_its_work(closed, tmp_path):
    line = f'{sys.executable} -m lmplay.train --dump-config {tmp_path / "c.yaml"} --lr 0.1 {closed}>&-'
    assert subprocess.run(['sh', '-c', line], env=os.environ | {'PYTHONPATH': str(ROOT)}).returncode == 0
    assert 'lr: 0.1' in (tmp_path / 'c.yaml').read_text()
