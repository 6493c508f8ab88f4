"""lmp_routing as a user runs it, on trained models: an upcycled GPT-2, and SoME with 128 experts."""

import base64
import csv
import json
import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from lmplay.routing.__main__ import main
from lmplay.routing.text import own_text
from lmplay.runs.checkpoints import find_checkpoint
from lmplay.runs.finished import read_run, read_started
from lmplay.runs.load import load_model
from lmplay.train.__main__ import main as train
from tests.helpers import unseal

SHAPE = {'num_blocks': 2, 'embed_dim': 32, 'num_heads': 2, 'max_len': 32}
STAGE = {
    'mix': {'tale': 1, 'sums': 1},
    'batch_size': 4,
    'mini_batch_size': 4,
    'row_length': 32,
    'steps': 3,
    'validation_interval': 8,
    'validation_bytes': 2000,
    'init_from': 'previous',
}


def write_texts(folder: Path) -> dict:
    """Two domains: words with tags in them, and sums."""
    rng = random.Random(0)
    words = ['the', 'old <b>tree</b>', 'said', 'Zoë', 'nothing', '&amp;', 'again']
    tale = [' '.join(rng.choices(words, k=rng.randint(20, 60))) + '.' for _ in range(60)]
    sums = [
        ', '.join(
            f'{a} + {a + b} = {a + a + b}'
            for a, b in zip(rng.choices(range(50), k=12), rng.choices(range(50), k=12))
        )
        for _ in range(60)
    ]
    for name, texts in (('tale', tale), ('sums', sums)):
        (folder / f'{name}.jsonl').write_text('\n'.join(json.dumps({'text': t}) for t in texts))
    return {name: {'loader': 'json', 'path': str(folder / f'{name}.jsonl')} for name in ('tale', 'sums')}


