"""The ladder: its rungs, what it says of runs whose truth is known, and one climbed by real processes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lmplay.compare.__main__ import main
from lmplay.compare.ladder_findings import climb
from lmplay.compare.ladder_report import write_ladder
from lmplay.compare.prepare import Prepared, Spec, parse_spec
from lmplay.compare.rungs import Rung, Sizes, parse_ladder, shares_of, sized
from lmplay.errors import UserError
from lmplay.train.plan import load_plan
from tests.compare.scaling_simulation import X, curve

TOP = {'embed_dim': 96, 'num_blocks': 3, 'num_heads': 3}


def test_ladders_that_are_understood_and_refused():
    assert parse_ladder('4') == (4, 64) and parse_ladder('3:8') == (3, 8)
    for text in ('1', '13', '4:', '4:1', 'many', '4:64:2'):
        with pytest.raises(UserError, match='a number of rungs from 2 to 12'):
            parse_ladder(text)


def test_sizes_shrink_in_width_and_depth():
    assert sized(TOP, 1) == TOP
    for share in np.geomspace(1, 0.01, 20):
        size = sized(TOP, share)
        assert size['embed_dim'] % 8 == 0 and size['embed_dim'] % size['num_heads'] == 0
        wide = size['embed_dim'] / size['num_heads']
        assert 0.5 <= wide / 32 <= 2 or size['embed_dim'] < 32
        got = size['num_blocks'] * size['embed_dim'] ** 2 / (3 * 96**2)
        assert got == pytest.approx(share, rel=0.35), size


def test_rungs_are_geometric_in_compute():
    plan = load_plan('ladder_small')
    sizes = Sizes(parse_spec('gpt2ish', []), plan, str)
    shares = shares_of(sizes, 4, 64, 20)
    costs = [math.log(sizes.compute(sizes.model(i, share), 20)) for i, share in enumerate(shares)]
    assert shares[-1] == 1 and np.diff(costs) == pytest.approx(math.log(4), abs=0.35)
    model = sizes.model(0, 1.0)
    assert sizes.count(sizes.stage(model)) == pytest.approx(
        12 * 96**2 * 3, rel=0.02
    )  # neither embeddings nor head
    with pytest.raises(UserError, match='too small for 12 rungs'):
        shares_of(sizes, 12, 8, 20)


def test_a_model_that_can_not_be_scaled_may_define_its_rungs(tmp_path):
    file = tmp_path / 'versions.py'
    file.write_text(
        'from lmplay.base.base_model import BasicModelRunner\n'
        'from lmplay.base.runner_list import expose_runner\n'
        'from lmplay.exp.gpt2ish.model import GPT2\n'
        'class Odd(GPT2):\n'
        '    def __init__(self, size=3, max_len=32, tokenizer="bytes"):\n'
        '        super().__init__(embed_dim=8 * size, num_blocks=1, num_heads=1, max_len=max_len, '
        'tokenizer=tokenizer)\n'
        'class Own(Odd):\n'
        '    rung = staticmethod(lambda i: {"size": 2 + i})\n'
        'for name, model in (("odd_one", Odd), ("own_rungs", Own)):\n'
        '    expose_runner(name)(lambda *a, model=model, **k: BasicModelRunner(model, *a, **k))\n'
    )
    plan = load_plan('ladder_small')
    with pytest.raises(UserError, match='odd_one does not declare'):
        Sizes(parse_spec(f'{file}:odd_one', []), plan, str)
    own = Sizes(parse_spec(f'{file}:own_rungs', []), plan, str)
    assert shares_of(own, 3, 64, 20) == [1.0] * 3 and own.model(2, 1.0) == {'size': 4}
    assert own.count(own.stage({'size': 4})) > own.count(own.stage({'size': 2}))


def made(baseline, *, ratio, seeds=3, sd=0.004, rng=None):
    """(rungs, runs) of a baseline and an experiment that needs `ratio` times its compute."""
    rng = rng or np.random.default_rng(0)
    rungs, runs = [], []
    for k, x in enumerate(X):
        own = {}
        for label, loss in (('base', curve(x)), ('mine', curve(x - math.log(ratio)))):
            own[label] = [
                _run(baseline[0], s, 1e9 * math.exp(x), loss + sd * rng.normal()) for s in range(seeds)
            ]
        prepared = [
            Prepared(Spec(n, n), {'stages': {'s': {}}}, 'tokens', [1], [1], {}, 'cpu', False) for n in own
        ]
        rungs.append(Rung(k, {n: dict(TOP) for n in own}, {n: 10**k for n in own}, 1e6, prepared))
        runs.append(own)
    return rungs, runs


def _run(run, seed, flops, loss):
    """A finished run with another seed, compute and held-out loss."""
    scale = loss / run.loss()
    documents = run.documents | {'loss': run.documents['loss'] * scale}
    records = [r | {'flops': flops, 'seconds': flops / 1e9} for r in run.records]
    return replace(run, summary=run.summary | {'seed': seed}, documents=documents, records=records)


def found(baseline, *, prediction=None, **world):
    rungs, runs = made(baseline, **world)
    return climb(rungs, runs, metric='loss', prediction=prediction, notes=[])


def test_the_first_sentence_is_the_answer(baseline):
    better = found(baseline, ratio=0.8)['experiments'][0]
    text = better['sentence']
    assert text.startswith('mine needs 0.') and 'compute for the same loss at rung 3 of 4' in text
    assert 0.7 < better['axes']['flops']['ratio'][2] < 0.9 and better['axes']['flops']['ratio'][3] is None
    assert 'advantage' in text and '95 % interval' in text
    worse = found(baseline, ratio=1.3)['experiments'][0]
    assert 'at rung 4 (95 %' in worse['sentence'] and 'disadvantage' in worse['sentence']
    assert worse['axes']['seconds']['ratio'][3] == pytest.approx(worse['axes']['flops']['ratio'][3])
    equal = found(baseline, ratio=1.0, sd=0.02)['experiments'][0]
    assert 'within noise' in equal['sentence']
    hopeless = found(baseline, ratio=1e4)['experiments'][0]
    assert hopeless['sentence'].startswith('No compute ratio can be given')
    assert all(d['verdict'] == 'worse' for d in hopeless['differences'])


def test_a_missing_or_diverged_run_gives_no_answer(baseline):
    rungs, runs = made(baseline, ratio=0.8)
    del runs[1]['mine'][0]
    findings = climb(rungs, runs, metric='loss', prediction=None, notes=[])
    assert findings['experiments'][0]['sentence'].startswith('No answer for mine')
    runs[0]['base'][0].documents['loss'][0] = math.nan
    assert climb(rungs, runs, metric='loss', prediction=None, notes=[])['fit'] is None


def test_one_seed_and_two_rungs_claim_nothing(baseline):
    rungs, runs = made(baseline, ratio=0.8, seeds=1)
    findings = climb(rungs[:2], [r for r in runs[:2]], metric='loss', prediction=None, notes=[])
    assert 'With one seed there is no interval' in findings['experiments'][0]['sentence']
    assert any('fewer than 3 rungs' in w for w in findings['warnings'])


def test_the_page_shows_it(baseline, tmp_path):
    prediction = {'rungs': 3, 'losses': {'base': 3.0, 'mine': 2.9}}
    findings = found(baseline, ratio=0.8, prediction=prediction)
    findings |= {'plan': 'p', 'tokens_per_parameter': 20.0}
    page = write_ladder(findings, tmp_path).read_text()
    assert findings['experiments'][0]['sentence'] in page.replace('&#39;', "'")
    assert 'was predicted as 2.9000' in page and page.count('<svg') == 3
    for name in ('results.json', 'ladder.csv', 'figures/ratio-flops.png', 'figures/loss-over-compute.png'):
        assert (tmp_path / name).stat().st_size, name
    assert len((tmp_path / 'ladder.csv').read_text().splitlines()) == 1 + 4 * 2 * 3


def test_a_ladder_is_climbed_and_resumed(tmp_path, monkeypatch, capsys, write_plan):
    monkeypatch.chdir(tmp_path)
    plan = write_plan(tmp_path, tokens=10_000, batch_size=8, mini_batch_size=8, validation_bytes=3000)
    arguments = ['gpt2ish', 'modern', '--plan', str(plan), '--device', 'cpu', '--seeds', '1']
    arguments += ['--ladder', '3:8', '--tokens-per-parameter', '1', '--out', 'l', '--jobs', '2']
    arguments += ['--set', 'embed_dim=32', '--set', 'num_heads=1']
    assert main([*arguments, '--dry-run']) == 0
    out = capsys.readouterr().out
    assert 'rung 1, gpt2ish: embed_dim 1' in out and 'In all: 6 runs; 6 to train' in out
    assert main(arguments) == 0
    out, error = capsys.readouterr()
    assert 'With one seed there is no interval' in out or 'No compute ratio' in out
    findings = json.loads((tmp_path / 'l/results.json').read_text())
    flops = [r['experiments']['gpt2ish']['flops'] for r in findings['rungs']]
    assert 5 < flops[2] / flops[0] < 13 and findings['experiments'][0]['prediction']['rungs'] == 2
    rates = [r['experiments']['gpt2ish']['lr'][0] for r in findings['rungs']]
    assert rates[0] > rates[1] > rates[2] == 0.006  # 1 / width
    predicted = (tmp_path / 'l/prediction.json').stat().st_mtime
    top = [f.stat().st_mtime for f in (tmp_path / 'l/runs').rglob('settings.json')]
    assert sum(t > predicted for t in top) == 2  # written before the last rung was trained
    page = (tmp_path / 'l/report.html').read_bytes()
    assert main(arguments) == 0 and 'training on' not in capsys.readouterr().err
    assert (tmp_path / 'l/report.html').read_bytes() == page
    assert main([a.replace('3:8', '4:8') for a in arguments]) == 2
    assert 'another ladder: 3:8 there, 4:8 now' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--ladder', '1'], 'a number of rungs'),
        (['--ladder', '3', '--seeds', 'auto'], '--ladder takes a number of seeds'),
        (['--ladder', '3', '--budget', 'tokens=1M'], 'leave --budget out'),
        (['--tokens-per-parameter', '3'], 'goes with --ladder'),
        (['--ladder', '3', '--tokens-per-parameter', '0'], 'a number above 0'),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(['gpt2ish', 'modern', '--plan', 'ladder_small', '--device', 'cpu', *arguments]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
