"""The page: self-contained, accessible by keyboard and screen reader, and rendered by a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lmplay.compare import figures
from lmplay.compare.judge import judge
from lmplay.compare.report import axis_of, routing_table, source_diff, write_report
from lmplay.compare.tuning import choose
from lmplay.runs.finished import read_run

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--hide-scrollbars',
]
VOID = {'meta', 'link', 'br', 'wbr', 'img', 'input', 'hr', 'path', 'use', 'stop'}


@pytest.fixture(scope='module')
def report(trained, baseline, wide, tmp_path_factory):
    """A page with everything: four experiments, one routed, a search, a long name, markup in a sample."""
    out = tmp_path_factory.mktemp('report')
    same = [trained('same', 'same', seed) for seed in range(3)]
    moe = [trained('moe', 'gpt2_moe_test', seed, '--moe-layers', 'all') for seed in range(2)]
    runs = {
        'gpt2ish': baseline,
        'gpt2ish,embed_dim=64,with=a_rather_long,list=of_settings': wide,
        'same': same,
        'moe': moe,
    }
    stopped = {'moe': {2: 'the loss is not finite'}}
    findings = judge(runs, notes=['A note <script>alert(1)</script>.'], stopped=stopped)
    trials = {0.5: wide, 1.0: baseline, 4.0: [*baseline[:2], None]}
    findings |= {
        'title': ', '.join(list(runs)[1:]) + ' compared with gpt2ish',
        'plan': 'stories',
        'budget': 'flops=1e9',
        'tuning': {label: choose(label, trials, 'loss') | {'chosen': [0.01]} for label in runs},
    }
    findings['samples'][0]['texts']['same'] = '</pre><img src=x onerror=alert(1)>'
    findings['samples'][0]['texts']['gpt2ish'] = ' \n\t'
    idle = {'most': 0.9, 'busy': False}
    findings['load'] = dict.fromkeys(runs, idle) | {'same': {'most': 3.0, 'busy': True}}
    return write_report(findings, runs, out)


class Outline(HTMLParser):
    """Elements with their attributes; checks that every element is closed where it must be."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, (tag, self.open[-5:])

    def of(self, tag):
        return [a for t, a in self.elements if t == tag]


def test_structure_for_keyboards_and_screen_readers(report):
    page = Outline(report.read_text())
    assert page.of('html')[0]['lang'] == 'en' and len(page.of('h1')) == 1 and len(page.of('main')) == 1
    for landmark in ('header', 'nav', 'footer'):
        assert page.of(landmark)
    ids = [a['id'] for _, a in page.elements if 'id' in a]
    assert len(ids) == len(set(ids))
    for _, a in page.elements:
        for name in (a.get('aria-labelledby') or '').split():
            assert name in ids
        if (a.get('href') or '').startswith('#'):
            assert a['href'][1:] in ids
    first = page.of('a')[0]
    assert first['class'] == 'skip' and first['href'] == '#main'
    assert all('scope' in th for th in page.of('th'))
    assert len(page.of('caption')) == len(page.of('table')) >= 6
    pictures = page.of('svg')
    assert len(pictures) == 5 and all(s['role'] == 'img' for s in pictures)
    assert len(page.of('title')) == 1 + len(pictures) and all(page.of('desc'))
    levels = [int(t[1]) for t, _ in page.elements if re.fullmatch('h[1-6]', t)]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert all(
        a.get('tabindex') == '0' and a.get('aria-label')
        for t, a in page.elements
        if a.get('role') == 'region'
    )


def test_it_needs_no_network_and_nothing_of_a_run_becomes_markup(report):
    text = report.read_text()
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?:https?:)?//', text)
    links = {a.get('href', '') for t, a in Outline(text).elements if t in ('a', 'link')}
    for link in links:
        assert link.startswith(('#', 'data:')) or (report.parent / link).is_file(), link
    assert not Outline(text).of('script')
    assert all(a['src'].startswith('data:image/svg+xml') for a in Outline(text).of('img'))
    assert '&lt;script&gt;' in text and 'onerror=alert(1)&gt;' in text
    assert text.index('id="verdict"') < text.index('id="course"')  # verdict first


