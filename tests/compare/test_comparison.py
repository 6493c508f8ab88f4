"""lmp_compare as a user runs it: real processes, killed at a random moment, the same report in the end."""

import copy
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lmplay.compare import search, tuning
from lmplay.compare.__main__ import main
from lmplay.compare.prepare import Budget, Prepared, Spec, apply_budget
from lmplay.new.copying import copy_experiment
from lmplay.runs.finished import read_run
from lmplay.runs.recorder import read_metrics

SMALL = ('--device', 'cpu', '--set', 'embed_dim=16')
# Measured by the clock, and what a working copy says of itself: never twice the same.
OWN = ('seconds', 'tokens_per_second', 'memory', 'load')


@pytest.fixture(scope='module')
def plan(tmp_path_factory, write_plan):
    return write_plan(
        tmp_path_factory.mktemp('plan'), tokens=16_000, batch_size=8, mini_batch_size=8, validation_bytes=3000
    )


def start(arguments, cwd, cache):
    environment = os.environ | {'LMP_DATASETS': str(cache), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(
        [sys.executable, '-m', 'lmplay.compare', *map(str, arguments)],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(arguments, cwd, cache) -> tuple[str, str]:
    process = start(arguments, cwd, cache)
    out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return out, error


def without_clock(value):
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in OWN}
    if isinstance(value, list):
        return [
            without_clock(v)
            for v in value
            if not (isinstance(v, dict) and v.get('setting') == 'lmplay commit')
        ]
    return value


def results(folder):
    def table(name):
        with open(folder / name, newline='') as file:
            return [{k: v for k, v in row.items() if k not in OWN} for row in csv.DictReader(file)]

    return (
        without_clock(json.loads((folder / 'results.json').read_text())),
        table('runs.csv'),
        table('curves.csv'),
        table('domains.csv'),
    )


@pytest.fixture(scope='module')
def whole(tmp_path_factory, cache, plan):
    """A comparison that nothing disturbed: gpt2ish with itself at twice the width, two seeds."""
    folder = tmp_path_factory.mktemp('whole')
    arguments = (
        'gpt2ish',
        'gpt2ish,embed_dim=32',
        '--plan',
        plan,
        '--seeds',
        2,
        *SMALL,
        '--out',
        'c',
        '--jobs',
        2,
    )
    out, error = finish(arguments, folder, cache)
    return folder, arguments, out, error


def test_a_comparison_from_first_to_last(whole):
    folder, _, out, error = whole
    assert re.search(r'^[▲▼≈] gpt2ish,embed_dim=32', out, re.M) and 'c/report.html' in out
    assert 'The noise of gpt2ish from seed to seed' in error and 'gpt2ish seed 1: finished' in error
    for name in (
        'report.html',
        'results.json',
        'runs.csv',
        'curves.csv',
        'domains.csv',
        'noise.json',
        'comparison.json',
        'figures/difference.png',
    ):
        assert (folder / 'c' / name).stat().st_size > 0, name
    findings = json.loads((folder / 'c/results.json').read_text())
    baseline, wide = findings['experiments']
    assert baseline['figures']['tokens'] == wide['figures']['tokens'] and set(
        wide['comparison']['differences']
    ) == {'0', '1'}
    assert (
        findings['noise']['sd'] > 0 and json.loads((folder / 'c/noise.json').read_text()) == findings['noise']
    )
    runs = sorted((folder / 'c/runs').glob('*/seed-*'))
    assert len([r for r in runs if r.is_dir()]) == 4
    orders = {(r / 'stages.json').read_text().split('"data": "')[1][:24] for r in runs if r.is_dir()}
    assert len(orders) == 1  # the same data in the same order


def test_given_again_it_trains_nothing_and_writes_the_same_bytes(whole, cache):
    folder, arguments, *_ = whole
    files = [
        'report.html',
        'results.json',
        'runs.csv',
        'curves.csv',
        'domains.csv',
        *(f'figures/{f.name}' for f in (folder / 'c/figures').iterdir()),
    ]
    before = {f: (folder / 'c' / f).read_bytes() for f in files}
    _, error = finish(arguments, folder, cache)
    assert 'training on' not in error
    for f in files:
        assert (folder / 'c' / f).read_bytes() == before[f], f


def test_killed_at_a_random_moment_it_gives_the_same_report(whole, tmp_path, cache):
    """Ctrl-C, then SIGKILL of the comparison itself; its runs save and end, and the same command resumes."""
    folder, arguments, *_ = whole
    rng = random.Random(os.getpid())
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(arguments, tmp_path, cache)
        began, delay = time.monotonic(), rng.uniform(2, 12)
        while process.poll() is None and time.monotonic() - began < delay:
            time.sleep(0.05)
        early = process.poll() is None
        process.send_signal(number)
        process.communicate()
        # it may have come to its end just then: 0, or the signal itself while the interpreter shuts down
        assert not early or process.returncode in (code, 0, -number)
    finish(arguments, tmp_path, cache)
    assert results(tmp_path / 'c') == results(folder / 'c')


def test_runs_are_reused_by_a_comparison_beside_it(whole, cache):
    """With another experiment, the same baseline is not trained again."""
    (
        folder,
        *_,
    ) = whole
    arguments = ('gpt2ish', 'gpt2ish,num_heads=1', '--plan', whole[1][3], '--seeds', 1, *SMALL, '--out', 'd')
    out, error = finish(arguments, folder, cache)
    assert 'gpt2ish seed 0: reusing ' in error and 'gpt2ish seed 0: training' not in error
    assert 'One seed gives no verdict' in out and out.startswith('?')


def test_a_damaged_run_of_its_own_is_named_and_trained_again_once_deleted(whole, tmp_path, cache):
    folder, arguments, *_ = whole
    shutil.copytree(folder / 'c', tmp_path / 'c')
    own = next((tmp_path / 'c/runs').glob('gpt2ish,*/seed-1'))
    (own / 'settings.json').write_text('{}')
    process = start(arguments, tmp_path, cache)
    _, error = process.communicate()
    assert (
        process.returncode == 2
        and f"'{own.relative_to(tmp_path)}' is damaged" in error
        and 'Delete that folder' in error
    )
    shutil.rmtree(own)
    finish(arguments, tmp_path, cache)
    assert results(tmp_path / 'c') == results(folder / 'c')


def test_other_settings_in_the_same_directory_are_refused(whole, cache):
    folder, arguments, *_ = whole
    process = start([*arguments, '--budget', 'tokens=5k'], folder, cache)
    _, error = process.communicate()
    assert process.returncode == 2 and "another budget: the plan's own there, tokens=5000 now" in error


def test_budgets_of_flops_and_seconds(tmp_path, monkeypatch, plan):
    monkeypatch.chdir(tmp_path)
    common = ['gpt2ish', 'gpt2ish,embed_dim=32', '--plan', str(plan), '--seeds', '1', *SMALL]
    assert main([*common, '--budget', 'flops=5e8', '--out', 'f', '--jobs', '2']) == 0
    findings = json.loads((tmp_path / 'f/results.json').read_text())
    for entry in findings['experiments']:
        row = 32 * entry['figures']['flops_per_token']
        assert entry['figures']['flops'] == pytest.approx(
            5e8, abs=1.5 * row
        )  # a run stops at the end of a row
    tokens = [e['figures']['tokens'] for e in findings['experiments']]
    assert tokens[0] > 1.5 * tokens[1]
    assert main([*common, '--budget', 'seconds=1', '--out', 's']) == 0
    findings = json.loads((tmp_path / 's/results.json').read_text())
    for entry in findings['experiments']:
        run = next((tmp_path / 's/runs').glob(f'{entry["label"]}-*/seed-0'))
        seconds = [0.0, *(r['seconds'] for r in read_metrics(run) if r['kind'] == 'train')]
        assert entry['figures']['seconds'] == seconds[-1]
        assert seconds[-2] < 1 and abs(seconds[-1] - 1) < max(b - a for a, b in zip(seconds, seconds[1:])), (
            seconds
        )  # the nearest step
    assert 'ended by the clock' in (tmp_path / 's/report.html').read_text()


def test_the_search_for_a_learning_rate(tmp_path, monkeypatch, capsys, write_plan):
    """A smaller search than usual; on documents and seeds of its own, at full length, and resumable."""
    assert len(tuning.SEEDS) >= 3 and 1.0 in tuning.FACTORS
    for module in (search, tuning):
        monkeypatch.setattr(module, 'FACTORS', (0.01, 1.0))
        monkeypatch.setattr(module, 'SEEDS', tuning.SEEDS[:2])
    monkeypatch.chdir(tmp_path)
    plan = write_plan(tmp_path, tokens=4000, batch_size=8, mini_batch_size=8, validation_bytes=30_000)
    plan.write_text(plan.read_text().replace('"validation_fraction": 0.1', '"validation_fraction": 0.3'))
    arguments = ['gpt2ish', 'gpt2ish,embed_dim=32', '--plan', str(plan), '--seeds', '1', *SMALL]
    arguments += ['--tune', 'lr', '--out', 't', '--jobs', '2']
    assert main([*arguments, '--dry-run']) == 0
    assert 'In all: 10 runs to train' in capsys.readouterr().out and not (tmp_path / 't').exists()
    assert main(arguments) == 0
    findings = json.loads((tmp_path / 't/results.json').read_text())
    trials = [read_run(f.parent) for f in (tmp_path / 't/tuning').rglob('summary.json')]
    runs = [read_run(f.parent) for f in (tmp_path / 't/runs').rglob('summary.json')]
    assert len(trials) == 8 and len(runs) == 2
    assert all(abs(r.cost['tokens'] - 4000) < 32 for r in (*trials, *runs))  # up to a sequence
    assert not {r.seed for r in trials} & {r.seed for r in runs}
    for entry in findings['experiments']:
        log = findings['tuning'][entry['label']]
        assert [p['factor'] for p in log['points']] == [0.01, 1.0] and log['best'] == 1.0
        assert log['chosen'] == [0.006] and all(len(p['losses']) == 2 and p['sd'] for p in log['points'])
        (low, _) = log['points']
        assert low['verdict'] == 'worse' and low['low'] > 0
        documents = next(r for r in runs if r.exp == 'gpt2ish').documents
        used = tuning.for_tuning(documents['domain'], documents['hash'])
        assert findings['held_out']['documents'] == (~used).sum() < len(used)
    assert 'id="tuning"' in (tmp_path / 't/report.html').read_text()
    shutil.rmtree(next(r.folder for r in trials))
    capsys.readouterr()
    assert main(arguments) == 0 and capsys.readouterr().err.count(': training on') == 1


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path, monkeypatch, capsys, plan, whole):
    monkeypatch.chdir(tmp_path)
    arguments = ['gpt2ish', 'gpt2ish,embed_dim=32', '--plan', str(plan), *SMALL, '--dry-run']
    assert main([*arguments, '--budget', 'tokens=9k', '--seeds', '2']) == 0
    out = capsys.readouterr().out
    assert '2 seeds; at least 3 recommended' in out and 'In all: 4 runs to train, 36' in out
    assert 'each 9' in out and 'Nothing was trained or written' in out and not list(tmp_path.iterdir())
    assert main([*arguments, '--budget', 'seconds=3', '--seeds', '4']) == 0
    assert 'about 1:28 with 1 at a time.' in capsys.readouterr().out
    monkeypatch.chdir(whole[0])
    assert main([*arguments, '--out', 'c', '--seeds', '2']) == 0
    assert '4 runs, 4 of them finished' in capsys.readouterr().out
    assert main([*arguments, '--out', 'c', '--budget', 'tokens=5k']) == 2
    assert 'another budget' in capsys.readouterr().err
    assert main([*arguments, '--device', 'cpu', '--jobs', '2', '--budget', 'seconds=3']) == 2


