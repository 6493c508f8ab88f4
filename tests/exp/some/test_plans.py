import json
import math
import random
import re

import pytest
from safetensors.torch import load_file

from lmplay.base.runner_list import find_runner
from lmplay.train.__main__ import main
from lmplay.train.plan import load_plan

TINY = [
    '--num-blocks',
    '1',
    '--embed-dim',
    '32',
    '--num-heads',
    '2',
    '--max-len',
    '64',
    '--batch-size',
    '6',
    '--device',
    'cpu',
    '--quiet',
]


def test_the_second_preset_differs_in_the_padding_of_the_key_update_alone():
    published, real = load_plan('some_vs_gpt2'), load_plan('some_vs_gpt2_real_tokens')
    assert published.stage(0) == real.stage(0) and published.tokenizer == real.tokenizer
    assert (published.model, real.model) == ({}, {'include_padding': False})
    for name in ('some', 'some_baseline'):
        parameters = [find_runner(name).function(**plan.model).parameters for plan in (published, real)]
        assert [p['include_padding'] for p in parameters] == [True, False]


def test_without_a_plan_it_is_described_as_published(capsys):
    assert main(['--exp', 'some', '--describe', '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['vocabulary'] == 8192
    assert (figures['trainable_parameters'], figures['total_parameters']) == (18_919_424, 1_631_629_312)


def test_the_protocol_of_the_publication():
    plan = load_plan('some_vs_gpt2')
    stage = plan.stage(0)
    assert plan.source_spec(stage.dataset) == {
        'loader': 'tinystories',
        'limit': 20_000,
        'validation_limit': 5_000,
    }
    assert plan.tokenizer == {
        'type': 'bpe',
        'vocab_size': 8192,
        'special_tokens': ['[UNK]', '[PAD]', '[EOS]'],
        'pre_tokenizer': 'whitespace',
        'documents': 20_000,
    }
    assert (stage.epochs, stage.batch_size, stage.row_length, stage.packing, stage.long_documents) == (
        4,
        24,
        512,
        'pad',
        'cut',
    )
    assert (stage.drop_last, stage.score_padding, stage.validation_interval) == (True, True, 20_000)
    assert (stage.optimizer, stage.lr, stage.betas, stage.weight_decay) == ('adamw', 4e-4, (0.9, 0.95), 0.1)
    assert (stage.schedule, stage.warmup, stage.final_lr, stage.clip) == ('cosine', 0, 0, 1)


@pytest.fixture
def stories(tmp_path, monkeypatch):
    monkeypatch.setenv('LMP_DATASETS', str(tmp_path / 'cache'))
    draw = random.Random(0)
    words = 'the cat saw a big red ball and ran to mom who said let us play in the park'.split()
    file = tmp_path / 'stories.jsonl'
    file.write_text(
        ''.join(
            json.dumps({'text': ' '.join(draw.choices(words, k=draw.randint(8, 70))) + '.'}) + '\n'
            for _ in range(120)
        )
    )
    return file


@pytest.mark.parametrize('exp', ['some', 'some_baseline'])
def test_the_small_plan_on_stories_of_ones_own(exp, stories, tmp_path, capsys):
    run = tmp_path / 'run'
    options = [
        '--exp',
        exp,
        '--training-plan',
        'some_vs_gpt2_small',
        '--dataset',
        str(stories),
        '--run-dir',
        str(run),
        *TINY,
    ]
    options += ['--num-experts', '8', '--top-k', '2'] if exp == 'some' else []
    assert main([*options, '--steps', '5']) == 0
    evaluation = json.loads((run / 'summary.json').read_text())['evaluation']
    assert evaluation['loss_with_pad'] != evaluation['loss'] > 0
    told = (run / 'summary.txt').read_text()
    best = json.loads((run / 'summary.json').read_text())['best_validation_loss']
    assert f'the best was {best:.4f}, perplexity {math.exp(best):.2f}.' in told
    measured = [
        'loss_with_pad',
        'perplexity_with_pad',
        *(['gini_middle', 'entropy_middle'] if exp == 'some' else []),
    ]
    assert re.findall(r'(\w+) \d+\.\d{4}(?=,|$)', told.partition('Measured:')[2].splitlines()[0]) == measured
    weights = load_file(run / 'checkpoints' / 'last' / 'model.safetensors')
    if exp == 'some_baseline':
        return
    assert (
        sum(
            w.numel()
            for name, w in weights.items()
            if '.ff.' in name and 'query' not in name and 'keys' not in name
        )
        == 32
    )  # the digest
    assert weights['blocks.0.ff.keys.updates'] == 5
    records = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert any(0 < r.get('model/gini_middle', 0) < 1 and len(r['model/some_entropy']) == 1 for r in records)
    capsys.readouterr()
    assert (
        main([*options, '--steps', '8', '--expert-seed', '1']) == 2
    )  # the run goes on, with other experts: refused
    assert 'expert_seed' in capsys.readouterr().err
    assert main([*options, '--steps', '8']) == 0
    assert load_file(run / 'checkpoints' / 'last' / 'model.safetensors')['blocks.0.ff.keys.updates'] == 8
