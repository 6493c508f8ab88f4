"""lmp_new as a user runs it: a copy that trains at once under its own name; bad names are refused,
nothing is written over."""

import ast
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from lmplay.base.runner_list import find_runner, list_experiments
from lmplay.checks import check_experiment
from lmplay.new.__main__ import main
from lmplay.new.copying import README, class_name, copy_experiment
from lmplay.new.versions import only_version, runners_of


def test_help_is_quick_and_imports_no_torch():
    code = (
        'import sys; from lmplay.new.__main__ import main\ntry: main(["--help"])\nexcept SystemExit: pass\n'
        'assert "torch" not in sys.modules and "pydantic" not in sys.modules'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.returncode == 0 and '--from' in out.stdout, out.stderr


@pytest.mark.parametrize(
    'origin, name, others',
    [
        ('gpt2ish', 'tale', ['tale_med', 'tale_large', 'tale_test_runner', 's_tale']),
        ('some', 'fable', ['fable_no_alpha', 'fable_baseline']),
    ],
)
def test_a_copy_has_its_own_names_and_keeps_the_contract(tmp_path, capsys, origin, name, others):
    assert main([name, '--from', origin, '--all', '--to', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count('  ok ') == 13 and 'WRONG' not in out and f'lmp_compare {origin}' in out
    versions = tmp_path / name / 'versions.py'
    assert type(find_runner(f'{versions}:{name}').function().build('meta')).__name__ == name.capitalize()
    for other in others:
        assert find_runner(f'{versions}:{other}').name == other
    assert find_runner(f'{versions}:{others[0]}').function().build('meta').name.startswith(others[0])
    assert (tmp_path / name / 'README.md').read_text() == README.format(name=name, base=origin)
    assert not list(tmp_path.glob('.*'))


def test_a_copy_trains_as_the_original(tmp_path, command, tiny_plan):
    """The same weights, data and seed: equal losses to the last digit, under another name."""
    copy_experiment('tale', origin='gpt2ish', folder=tmp_path)
    plan = tiny_plan(
        model={'num_blocks': 1, 'embed_dim': 16, 'num_heads': 2, 'max_len': 32, 'tokenizer': 'bytes'}
    )
    found = []
    for exp in ('gpt2ish', str(tmp_path / 'tale' / 'versions.py')):
        out = command(
            'train',
            '--exp',
            exp,
            '--training-plan',
            plan,
            '--run-dir',
            exp.replace('/', '_'),
            '--device',
            'cpu',
            '--quiet',
        )
        assert out.returncode == 0, out.stderr
        found.append(json.loads((tmp_path / exp.replace('/', '_') / 'summary.json').read_text()))
    assert found[0]['validation_loss'] == found[1]['validation_loss']
    assert found[0]['model'] == 'gpt2ish_1_32' and found[1]['model'] == 'tale_1_32'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['My-Exp'], 'small letters'),
        (['list'], 'keeps for itself'),
        (['x' * 300], 'at most 60 letters'),
        (['block'], 'called Block'),
        (['tale', '--check', 'gpt2ish'], 'Give the name of a new experiment'),
        (['--check', 'gpt2sh'], "Did you mean 'gpt2ish'"),
        (['2fast'], 'small letters'),
        (['class'], 'small letters'),
        (['gpt2ish'], 'is taken'),
        (['tale', '--from', 'gpt2sh'], "Did you mean 'gpt2ish'"),
        (['tale', '--form', 'gpt2ish'], "Did you mean '--from'"),
        (['tale', '--to', '/none/here'], 'No directory'),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path, capsys, arguments, message):
    to = [] if '--to' in arguments else ['--to', str(tmp_path)]
    assert main([*arguments, *to]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path, capsys):
    (tmp_path / 'tale').mkdir()
    (tmp_path / 'tale' / 'mine.txt').write_text('mine')
    assert main(['tale', '--to', str(tmp_path)]) == 2
    assert 'exists already' in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob('*')] == ['tale', 'mine.txt']


