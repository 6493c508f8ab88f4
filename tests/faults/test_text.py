"""A user's text is shown, never obeyed, by terminals, rich, matplotlib and browsers."""

import io
import json
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from lmplay.base.runner_list import expose_runner, find_runner
from lmplay.cli import PlainStream, cell, json_line, plain, plain_line, run_command
from lmplay.compare.__main__ import main as compare
from lmplay.errors import UserError
from lmplay.generate.__main__ import main as generate
from lmplay.plots.__main__ import main as plotstats
from lmplay.plots.curves import Curves
from lmplay.plots.decoration import label
from lmplay.plots.plot import plot
from lmplay.routing import heatmaps, pictures
from lmplay.train.__main__ import main as train

PIECES = [
    '$',
    '\\',
    '$x_1$',
    r'\frac',
    r'\$',
    '_',
    '{',
    '}',
    '^',
    '[/b]',
    '[red]',
    '[/]',
    '\x1b[2J',
    '\x1b]0;x\x07',
]
PIECES += [
    '<script>alert(1)</script>',
    '"',
    "'",
    '&amp;',
    '-->',
    ']]>',
    '{{ x }}',
    '{% x %}',
    '%s',
    '{0}',
    '\r',
    '\n',
]
PIECES += ['\x00', '\x9b2J', '\u202e', '\ud800', '\u2028', 'ü', '漢', '😀', 'a' * 200, ' ', 'x']
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map(''.join)
OBEYED = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')


@given(HOSTILE | st.text())
def test_what_is_shown_holds_no_command(text):
    for shown in (plain(text), plain_line(text), cell(text).plain, json_line({text: [text]})):
        assert not OBEYED.search(shown)
        shown.encode('utf-8')
    assert len(plain_line(text).splitlines()) <= 1
    assert json.loads(json_line({text: [text]})) == {text: [text]}
    raw = io.StringIO()
    print(text, file=PlainStream(raw), end='')
    assert not OBEYED.search(raw.getvalue().replace('\r', ''))


@given(HOSTILE)
def test_rich_shows_markup_as_it_is(text):
    from rich.console import Console
    from rich.table import Table

    out = io.StringIO()
    table = Table(title=cell(text))
    table.add_row(cell(text))
    Console(file=out, width=5000).print(table)
    assert plain_line(text).strip() in out.getvalue() and '\x1b' not in out.getvalue()


@given(HOSTILE)
def test_an_error_is_one_line(text):
    import contextlib

    def fail():
        raise UserError(f'Given: {text}.')

    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert run_command('x', fail) == 2
    assert len(err.getvalue().splitlines()) == 1 and not OBEYED.search(err.getvalue().rstrip('\n'))


def drawn(figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format='svg')
    xml.fromstring(out.getvalue())
    return out.getvalue()


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(HOSTILE)
def test_matplotlib_draws_a_label_as_it_is(text):
    import matplotlib

    with matplotlib.rc_context({'svg.fonttype': 'none'}):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], label=label(text))
        axes.legend()
        svg = ''.join(xml.fromstring(drawn(figure)).itertext())
    shown = plain_line(text)
    assert (shown[:50].strip() or ' ') in svg


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(HOSTILE)
def test_curves_and_routing_are_drawn_whatever_their_names(tmp_path, text):
    line = {k: np.arange(1.0, 4) for k in ('samples', 'tokens', 'seconds', 'loss', text)}
    domains = {f'{text}{i}': line for i in range(2)}
    runs = [Curves(text + end, line, line, [(text, 0), ('b', 1)], domains) for end in ('', '2')]
    for some in (runs, runs[:1]):
        assert plot(some, tmp_path / 'a.svg', metrics=['loss', text]).is_file()
    heatmaps.norm_heat([np.ones(3)] * 2, [text, 'b'], text)
    heatmaps.group_heat(np.full((2, 3), 1 / 3), np.full(3, 1 / 3), [text, 'b'], text)
    pictures.key_map(np.eye(3)[:, :2], [0.5, 0.5], np.ones(3), np.array([0, 1, -1]), [text, 'b'], text)


BAD = '$x_$ \\frac [/b] \x1b[2J <script>alert(1)</script> \x9b2J'


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    """Two runs whose stage, domain, text and directory have hostile names."""
    folder = tmp_path_factory.mktemp('hostile')
    rows = [{'text': f'{BAD} said Tom {i}. ' * 9, 'kind': f'{BAD}{i % 2}', '$c$': 1} for i in range(60)]
    (folder / 'text.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    stage = {'dataset': BAD, 'steps': 3, 'batch_size': 2, 'row_length': 32, 'validation_bytes': 2000}
    data = {BAD: {'loader': 'json', 'path': str(folder / 'text.jsonl'), 'domain_column': 'kind'}}
    plan = folder / '[red]$p_$.json'
    name = '$x_$ ^ [red] <b>'
    content = {
        'datasets': data,
        'stages': {name: stage, 'two': stage},
        'description': BAD,
        'validation_fraction': 0.2,
    }
    plan.write_text(json.dumps(content))
    return folder, plan


OPTIONS = ['--exp', 'test_runner', '--tokenizer', 'bytes', '--device', 'cpu', '--num-blocks', '1']
OPTIONS += ['--embed-dim', '16', '--num-heads', '2', '--max-len', '32']


@pytest.mark.pictures
def test_every_command_shows_hostile_names(hostile, tmp_path_factory, monkeypatch, capfd):
    folder, plan = hostile
    monkeypatch.setenv('LMP_DATASETS', str(folder / 'cache'))
    monkeypatch.chdir(folder)
    runs = [folder / f'$r_${i} [/b]' for i in range(2)]
    expose_runner(BAD, description=BAD)(
        lambda **parameters: find_runner('test_runner').function(**parameters)
    )
    quick = ['--max-new-tokens', 30, '--temperature', 3]
    for code, main, arguments in (
        (0, train, [*OPTIONS, '--training-plan', plan, '--dry-run']),
        (0, train, [*OPTIONS, '--training-plan', plan, '--describe']),
        (0, train, ['--exp', 'list']),
        (0, train, [*OPTIONS, '--training-plan', plan, '--run-dir', runs[0], '--check-grads']),
        (0, train, [*OPTIONS, '--training-plan', plan, '--run-dir', runs[1], '--seed', '1']),
        (0, plotstats, runs),
        (0, plotstats, runs[:1]),
        (0, compare, ['--leaderboard', folder, '--out', folder / 'board']),
        (2, compare, ['--runs', *runs, runs[0]]),
        (0, generate, [runs[0], '--prompt', BAD, *quick]),
        (0, generate, [runs[0], '--prompt', BAD, *quick, '--num-samples', 2]),
        (0, generate, [runs[0], '--prompt', BAD, *quick, '--json']),
        (2, generate, [BAD]),
        (2, train, ['--exp', BAD * 2]),
        (2, train, ['--training-plan', BAD]),
        (2, compare, ['gpt2ish', f'gpt2ish,{BAD}=1']),
    ):
        ended = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert not OBEYED.search((out + err).replace('\r', '')), (arguments, out, err)
        assert 'Traceback' not in err and 'could not be drawn' not in err + out, (arguments, err)
        assert ended == code, (arguments, err)
    assert (runs[0] / 'curves.png').is_file()
    for html in folder.rglob('*.html'):
        assert '<script>alert' not in html.read_text(encoding='utf-8')