@pytest.fixture(scope='module')
def trained(tmp_path_factory, cache):
    """A folder with three runs: moe (a dense stage, then upcycled), dense, some."""
    folder = tmp_path_factory.mktemp('routing')
    datasets = write_texts(folder)
    plans = {
        'moe': {
            'stages': {
                'dense': STAGE | {'exp': 'gpt2_dense', 'init_from': 'scratch'},
                'moe': STAGE
                | {'exp': 'gpt2_moe', 'lr': 3e-3, 'model': {'moe_layers': [1], 'num_experts': 4}},
            }
        },
        'dense': {
            'exp': 'gpt2_dense',
            'stages': {'dense': STAGE | {'init_from': 'scratch', 'packing': 'pad'}},
        },
        'some': {
            'exp': 'some_test',
            'model': {'num_experts': 128, 'top_k': 8, 'd_ffn': 8},
            'stages': {'only': STAGE},
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LMP_DATASETS', str(cache))
        for name, plan in plans.items():
            plan = {'datasets': datasets, 'tokenizer': 'bytes', 'validation_fraction': 0.2} | plan
            plan['model'] = SHAPE | plan.get('model', {})
            (folder / f'{name}.json').write_text(json.dumps(plan))
            assert (
                train(
                    [
                        '--training-plan',
                        str(folder / f'{name}.json'),
                        '--run-dir',
                        str(folder / name),
                        '--device',
                        'cpu',
                        '--quiet',
                    ]
                )
                == 0
            )
        assert (
            main([str(folder / 'moe'), '--device', 'cpu'])
            == main([str(folder / 'some'), '--device', 'cpu'])
            == 0
        )
    return folder


def rows(folder, name):
    with open(folder / f'{name}.csv', newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def recount(run_dir):
    """(domain or type, layer, expert) -> assignments, token by token; and domain or type -> tokens."""
    run = read_started(run_dir)
    folder = find_checkpoint(run_dir)
    model, state = load_model(folder)
    held_out = own_text(model.eval(), run, state['stage'], None, folder)
    counts, totals = Counter(), Counter()
    for batch in held_out.batches(1):
        n = int(batch.lengths[0])
        with torch.no_grad():
            routed = model.routing(batch.x[:, :n])
        for t in range(n):
            byte = int(batch.x[0, t])
            if byte == 256:
                continue
            kind = (
                'word'
                if chr(byte).isalpha() or byte > 127
                else 'number'
                if chr(byte).isdigit()
                else 'whitespace'
                if byte == 32
                else 'operator'
                if chr(byte) in '+=<>&/'
                else 'punctuation'
            )
            domain = held_out.documents[int(batch.documents[0, t])]['domain']
            totals[domain] += 1
            totals[kind] += 1
            for layer in routed:
                for e in layer.expert_ids[0, t].tolist():
                    counts[domain, layer.name, e] += 1
                    counts[kind, layer.name, e] += 1
    return counts, totals


@pytest.mark.parametrize('name, top_k, experts', [('moe', 1, 4), ('some', 8, 128)])
def test_fractions_are_those_of_a_naive_recount(trained, name, top_k, experts):
    counts, totals = recount(trained / name)
    for kind in ('domain', 'type'):
        table = rows(trained / name / 'routing', f'{kind}s')
        assert {r[kind] for r in table} == (
            {'tale', 'sums'} if kind == 'domain' else set(totals) - {'tale', 'sums'}
        )
        assert len(table) == len({(r['layer'], r['expert'], r[kind]) for r in table})
        for r in table:
            assert int(r['tokens']) == totals[r[kind]]
            expected = counts[r[kind], r['layer'], int(r['expert'])] / (top_k * totals[r[kind]])
            assert float(r['fraction']) == pytest.approx(expected, abs=1e-5)
    assert {r['experts'] for r in rows(trained / name / 'routing', 'summary')} == {str(experts)}


@pytest.mark.parametrize('name', ['moe', 'some', 'dense'])
def test_the_text_is_what_the_run_was_evaluated_on(trained, name):
    run, folder = read_run(trained / name), find_checkpoint(trained / name)
    model, state = load_model(folder)
    documents = own_text(model, run, state['stage'], None, folder).documents
    for key in ('hash', 'domain', 'bytes'):
        assert [d[key] for d in documents] == run.documents[key].tolist()


def test_over_training(trained):
    run = read_run(trained / 'some')
    step = run.metrics('train', 'step').values[-1]
    last = {name: run.metrics('train', name).values[-1] for name in ('expert_load', 'some_gini')}
    table = rows(trained / 'some' / 'routing', 'training')
    assert {'expert_load', 'some_gini', 'some_entropy'} <= {r['metric'] for r in table}
    for layer in range(2):
        load = [
            float(r['value'])
            for r in table
            if (r['metric'], r['layer'], int(r['step'])) == ('expert_load', f'layer {layer}', step)
        ]
        assert load == pytest.approx(last['expert_load'][layer], abs=1e-5)
        found = [
            float(r['value']) for r in table if r['metric'] == 'some_gini' and r['layer'] == f'layer {layer}'
        ]
        assert found[-1] == pytest.approx(last['some_gini'][layer], rel=1e-4)


def test_keys_and_pairs_of_experts(trained):
    model, _ = load_model(trained / 'some')
    keys = rows(trained / 'some' / 'routing', 'keys')
    usage = [float(r['usage']) for r in keys if r['layer'] == 'layer 1']
    assert usage == pytest.approx(model.experts()[1].usage.tolist(), rel=1e-4)
    assert {r['favours'] for r in keys} <= {'tale', 'sums', ''}
    pairs = [r for r in rows(trained / 'some' / 'routing', 'coactivation') if r['layer'] == 'layer 0']
    assert sum(float(r['fraction']) for r in pairs) == pytest.approx(
        8 * 7 / 2, rel=1e-3
    )  # pairs of 8 experts, each token
    assert not (trained / 'some' / 'routing' / 'drift.csv').exists()  # frozen experts


def test_drift_is_measured_from_the_dense_model(trained):
    model, _ = load_model(trained / 'moe')
    dense, _ = load_model(trained / 'moe' / 'checkpoints' / 'stage-dense')
    mlp = dense.blocks[1].mlp
    begun = torch.cat(
        [p.detach().flatten() for p in (mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias)]
    )
    table = rows(trained / 'moe' / 'routing', 'drift')
    assert [r['expert'] for r in table] == list('0123')
    for e, r in enumerate(table):
        now = torch.cat([w[e].detach().flatten() for w in model.experts()[0].weights])
        assert float(r['relative_norm']) == pytest.approx(
            float((now - begun).norm() / begun.norm()), abs=2e-3
        )  # perturbation
        assert float(r['cosine']) == pytest.approx(
            float(torch.cosine_similarity(now, begun, dim=0)), abs=1e-4
        )
    assert 'their state after the warm start' in (trained / 'moe' / 'routing' / 'index.html').read_text()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


@pytest.mark.parametrize('name', ['moe', 'some'])
def test_the_page_holds_everything_itself(trained, name):
    folder = trained / name / 'routing'
    text = (folder / 'index.html').read_text(encoding='utf-8')
    page = Page(text)
    images = [a for tag, a in page.tags if tag == 'img']
    assert len(images) == len(list(folder.glob('*.svg'))) and all(len(a['alt']) > 20 for a in images)
    for a in images:
        kind, data = a['src'].split(',', 1)
        assert kind == 'data:image/svg+xml;base64'
        ElementTree.fromstring(base64.b64decode(data))
    assert all(a.get('scope') in ('col', 'row') for tag, a in page.tags if tag == 'th')
    links = [a['href'] for tag, a in page.tags if tag == 'a' and not a['href'].startswith('#')]
    assert links and all((folder / link).is_file() for link in links)
    assert {'script', 'link'} & {tag for tag, _ in page.tags} == set() and 'url(' not in text
    assert 'prefers-color-scheme' in text and '@media (max-width' in text
    assert '<b>tree' not in text and 'tree&lt;/b&gt;' in text  # the data's own tags
    for svg in folder.glob('*.svg'):
        ElementTree.parse(svg)


def test_a_model_without_experts(trained, capsys):
    assert main([str(trained / 'dense'), '--device', 'cpu']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'a model without experts' in error
    assert main([str(trained / 'moe' / 'checkpoints' / 'stage-dense'), '--device', 'cpu']) == 2


def test_other_text(trained, capsys, tmp_path):
    (tmp_path / 'code.txt').write_text('def f(x):\n    return x + 1\n' * 40)
    assert (
        main(
            [
                str(trained / 'moe'),
                '--data',
                str(tmp_path / 'code.txt'),
                '--data',
                'tale',
                '--out',
                str(tmp_path / 'out'),
                '--max-bytes',
                '1000',
                '--device',
                'cpu',
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / 'out' / 'index.html')
    tokens = {r['domain']: int(r['tokens']) for r in rows(tmp_path / 'out', 'domains')}
    assert set(tokens) == {'code', 'tale'} and all(0 < n <= 600 for n in tokens.values())
    assert {'keyword', 'identifier', 'operator'} <= {r['type'] for r in rows(tmp_path / 'out', 'types')}


def test_a_checkpoint_alone(trained, capsys, tmp_path):
    alone = shutil.copytree(find_checkpoint(trained / 'moe', prefer='last').resolve(), tmp_path / 'model')
    assert main([str(alone), '--device', 'cpu']) == 2
    assert '--data' in capsys.readouterr().err
    assert (
        main(
            [
                str(alone),
                '--device',
                'cpu',
                '--data',
                str(trained / 'tale.jsonl'),
                '--out',
                str(tmp_path / 'out'),
            ]
        )
        == 0
    )
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert (
        'their mean, because the run that they were trained in is not here' in page
        and 'Over training' not in page
    )


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nowhere'], 'there is no such path'),
        (['RUN', '--max-byte', '5'], "Did you mean '--max-bytes'"),
        (['RUN', '--max-bytes', '0'], 'at least 1'),
        (['RUN', '--data', 'tinystory'], "Did you mean 'tinystories'"),
        (['RUN', '--out', 'FILE'], "Can't write"),
        (['RUN', '--trace', 'a' * 32], '32 tokens; at most 31'),
    ],
)
def test_mistakes_are_one_sentence(trained, capsys, tmp_path, arguments, message):
    (tmp_path / 'file').write_text('')
    places = {'RUN': str(trained / 'moe'), 'FILE': str(tmp_path / 'file')}
    assert main([*(places.get(a, a) for a in arguments), '--device', 'cpu']) == 2
    error = capsys.readouterr().err
    assert error.startswith('lmp_routing: ') and error.count('\n') == 1 and message in error


def test_text_of_the_run_that_has_gone(trained, capsys, tmp_path):
    run = shutil.copytree(trained / 'some', tmp_path / 'some', symlinks=True)
    plan = json.loads((run / 'plan.json').read_text())
    plan['datasets']['tale']['path'] = str(tmp_path / 'gone.jsonl')
    (run / 'plan.json').write_text(json.dumps(plan))
    unseal(run)
    assert main([str(run), '--device', 'cpu']) == 2
    assert re.search(r'gone\.jsonl.*--data', capsys.readouterr().err)


def test_help_needs_no_torch(command):
    done = command('routing', '--help')
    assert done.returncode == 0 and '--max-bytes' in done.stdout
    probe = command('routing', 'nowhere', '--unknown', env={'PYTHONPROFILEIMPORTTIME': '1'})
    assert probe.returncode == 2 and ' torch\n' not in probe.stderr


def test_two_runs_side_by_side(trained, tmp_path):
    """On one page, by layer, on the same text; the other's figures are those of its own X-ray."""
    one, two = trained / 'moe', trained / 'moe2'
    shutil.copytree(one, two, symlinks=True)
    assert main([str(one), '--against', str(two), '--out', str(tmp_path), '--device', 'cpu']) == 0
    text = (tmp_path / 'index.html').read_text(encoding='utf-8')
    assert text.index('Side by side') < text.index('Routing by domain')
    assert f'layer 1 of {one}' in text and f'layer 1 of {two}' in text
    for run in ('run-1', 'run-2'):
        assert (tmp_path / f'{run}-layer-1.svg').is_file() and (
            tmp_path / f'{run}-load-layer-1.svg'
        ).is_file()
    assert rows(tmp_path, 'other') == rows(tmp_path, 'summary') == rows(one / 'routing', 'summary')


def test_runs_of_unlike_models_side_by_side(trained, tmp_path, capsys):
    given = [str(trained / 'moe'), '--out', str(tmp_path), '--device', 'cpu', '--against']
    assert main([*given, str(trained / 'some')]) == 0
    assert {r['layer'] for r in rows(tmp_path, 'other')} == {'layer 0', 'layer 1'}
    assert main([*given, str(trained / 'dense')]) == 2 and 'without experts' in capsys.readouterr().err


def test_snapshots_are_measured_again(trained, tmp_path):
    folder = trained / 'moe' / 'checkpoints'
    steps = sorted(int(f.name.split('-')[1]) for f in folder.glob('step-*'))
    assert main([str(trained / 'moe'), '--snapshots', '--out', str(tmp_path), '--device', 'cpu']) == 0
    table = rows(tmp_path, 'snapshots')
    found = sorted({int(r['step']) for r in table})
    assert found and set(found) <= set(steps) and {r['layer'] for r in table} == {'layer 1'}
    for step in found:
        shares = [float(r['share']) for r in table if int(r['step']) == step]
        assert len(shares) == 4 and sum(shares) == pytest.approx(1, abs=1e-5)
    assert (
        main([str(folder / f'step-{found[-1]:08d}'), '--out', str(tmp_path / 'one'), '--device', 'cpu']) == 0
    )
    alone = [float(r['fraction']) * int(r['tokens']) for r in rows(tmp_path / 'one', 'domains')]
    total = sum(alone)
    by_expert = [sum(alone[e::4]) / total for e in range(4)]
    shares = [float(r['share']) for r in table if int(r['step']) == found[-1]]
    assert shares == pytest.approx(by_expert, abs=1e-4)


def test_alarms_call_a_layer_as_the_page_does(trained):
    told = [r['message'] for r in rows(trained / 'moe' / 'routing', 'alarms')]
    assert all('of layer 1 takes' in message for message in told)


@pytest.mark.parametrize('name, prompt', [('moe', 'the <b>old</b>'), ('some', '')])
def test_a_text_is_traced_through_the_experts(trained, tmp_path, name, prompt):
    """The prompt and what the model wrote after it, each token with the experts that `routing` names."""
    assert main([str(trained / name), '--trace', prompt, '--device', 'cpu', '--out', str(tmp_path)]) == 0
    found = rows(tmp_path, 'trace')
    model, _ = load_model(find_checkpoint(trained / name))
    tokens = {int(r['position']): int(r['token_id']) for r in found}
    written = {int(r['position']) for r in found if r['written'] == '1'}
    given = list(prompt.encode()) or [256]
    assert list(tokens) == list(range(len(tokens))) and written == set(range(len(given), len(tokens)))
    assert list(tokens.values())[: len(given)] == given and written
    with torch.no_grad():
        layers = model.eval().routing(torch.tensor([list(tokens.values())]))
    for layer in layers:
        own = [r for r in found if r['layer'] == layer.name]
        for t in tokens:
            served = [(int(r['expert']), float(r['weight'])) for r in own if int(r['position']) == t]
            expected = dict(zip(layer.expert_ids[0, t].tolist(), layer.weights[0, t].tolist()))
            assert dict(served) == pytest.approx(expected, rel=1e-4)
            assert [w for _, w in served] == sorted((w for _, w in served), reverse=True)
    page = (tmp_path / 'index.html').read_text()
    assert page.count('class="written"') == len(written) * len(layers) and '<b>old' not in page
