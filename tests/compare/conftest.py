"""Finished runs to compare: tiny, but trained by the trainer itself."""

import json
import random
import re
from pathlib import Path

import pytest

from lmplay.new.copying import copy_experiment
from lmplay.runs.finished import FinishedRun, read_run
from lmplay.train.__main__ import main

NAMES, VERBS, THINGS = (
    ['Ada', 'Tom', 'Lily', 'Max', 'Zoë'],
    ['saw', 'found', 'took', 'lost'],
    ['a red ball', 'the old tree', 'his hat', '12 nuts'],
)


@pytest.fixture(scope='session', name='write_plan')
def _write_plan():
    return write_plan


def write_plan(folder: Path, **stage) -> Path:
    rng = random.Random(0)
    file = folder / 'stories.jsonl'
    rows = [
        {
            'text': ' '.join(
                f'{rng.choice(NAMES)} {rng.choice(VERBS)} {rng.choice(THINGS)}.'
                for _ in range(rng.randint(1, 12))
            ),
            'kind': rng.choice(['long', 'short']),
        }
        for _ in range(400)
    ]
    file.write_text('\n'.join(json.dumps(r) for r in rows))
    plan = {
        'tokenizer': 'bytes',
        'validation_fraction': 0.1,
        'datasets': {'stories': {'loader': 'json', 'path': str(file), 'domain_column': 'kind'}},
        'model': {
            'num_blocks': 1,
            'embed_dim': 32,
            'num_heads': 2,
            'max_len': 32,
            'attn_dropout': 0.0,
            'ff_dropout': 0.0,
            'embed_dropout': 0.0,
        },
        'stages': {
            'only': {
                'dataset': 'stories',
                'tokens': 60_000,
                'batch_size': 16,
                'mini_batch_size': 16,
                'lr': 0.006,
                'validation_bytes': 8000,
            }
            | stage
        },
    }
    path = folder / 'stories_plan.json'
    path.write_text(json.dumps(plan))
    return path


@pytest.fixture(scope='session')
def experiments(tmp_path_factory) -> dict[str, str]:
    """Copies of gpt2ish outside the package: `same` differs in name alone, `nopos` has no positions."""
    folder = tmp_path_factory.mktemp('experiments')
    for name in ('same', 'nopos'):
        copy_experiment(name, origin='gpt2ish', folder=folder)
    model = folder / 'nopos' / 'model.py'
    text = model.read_text()
    without, found = re.subn(r' \+ self\.pos_embed\[[^]]*\.shape\[1\]\]', '', text)
    frozen, also = re.subn(
        r'nn\.Parameter\((torch\.zeros\(1, max_len, embed_dim\))\)', r'nn.Parameter(\1, False)', without
    )
    assert found == also == 1  # the parameter that nothing uses any more is declared frozen
    model.write_text(frozen)
    return {name: str(folder / name / 'versions.py') for name in ('same', 'nopos')}


@pytest.fixture(scope='session')
def trained(tmp_path_factory, cache, experiments):
    """trained(label, exp, seed, *flags) trains once and reads; enough for positions and width to matter."""
    root = tmp_path_factory.mktemp('trained')
    plan = write_plan(root)
    known: dict[tuple, FinishedRun] = {}

    def train(label: str, exp: str, seed: int, *flags: str) -> FinishedRun:
        key = (exp, seed, flags)
        if key not in known:
            folder = root / f'{label}-{seed}'
            arguments = [
                '--exp',
                experiments.get(exp, exp),
                '--training-plan',
                str(plan),
                '--run-dir',
                str(folder),
            ]
            arguments += ['--seed', str(seed), '--device', 'cpu', '--quiet', *flags]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv('LMP_DATASETS', str(cache))
                assert main(arguments) == 0
            known[key] = read_run(folder)
        return known[key]

    return train


@pytest.fixture(scope='session')
def baseline(trained) -> list[FinishedRun]:
    return [trained('baseline', 'gpt2ish', seed) for seed in range(3)]


@pytest.fixture(scope='session')
def wide(trained) -> list[FinishedRun]:
    return [trained('wide', 'gpt2ish', seed, '--embed-dim', '64') for seed in range(3)]