def test_a_search_needs_held_out_text_of_its_own(tmp_path, monkeypatch, capsys, write_plan):
    monkeypatch.chdir(tmp_path)
    plan = write_plan(tmp_path, validation_bytes=800, validation_document_bytes=0)
    arguments = ['gpt2ish', 'gpt2ish,embed_dim=32', '--plan', str(plan), *SMALL, '--tune', 'lr']
    assert main([*arguments, '--dry-run']) == 2
    assert 'that for tuning would count as' in capsys.readouterr().err


def test_an_experiment_whose_runs_all_stop_early_is_left_out_and_said(tmp_path, cache, plan):
    """The third experiment's numbers leave the finite; the other two are compared all the same."""
    arguments = (
        'gpt2ish',
        'gpt2ish,num_heads=1',
        'gpt2ish,lr=1e30,clip=0,on_nan=stop',
        '--plan',
        plan,
        '--seeds',
        1,
        *SMALL,
        '--budget',
        'tokens=4k',
        '--out',
        'c',
    )
    out, error = finish(arguments, tmp_path, cache)
    assert 'gpt2ish,num_heads=1' in out and 'stopped early and is left out' in out
    findings = json.loads((tmp_path / 'c/results.json').read_text())
    assert [e['label'] for e in findings['experiments']] == ['gpt2ish', 'gpt2ish,num_heads=1']


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'Give experiments to train'),
        (['gpt2ish'], 'at least one more'),
        (['gpt2ish', 'gpt2sh'], "Did you mean 'gpt2ish'"),
        (['gpt2ish', 'gpt2ish'], 'given twice'),
        (['gpt2ish', 'gpt2ish,embed_dm=3'], "Did you mean 'embed_dim'"),
        (['gpt2ish', 'gpt2ish,wide'], 'KEY=VALUE'),
        (['gpt2ish', 'some', '--budget', 'token=3'], "Did you mean 'tokens'"),
        (['gpt2ish', 'some', '--budget', 'tokens=many'], 'a number above 0'),
        (['gpt2ish', 'some', '--seeds', '0'], 'from 1 to 1000, or auto'),
        (['gpt2ish', 'some', '--plan', 'quickstrt'], "Did you mean 'quickstart'"),
        (['gpt2ish', 'some', '--job', '2'], "Did you mean '--jobs'"),
        (['gpt2ish', 'some', '--device', 'gpu'], 'Unknown device'),
        (['gpt2ish', 'some', '--runs', 'x'], 'not experiments and --runs together'),
        (['--runs', '/none'], "There is no directory '/none'"),
        (['gpt2ish', 'some', '--baseline', 'some'], 'goes with --runs'),
        (['--leaderboard', '/none'], "There is no directory '/none'"),
        (['--leaderboard', 'x', '--dry-run'], '--dry-run goes with experiments to train'),
        (
            ['gpt2ish', 'gpt2ish,embed_dim=64', '--budget', 'seconds=3', '--jobs', '2', '--device', 'cpu'],
            'needs a device for every job',
        ),
        (
            [
                'gpt2ish',
                'gpt2ish,embed_dim=64',
                '--budget',
                'seconds=3',
                '--jobs',
                '2',
                '--device',
                'cpu,cpu',
            ],
            'given: --jobs 2, and 1 device(s)',
        ),
        (['gpt2ish', 'gpt2ish,embed_dim=64', '--budget', 'seconds=1e20'], 'a number above 0'),
    ],
)
def test_mistakes_are_one_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('lmp_compare: ') and message in error and error.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_different_tokenizers_are_refused_before_anything_is_trained(capsys, tmp_path, monkeypatch, plan):
    content = json.loads(plan.read_text())
    del content['tokenizer']
    (tmp_path / 'p.json').write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert main(['gpt2ish,tokenizer=bytes', 'gpt2ish', '--plan', 'p.json', '--device', 'cpu']) == 2
    assert 'differ in' in (error := capsys.readouterr().err) and 'bits_per_byte' in error
    assert not (tmp_path / 'compare').exists()


