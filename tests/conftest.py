"""Fixtures that all tests share: a cache of their own, a small corpus,
and the commands as a user runs them."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay.base import runner_list

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('OMP_NUM_THREADS', '1')
for name in ('COLUMNS', 'LINES', 'FORCE_COLOR', 'NO_COLOR'):  # of the terminal that the tests were started in
    os.environ.pop(name, None)


def pytest_configure(config):
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # started in the background: children would inherit that and miss Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    import hypothesis
    import torch

    torch.set_num_threads(1)
    hypothesis.settings.register_profile('shared', deadline=None)  # a busy machine must not fail a test
    hypothesis.settings.load_profile('shared')


@pytest.fixture(scope='session')
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    """Token stores and tokenizers of tests go to a folder of the test session."""
    monkeypatch.setenv('LMP_DATASETS', str(cache))


@pytest.fixture(autouse=True)
def own_experiments():
    """Experiments that a test names by their files are unknown to the next test."""
    known, imported = dict(runner_list._registered), set(runner_list._imported)
    broken, modules = dict(runner_list._broken), set(sys.modules)
    yield
    for registry, before in ((runner_list._registered, known), (runner_list._broken, broken)):
        for name, new in list(registry.items()):
            if new.module.endswith('.py') and before.get(name) is not new:
                runner_list._imported.difference_update({Path(new.file)} - imported)
                del registry[name]
                registry.update({name: before[name]} if name in before else {})
    for name in set(sys.modules) - modules:
        if name.startswith(runner_list.USER_PACKAGE):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Runs of this process draw no curves, which takes longer than most of their training."""
    if 'pictures' not in request.keywords:
        monkeypatch.setattr('lmplay.train.finish.plot_run', lambda run: Path(run) / 'curves.png')


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Real data beside the repository; tests that read it are skipped without."""
    folder = Path(os.environ.get('LMPLAY_TEST_DATA', ROOT.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip('real data is not here; LMPLAY_TEST_DATA names its folder')
    return folder


def sentences(rng: random.Random, count: int) -> str:
    names, verbs, things = (
        ['Ada', 'Tom', 'Lily', 'Max', 'Zoë'],
        ['saw', 'found', 'took', 'lost'],
        ['a red ball', 'the old tree', 'his hat', '12 nuts'],
    )
    return ' '.join(f'{rng.choice(names)} {rng.choice(verbs)} {rng.choice(things)}.' for _ in range(count))


@pytest.fixture(scope='session')
def corpus(tmp_path_factory) -> Path:
    """120 short documents in two domains, as jsonl."""
    rng = random.Random(0)
    file = tmp_path_factory.mktemp('corpus') / 'stories.jsonl'
    rows = [{'text': sentences(rng, rng.randint(1, 12)), 'kind': rng.choice(['a', 'b'])} for _ in range(120)]
    file.write_text('\n'.join(json.dumps(r) for r in rows))
    return file


@pytest.fixture
def tiny_plan(corpus, tmp_path):
    """Writes a plan for the corpus and returns its path; stage keys as given."""

    def write(stages: dict | None = None, **keys) -> Path:
        stage = {
            'dataset': 'mine',
            'steps': 4,
            'batch_size': 4,
            'mini_batch_size': 2,
            'row_length': 32,
            'validation_bytes': 600,
        }
        stages = stages or {'only': {}}
        plan = {
            'datasets': {'mine': {'loader': 'json', 'path': str(corpus), 'domain_column': 'kind'}},
            'validation_fraction': 0.1,
            'stages': {name: stage | own for name, own in stages.items()},
        } | keys
        path = tmp_path / 'plan.json'
        path.write_text(json.dumps(plan))
        return path

    return write


@pytest.fixture
def command(cache, tmp_path):
    """Runs `python -m lmplay.<module>` as a user would; returns the finished process."""

    def run(
        module: str, *args, cwd: Path | None = None, env: dict | None = None, timeout: float = 120, **options
    ):
        environment = (
            os.environ
            | {'LMP_DATASETS': str(cache), 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
            | (env or {})
        )
        return subprocess.run(
            [sys.executable, '-m', f'lmplay.{module}', *map(str, args)],
            cwd=cwd or tmp_path,
            env=environment,
            timeout=timeout,
            capture_output=True,
            text=True,
            **options,
        )

    return run
