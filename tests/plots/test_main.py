"""lmp_plotstats as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from lmplay.plots.__main__ import main


def drawn(path):
    """Fraction of pixels of the picture that are not white."""
    return float((image.imread(path)[..., :3].min(-1) < 0.9).mean())


def test_runs_that_were_evaluated_on_different_tokens_are_told(make_run, tmp_path, capsys):
    for name, digest, text in (('a', 'x', 't'), ('b', 'x', 't'), ('c', 'y', 't'), ('d', 'z', 'u')):
        make_run(tmp_path / name)
        (tmp_path / name / 'stages.json').write_text(
            json.dumps({'s': {'fingerprints': {'evaluation': digest, 'text': text}}})
        )
    assert (
        main([*(str(tmp_path / name) for name in 'ab'), '--out', str(tmp_path)]) == 0
        and not capsys.readouterr().err
    )
    assert main([*(str(tmp_path / name) for name in 'abc'), '--out', str(tmp_path)]) == 0
    assert (
        'a and c were evaluated on different tokens' in (error := capsys.readouterr().err)
        and '--metric bits_per_byte compares them' in error
    )
    out = tmp_path / 'o.svg'
    assert main([*(str(tmp_path / name) for name in 'abc'), '--out', str(out)]) == 0
    capsys.readouterr()
    for group, others in (('a', 'c'), ('c', 'a')):
        assert f'<!-- loss, held-out text of {group} -->' in out.read_text(), others
    by_bytes = ['--metric', 'bits_per_byte', '--out', str(tmp_path)]
    assert main([*(str(tmp_path / name) for name in 'ac'), *by_bytes]) == 0 and not capsys.readouterr().err
    assert (
        main([*(str(tmp_path / name) for name in 'ad'), *by_bytes]) == 0
        and 'on different text' in capsys.readouterr().err
    )


def test_command_line(make_run, make_csv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2 and 'neither ./runs nor ./out_gpt' in capsys.readouterr().err
    make_run(tmp_path / 'runs' / 'a')
    make_run(tmp_path / 'runs' / 'b', 20)
    make_csv(tmp_path / 'out_gpt' / 'old', 9)
    assert main([]) == 0 and drawn(Path(capsys.readouterr().out.strip())) > 0.01
    assert main(['runs/a']) == 0 and (tmp_path / 'runs/a/curves.png').is_file()
    assert (
        main(['runs/a', 'runs/b', '--baseline', 'b', '--out', 'pictures', '--x', 'seconds', '--smooth', '3'])
        == 0
    )
    assert (tmp_path / 'pictures/curves.png').is_file()
    assert (
        main(
            [
                'runs/a',
                '--baseline',
                'out_gpt',
                '--metric',
                'perplexity',
                '--metric',
                'loss',
                '--out',
                'x.svg',
            ]
        )
        == 0
    )
    assert '<!-- loss: difference from old -->' in (tmp_path / 'x.svg').read_text()


def test_runs_of_comparisons_are_named_by_experiment_and_seed(make_run, tmp_path, capsys):
    for place in ('gpt2ish,lr=0.1-0123456789/seed-0', 'mine-0123456789/seed-12', 'mine-abcdef0123/seed-12'):
        make_run(tmp_path / 'compare' / 'c' / 'runs' / place)
    out = tmp_path / 'o.svg'
    assert main([str(tmp_path / 'compare'), '--out', str(out), '--baseline', 'gpt2ish,lr=0.1 seed 0']) == 0
    for name in ('gpt2ish,lr=0.1 seed 0', 'mine (0123456789) seed 12', 'mine (abcdef0123) seed 12'):
        assert f'<!-- {name} -->' in out.read_text(), name


def test_runs_of_one_name_are_told_apart(make_run, tmp_path):
    make_run(tmp_path / 'x' / 'run')
    make_run(tmp_path / 'y' / 'run')
    out = tmp_path / 'o.svg'
    assert (
        main(
            [
                str(tmp_path / 'x/run'),
                str(tmp_path / 'y/run'),
                str(tmp_path / 'x/run'),
                '--out',
                str(out),
                '--baseline',
                str(tmp_path / 'y/run'),
            ]
        )
        == 0
    )
    assert [
        text in out.read_text()
        for text in (
            '<!-- run (1) -->',
            '<!-- run (2) -->',
            '<!-- run (3) -->',
            '<!-- loss: difference from run (2) -->',
        )
    ] == [True, True, False, True]


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        (['nowhere'], "No run at 'nowhere'"),
        (['empty'], "'empty' holds no run"),
        (['runs', '--smoth', '3'], "Unknown option '--smoth'. Did you mean '--smooth'?"),
        (['runs/a', '--metric', 'los'], "Unknown metric 'los'. Did you mean 'loss'?"),
        (['runs/a', '--baseline', 'c'], "Unknown baseline 'c'"),
        (['runs/a', '--baseline', 'runs'], 'holds 2: a, b'),
        (['out_gpt', '--x', 'seconds'], 'old recorded no seconds; choose another --x'),
        (['runs', '--smooth', '0'], '--smooth takes a whole number'),
        (['runs', '--out', 'x.abc'], "Can't write the picture 'x.abc'"),
        (['none'], 'Nothing to plot'),
        (['bad_train_stats.csv'], "its first line must name the column 'iter'"),
        (['runs', 'runs/a', '--baseline', 'none'], 'The baseline none has recorded no points yet'),
    ],
)
def test_mistakes_are_one_sentence(make_run, make_csv, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / 'runs' / 'a', 3)
    make_run(tmp_path / 'runs' / 'b', 3)
    make_run(tmp_path / 'none', 0)
    make_csv(tmp_path / 'out_gpt' / 'old', 3)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bad_train_stats.csv').write_text('1,2,3\n')
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_help_imports_neither_torch_nor_matplotlib():
    script = (
        'import sys\nfrom lmplay.plots.__main__ import main\ntry: main(["--help"])\nexcept SystemExit: pass\n'
        'assert not {"torch", "matplotlib", "numpy"} & set(sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0 and 'lmp_plotstats' in done.stdout, done.stderr


def test_the_log_beside_a_run_is_no_run(make_run, tmp_path):
    """As `runs/*/seed-*` of a comparison gives it."""
    make_run(tmp_path / 'seed-0')
    (tmp_path / 'seed-0.log').write_text('what it printed')
    assert main([*map(str, sorted(tmp_path.glob('seed-*'))), '--out', str(tmp_path)]) == 0
