import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image

from lmplay.errors import DataError, UserError
from lmplay.plots.__main__ import main
from lmplay.plots.plot import difference, find_runs, plot, plot_run, smooth
from lmplay.runs.recorder import Recorder

PNG = b'\x89PNG'


def make_run(folder, points=30, *, factor=1.0, loss=lambda n: 2 + 8 / n, **more):
    recorder = Recorder(folder)
    for n in range(1, points + 1):
        at = {
            'stage': 'a' if n <= points / 2 else 'b',
            'step': n,
            'samples': 5 * n,
            'tokens': 100 * n,
            'seconds': 0.5 * n,
        }
        recorder.train(at | {'loss': factor * loss(n), 'accuracy': 0.3} | more)
        if n % 5 == 0:
            domains = {
                d: {'loss': factor * loss(n) + i, 'tokens': 7} for i, d in enumerate(('code', 'prose'))
            }
            recorder.validation(
                at
                | {
                    'loss': factor * loss(n),
                    'accuracy': 0.2,
                    'perplexity': 9.0,
                    'bits_per_byte': 1.0,
                    'domains': domains,
                }
            )
    recorder.close()
    return folder


def make_csv(prefix, rows):
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    for kind in ('train', 'validate'):
        Path(f'{prefix}_{kind}_stats.csv').write_text(
            'iter,accuracy,loss,tokens\n'
            + ''.join(f'{5 * n},0.1,{n / 7},{50 * n}\n' for n in range(1, rows + 1))
        )