def test_what_the_page_says_besides_the_verdict(report):
    text = html.unescape(report.read_text())
    assert '(only white space)' in text and 'at least 3 are recommended' in ' '.join(text.split())
    assert text.count('busy machine') >= 2  # seconds and tokens per second of one experiment, or of all
    assert 'stopped early' in text and 'moe stopped early on seed 2' in text
    search = ' '.join(text[text.index('id="tuning"') : text.index('id="routing"')].split())
    assert '±' in search and 'told apart' in search and 'diverged' in search and '987654' in search


def test_the_page_shows_how_the_sources_differ(report):
    text = html.unescape(report.read_text())
    source = text[text.index('id="source"') : text.index('id="tuning"')]
    assert 'gpt2ish,<wbr>embed_dim=64' in source and 'the same source as gpt2ish' in source
    assert '--- baseline/model.py' in source and '+class Same(LMBase):' in source


def test_the_difference_of_two_sources():
    old, new = {'a.py': 'one\ntwo\n', 'b.py': 'x\n'}, {'a.py': 'one\n2\n', 'c.py': '--- y\n'}
    found = source_diff(old, new)
    assert (found['added'], found['removed']) == (2, 2)
    kinds = {line['text']: line['kind'] for line in found['lines']}
    assert kinds['-two'] == 'removed' and kinds['+2'] == 'added' and kinds['+--- y'] == 'added'
    assert kinds[' one'] == 'same' and kinds['--- baseline/a.py'] == 'file'
    assert source_diff(old, old) == {} == source_diff({}, new)


def test_a_routed_experiment_is_x_rayed(report):
    page = Outline(report.read_text())
    seen = [a['alt'] for a in page.of('img')]
    domains = next(alt for alt in seen if 'layer 0, domain by expert' in alt)
    assert (
        'long mostly expert' in domains
        and 'short mostly expert' in domains
        and any('Expert load of' in alt for alt in seen)
    )
    assert (report.parent / 'xray/moe/favourites.csv').is_file()
    assert json.loads((report.parent / 'results.json').read_text())['routing'].keys() == {'moe'}


def test_json_and_pictures_stand_beside_it(report):
    findings = json.loads((report.parent / 'results.json').read_text())
    assert [e['label'] for e in findings['experiments']][0] == 'gpt2ish'
    for file in (report.parent / 'figures').iterdir():
        assert file.read_bytes().startswith(b'\x89PNG')
    assert len(list((report.parent / 'figures').iterdir())) == 5


CHECK = r"""
<script>
function light(c) { const v = c.match(/[\d.]+/g).map(Number).slice(0, 3).map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; }
function behind(e) { for (; e; e = e.parentElement) { const b = getComputedStyle(e).backgroundColor; if (b !== 'rgba(0, 0, 0, 0)') return b; } return 'rgb(255, 255, 255)'; }
addEventListener('load', () => {
  let least = 99, where = '';
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.closest('script, title, desc, .skip, style')) continue;
    if (e.closest('svg') && /scale|shading/.test(e.getAttribute('style') || '')) continue;
    const style = getComputedStyle(e), a = light(e.closest('svg') ? (style.fill === 'none' ? style.color : style.fill) : style.color), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least) { least = ratio; where = e.tagName + ' ' + e.textContent.trim().slice(0, 40); } }
  const narrow = [...document.querySelectorAll('main svg')].map(s => s.getBoundingClientRect().width);
  const out = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll'));
  const found = { width: innerWidth, scroll: document.documentElement.scrollWidth, least, where, out: out.map(e => e.tagName + ' ' + e.textContent.slice(0, 40)),
    background: getComputedStyle(document.body).backgroundColor, picture: Math.min(...narrow) };
  parent.document.body.innerHTML = '<pre id="found">' + JSON.stringify(found).replace(/&/g, '&amp;').replace(/</g, '&lt;') + '</pre>'; });
</script>
"""  # noqa: E501


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
@pytest.mark.parametrize('width, dark', [(1280, False), (1280, True), (390, False), (390, True)])
def test_in_a_browser_wide_and_narrow_light_and_dark(report, tmp_path, width, dark):
    """Nothing sticks out, every text has a contrast of at least 4.5 (WCAG AA), the theme is followed."""
    inner = html.escape(report.read_text().replace('</body>', CHECK + '</body>'))
    page = tmp_path / 'page.html'  # a frame, for no window of a browser is as narrow as a phone
    page.write_text(
        '<!doctype html><meta name="color-scheme" content="light dark">'
        f'<iframe style="border:0" width={width} height=900 srcdoc="{inner}"></iframe>'
    )
    theme = ['--blink-settings=preferredColorScheme=0'] if dark else []
    out = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            *theme,
            f'--user-data-dir={tmp_path / "profile"}',
            '--window-size=1400,1000',
            '--dump-dom',
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    ).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', out, re.S)[1]))
    assert found['width'] == width and found['scroll'] <= width, found
    assert found['least'] >= 4.5, found
    assert (found['background'] == 'rgb(255, 255, 255)') != dark
    assert found['picture'] > 0.75 * min(width, 480), found