@pytest.mark.parametrize(
    'lengths, arguments, message',
    [
        ([{'seconds': 5}, {'seconds': 5}], ['--jobs', '2'], 'needs a device for every job'),
        ([{'seconds': 5}, {'tokens': 500}], [], 'some stages have a length in seconds and others do not'),
        (
            [{'seconds': 5}, {'tokens': 500}],
            ['--budget', 'tokens=500'],
            'some stages have a length in seconds and others do not',
        ),
    ],
)
def test_plans_in_seconds_that_can_not_be_compared_by_are_refused(
    capsys, tmp_path, monkeypatch, plan, lengths, arguments, message
):
    content = json.loads(plan.read_text())
    (stage,) = content['stages'].values()
    stage.pop('tokens')
    content['stages'] = {f's{i}': stage | length for i, length in enumerate(lengths)}
    (tmp_path / 'p.json').write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert main(['gpt2ish', 'gpt2ish,embed_dim=32', '--plan', 'p.json', *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'compare').exists()


def test_a_budget_shares_a_plan_in_seconds_by_its_seconds():
    plan = {'stages': {'s': {'seconds': 10}, 't': {'seconds': 30}}}
    prepared = Prepared(
        Spec('a', 'gpt2ish'),
        plan,
        'seconds',
        [10, 30],
        flops_per_token=[2.0, 6.0],
        fingerprints={},
        device_kind='cpu',
        amp=False,
    )
    apply_budget(tokens := copy.deepcopy(prepared), Budget('tokens', 4000))
    assert tokens.plan['stages'] == {'s': {'tokens': 1000}, 't': {'tokens': 3000}} and tokens.unit == 'tokens'
    apply_budget(flops := copy.deepcopy(prepared), Budget('flops', 4000))
    assert flops.plan['stages'] == {'s': {'tokens': 200}, 't': {'tokens': 600}}  # 200 * 2 + 600 * 6
    apply_budget(seconds := copy.deepcopy(prepared), Budget('seconds', 8))
    assert seconds.plan['stages'] == {'s': {'seconds': 2.0}, 't': {'seconds': 6.0}} and seconds.lengths == [
        2.0,
        6.0,
    ]


def test_help_is_quick_and_imports_no_torch():
    code = (
        'import sys; from lmplay.compare.__main__ import main\n'
        'try: main(["--help"])\nexcept SystemExit: pass\n'
        'assert not {"torch", "numpy", "scipy"} & set(sys.modules)'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.returncode == 0 and '--leaderboard' in out.stdout, out.stderr


def test_an_edited_experiment_is_trained_again(tmp_path):
    from lmplay.compare.prepare import code_digest

    folder = copy_experiment('edited', origin='gpt2ish', folder=tmp_path)  # a process knows one of a name
    before = code_digest(str(folder / 'versions.py'))
    assert code_digest(str(folder / 'versions.py')) == before
    (folder / 'model.py').write_text((folder / 'model.py').read_text() + '\n# changed\n')
    assert code_digest(str(folder / 'versions.py')) != before


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['gpt2ish', 'gpt2ish_med', '--plan', 'quickstart'],
            'gpt2ish_med and gpt2ish are the same model, trained the same way, under plan quickstart',
        ),
        (
            ['gpt2ish', 'some', '--budget', 'tokens=1e400'],
            "takes a number above 0 and below 1e+30, such as 20M; given: '1e400'",
        ),
        (['gpt2ish', 'some', '--budget', ''], "Unknown budget ''"),
        (
            ['gpt2ish,tokens=500', 'some'],
            "'tokens=500': the length of training is set by --budget or the plan",
        ),
        (['gpt2ish', 'some', '--set', 'foo'], "--set takes KEY=VALUE; given: 'foo'"),
    ],
)
def test_unfair_or_impossible_comparisons_are_refused(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, '--device', 'cpu']) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'compare').exists()