def drawn(path):
    """Fraction of pixels of the picture that are not white; a test of the eye is beyond a test."""
    assert path.read_bytes()[:4] == PNG
    return float((image.imread(path)[..., :3].min(-1) < 0.9).mean())


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), max_size=30), st.integers(1, 12))
def test_smooth_is_a_centred_mean(values, width):
    expected = []
    for i, value in enumerate(values):
        window = [v for v in values[max(0, i - (width - 1) // 2) : i + width // 2 + 1] if not math.isnan(v)]
        expected.append(math.nan if math.isnan(value) else sum(window) / len(window))
    np.testing.assert_allclose(smooth(np.array(values, float), width), expected, atol=1e-9)


xs = st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=10).map(sorted)


@given(xs, xs)
def test_difference_of_two_lines_is_a_line(a, b):
    a, b = np.array(a, float), np.array(b, float)
    x, y = difference((a, 3 * a + 1), (b, a[0] + 2 * b))
    assert all(max(a[0], b[0]) <= v <= min(a[-1], b[-1]) for v in x)
    assert set(x) == {v for v in (*a, *b) if max(a[0], b[0]) <= v <= min(a[-1], b[-1])}
    np.testing.assert_allclose(y, x + 1 - a[0], atol=1e-9)


def test_difference_ignores_gaps():
    x, y = difference(
        (np.array([0.0, 1, 2]), np.array([1.0, np.nan, 3])), (np.array([0.0, 2]), np.array([0.0, 0]))
    )
    assert list(x) == [0, 2] and list(y) == [1, 3]


def test_a_run_is_read_with_its_stages_and_domains(tmp_path):
    (run,) = find_runs(make_run(tmp_path / 'one'))
    assert run.name == 'one' and run.stages == [('a', 0), ('b', 15)]
    x, y = run.curve('train', 'tokens', 'loss')
    assert list(x) == [100 * n for n in range(1, 31)] and y[0] == 10
    assert run.curve('prose', 'tokens', 'loss')[0][0] == 500  # the run's tokens, not the domain's
    assert run.extent('seconds') == 15


def test_repeated_points_keep_the_last(tmp_path):
    (tmp_path / 'm_train_stats.csv').write_text(
        'iter,accuracy,loss,tokens\n5,,1,1\n10,,2,2\n5,,3,3\n15,,4,4\n'
    )
    (run,) = find_runs(tmp_path / 'm_train_stats.csv')
    assert [list(v) for v in run.curve('train', 'samples', 'loss')] == [[5, 10, 15], [3, 2, 4]]


def test_the_original_tables(tmp_path):
    make_csv(tmp_path / 'old' / 'gpt2ish_6L_1024', 9)
    make_csv(tmp_path / 'old' / 'unet_6L', 5)
    make_run(tmp_path / 'old' / 'new')
    assert [run.name for run in find_runs(tmp_path / 'old')] == ['new', 'gpt2ish_6L_1024', 'unet_6L']
    (run,) = find_runs(tmp_path / 'old' / 'unet_6L_validate_stats.csv')
    assert run.name == 'unet_6L' and len(run.train['loss']) == len(run.validation['loss']) == 5
    torn = tmp_path / 'old' / 'unet_6L_train_stats.csv'
    torn.write_text('iter,accuracy,loss\n5,0.5,nan\n10,0.5,1.5\n15,0.')
    (run,) = find_runs(torn)
    assert run.curve('train', 'samples', 'loss')[0].tolist() == [5, 10]


def test_pictures_of_one_run(tmp_path):
    path = plot_run(make_run(tmp_path / 'one'))
    assert path == tmp_path / 'one' / 'curves.png' and drawn(path) > 0.01


@pytest.mark.parametrize('points', [0, 1, 2])
def test_pictures_of_short_runs(tmp_path, points):
    assert drawn(plot_run(make_run(tmp_path, points))) > 0.0005


def test_pictures_of_runs_with_gaps(tmp_path):
    make_run(tmp_path / 'gap', loss=lambda n: math.nan if 10 < n < 20 else 1 / n)
    make_run(tmp_path / 'lost', loss=lambda n: math.nan)
    make_run(tmp_path / 'whole')
    runs = find_runs(tmp_path)
    assert np.isnan(runs[0].train['loss']).sum() == 9
    assert drawn(plot(runs, tmp_path / 'out.png')) > 0.01
    assert drawn(plot_run(tmp_path / 'lost')) > 0.005


def test_difference_panels_show_what_they_say(tmp_path, monkeypatch):
    make_run(tmp_path / 'base', 40)
    make_run(tmp_path / 'double', 20, factor=2.0)
    figures = []
    monkeypatch.setattr('lmplay.plots.plot._save', lambda figure, out: figures.append(figure) or out)
    plot(find_runs(tmp_path), tmp_path / 'x.png', metrics=['loss'], smoothing=1)
    curves, differences = figures[0].axes
    assert [len(line.get_xdata()) for line in curves.lines] == [40, 8, 20, 4]
    zero, train, validation = differences.lines
    np.testing.assert_allclose(train.get_ydata(), [2 + 8 / n for n in range(1, 21)])
    np.testing.assert_allclose(validation.get_ydata(), [2 + 8 / n for n in (5, 10, 15, 20)])
    assert differences.get_title(loc='left') == 'loss: difference to base'  # the longest
    assert curves.get_xlabel() == 'samples' and curves.get_ylabel() == 'loss (nats per token)'


def test_validation_lines_end_with_their_stage(tmp_path, monkeypatch):
    lines = [
        {'kind': 'train', 'stage': s, 'samples': n, 'loss': 1.0}
        for s, n in (('a', 1), ('a', 2), ('b', 3), ('b', 4))
    ]
    lines += [
        {'kind': 'validation', 'stage': s, 'samples': n, 'loss': 2.0}
        for s, n in (('a', 1), ('a', 2), ('b', 3), ('b', 4))
    ]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    figures = []
    monkeypatch.setattr('lmplay.plots.plot._save', lambda figure, out: figures.append(figure) or out)
    plot(find_runs(tmp_path), tmp_path / 'x.png', metrics=['loss'])
    drawn_lines = [
        list(line.get_xdata()) for line in figures[0].axes[0].lines if set(line.get_ydata()) == {2.0}
    ]
    assert drawn_lines == [[1, 2], [3, 4]]


def test_runs_that_were_evaluated_on_different_tokens_are_told(tmp_path, capsys):
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
    by_bytes = ['--metric', 'bits_per_byte', '--out', str(tmp_path)]
    assert main([*(str(tmp_path / name) for name in 'ac'), *by_bytes]) == 0 and not capsys.readouterr().err
    assert (
        main([*(str(tmp_path / name) for name in 'ad'), *by_bytes]) == 0
        and 'on different text' in capsys.readouterr().err
    )


def test_command_line(tmp_path, monkeypatch, capsys):
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
    assert '<!-- loss: difference to old -->' in (tmp_path / 'x.svg').read_text()


def test_runs_of_one_name_are_told_apart(tmp_path):
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
            '<!-- loss: difference to run (2) -->',
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
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / 'runs' / 'a', 3)
    make_run(tmp_path / 'runs' / 'b', 3)
    make_run(tmp_path / 'none', 0)
    make_csv(tmp_path / 'out_gpt' / 'old', 3)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bad_train_stats.csv').write_text('1,2,3\n')
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_errors_are_user_errors(tmp_path):
    with pytest.raises(DataError):
        find_runs(tmp_path)
    with pytest.raises(UserError):
        plot([], tmp_path / 'x.png')


def test_help_imports_neither_torch_nor_matplotlib():
    script = (
        'import sys\nfrom lmplay.plots.__main__ import main\ntry: main(["--help"])\nexcept SystemExit: pass\n'
        'assert not {"torch", "matplotlib", "numpy"} & set(sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0 and 'lmp_plotstats' in done.stdout, done.stderr