def test_without_a_checkpoint_the_report_says_why_there_is_no_x_ray(trained, baseline, tmp_path):
    moe = trained('moe', 'gpt2_moe_test', 0, '--moe-layers', 'all')
    shutil.copytree(moe.folder, tmp_path / 'run', ignore=shutil.ignore_patterns('checkpoints'))
    runs = {'gpt2ish': baseline[:1], 'moe': [read_run(tmp_path / 'run')]}
    findings = judge(runs) | {'title': 'T', 'plan': 'stories', 'budget': None, 'tuning': None}
    page = write_report(findings, runs, tmp_path / 'out').read_text()
    assert 'No X-ray: ' in page and str(tmp_path / 'run') in html.unescape(page)


def test_routing_in_numbers():
    rows = routing_table([[0.5, 0.5, 0.0, 0.0], [0.25] * 4], ['block 2', 'block 3'])
    assert [r['layer'] for r in rows] == ['block 2', 'block 3']
    assert rows[0]['effective'] == pytest.approx(2) and rows[0]['idle'] == 2
    assert rows[1]['effective'] == pytest.approx(4) and rows[1]['busiest'] == 0.25


def test_routing_names_layers_as_the_x_ray_does(report):
    text = report.read_text()
    start = text.index('id="routing"')
    table = text[start : text.index('<details', start)]
    assert re.findall(r'<th scope="row">(layer \d+)</th>', table) == [
        'layer 0'
    ] and 'layer 0: share of assignments' in unpacked(text)


def unpacked(text):
    return ''.join(
        base64.b64decode(s).decode() for s in re.findall(r'data:image/svg\+xml;base64,([^"]+)', text)
    )


def test_the_difference_is_drawn_over_what_the_runs_have_in_common(baseline):
    (stage,) = baseline[0].stage_settings.values()
    timed = replace(baseline[0], settings=baseline[0].settings | {'stages': [stage | {'seconds': 5.0}]})
    assert axis_of({'budget': 'flops=1e9'}, {}) == 'flops'
    assert axis_of({'budget': None}, {'a': [timed]}) == 'seconds'
    assert axis_of({'budget': None}, {'a': [timed], 'b': baseline}) == 'tokens'


def test_pictures_that_fail_are_left_out_with_a_warning(baseline, wide, tmp_path, monkeypatch, caplog):
    """All numbers are written first, and the page lacks those pictures alone."""

    def fail(*arguments, **options):
        assert {f.name for f in tmp_path.glob('*.*')} == {
            'results.json',
            'runs.csv',
            'curves.csv',
            'domains.csv',
        }
        raise RuntimeError('no fonts')

    monkeypatch.setattr(figures, 'draw_verdicts', fail)
    monkeypatch.setattr(figures, 'draw_difference', fail)
    runs = {'gpt2ish': baseline, 'wide': wide}
    findings = judge(runs) | {'title': 'T', 'plan': 'stories', 'budget': None, 'tuning': None}
    page = Outline(write_report(findings, runs, tmp_path).read_text())
    assert len(page.of('svg')) == 3 and len(caplog.records) == 2
    assert all('is left out (RuntimeError: no fonts)' in r.message for r in caplog.records)
    assert "'verdicts'" in caplog.text and "'difference'" in caplog.text


def test_bands_lie_within_their_pictures(baseline, wide):
    """Of the later evaluations; the first ones may lie above."""
    runs = {'gpt2ish': baseline, 'wide': wide}
    pictures = [
        figures.draw_loss(runs, 'tokens', 'loss'),
        figures.draw_difference(runs, 'tokens', 'loss', labels=['wide'], alpha=0.05),
    ]
    for picture in pictures:
        (axes,) = picture.axes
        low, high = axes.get_ylim()
        for band in axes.collections:
            x, y = band.get_paths()[0].vertices.T
            late = y[x > (x.min() + x.max()) / 2]
            assert len(late) and low < late.min() and late.max() < high