def test_seeds_are_added_until_the_verdict_is_known(tmp_path, monkeypatch, capsys, plan, whole):
    """A tiny learning rate is worse at once; the same rerun trains nothing; another rule is refused."""
    monkeypatch.chdir(tmp_path)
    arguments = ['gpt2ish', 'gpt2ish,lr=0.0001', '--plan', str(plan), *SMALL, '--budget', 'tokens=4k']
    arguments += ['--seeds', 'auto:5', '--out', 'c']
    assert main([*arguments, '--dry-run']) == 0
    assert (
        '3 seeds first, then one at a time until the verdict is known, at most 5' in capsys.readouterr().out
    )
    assert main(arguments) == 0
    out, error = capsys.readouterr()
    findings = json.loads((tmp_path / 'c/results.json').read_text())
    found = findings['experiments'][1]['comparison']
    assert found['verdict'] == 'worse' and found['sequence']['ended'] == 'difference'
    looks = [look['seeds'] for look in found['sequence']['looks']]
    trained = len(list((tmp_path / 'c/runs').glob('*/seed-*/summary.json')))
    assert looks == list(range(3, len(found['seeds']) + 1)) and trained == 2 * len(found['seeds'])
    assert out.startswith('▼') and ('So far: ' in error) == (len(looks) > 1)
    page = (tmp_path / 'c/report.html').read_bytes()
    assert main(arguments) == 0 and 'training on' not in capsys.readouterr().err
    assert (tmp_path / 'c/report.html').read_bytes() == page
    assert main([a.replace('auto:5', '3') for a in arguments]) == 2
    assert 'another rule for seeds: auto:5 there, a fixed number now' in capsys.readouterr().err