@pytest.mark.parametrize(
    'before, after, wrong',
    [
        ('self.attn(', 'self.attn(', None),
        (
            'self.pos_embed[:, start : start + x.shape[1]]',
            'self.pos_embed[:, : x.shape[1]]',
            'generation with the cache',
        ),
        ('return self.ln(x)', 'return self.ln(x + x.mean(1, keepdim=True))', 'no position sees the future'),
        (
            'self.tok_embed(x) + self.pos_embed[:, start : start + x.shape[1]]',
            'self.tok_embed(x)',
            'gets a gradient',
        ),
        (
            'self.fc = nn.Linear(embed_dim, vocab_size,',
            'self.fc = nn.Linear(embed_dim, 9,',
            'shape of the logits',
        ),
    ],
)
def test_the_check_finds_what_is_broken(tmp_path, capsys, before, after, wrong):
    name = f'broken_{zlib.crc32(after.encode())}'  # a process knows one experiment of a name
    folder = copy_experiment(name, origin='gpt2ish', folder=tmp_path)
    text = (folder / 'model.py').read_text()
    assert wrong is None or before in text
    (folder / 'model.py').write_text(text.replace(before, after))
    found = [f.check for f in check_experiment(str(folder / 'versions.py')) if f.problem]
    assert (wrong is None and not found) or any(wrong in what for what in found), found
    assert main(['--check', str(folder / 'versions.py')]) == (0 if wrong is None else 1)
    assert capsys.readouterr().out.count('WRONG') == len(found)


def test_the_version_that_was_asked_for_gets_the_name(tmp_path):
    folder = copy_experiment('little', origin='test_runner', folder=tmp_path, all_versions=True)
    text = (folder / 'versions.py').read_text()
    assert (
        "@expose_runner('little', description='From test_runner: " in text
        and "@expose_runner('little_gpt2ish'," in text
    )


@pytest.mark.parametrize(
    'entry', [e for e in list_experiments() if e.module.startswith('lmplay.')], ids=lambda e: e.name
)
def test_one_version_is_left_and_nothing_that_it_does_not_use(entry):
    source = Path(entry.file).read_text()
    text = only_version(source, entry.name)
    assert runners_of(ast.parse(text)) == [entry.name]
    built = {}
    for code in (source, text):
        module = {'__name__': entry.module, '__package__': entry.module.rpartition('.')[0]}
        exec(code.replace('from lmplay.base.runner_list import expose_runner', EXPOSE), module)
        built[code] = module['exposed'][entry.name]()
        assert built[code].model_class
    assert built[text].given == built[source].given and built[text].training == built[source].training
    defined = {
        a.asname or a.name for s in ast.parse(text).body if isinstance(s, ast.ImportFrom) for a in s.names
    }
    defined |= {t.id for s in ast.parse(text).body if isinstance(s, ast.Assign) for t in s.targets}
    used = {
        n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    assert defined <= used


EXPOSE = """
exposed = {}
def expose_runner(name, description=''):
    return lambda function: exposed.setdefault(name, function)
"""


def test_a_version_that_the_chosen_one_is_made_of_is_kept():
    text = """
A, B = 1, 2
# about C
C = 3
@expose_runner('one')
def one(**k):
    return BasicModelRunner(M, **k)
@expose_runner('two')
def two(**k):
    return one(**k)
@expose_runner('three')
def three(**k):
    return BasicModelRunner(M, c=C, **k)
"""
    assert runners_of(ast.parse(only_version(text, 'two'))) == ['one', 'two']
    assert 'C' not in only_version(text, 'one') and 'A, B' in only_version(text, 'one')


def test_a_copy_of_one_version(tmp_path, capsys):
    assert main(['llama', '--from', 'modern', '--to', str(tmp_path)]) == 0
    assert 'WRONG' not in capsys.readouterr().out
    versions = (tmp_path / 'llama' / 'versions.py').read_text()
    assert versions.count('@expose_runner') == 1 and 'smollm2' not in versions
    assert 'BasicModelRunner(Llama,' in versions
    model = find_runner(f'{tmp_path}/llama/versions.py').function().build('meta')
    assert model.name.startswith('llama_')


def test_class_names():
    assert class_name('my_experiment') == 'MyExperiment' and class_name('a1_b') == 'A1B'
