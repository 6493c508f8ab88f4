"""What is damaged: a comparison of two experiments with two seeds, its cache, and a run that was stopped."""

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from lmplay.compare.__main__ import main as compare
from lmplay.train.__main__ import main as train

EXPERIMENTS = ('test_runner', 'some_test')
MODEL = {'num_blocks': 1, 'embed_dim': 16, 'num_heads': 2, 'max_len': 32}
WORDS = ('Ada', 'Tom', 'Zoë', 'saw', 'found', 'the old tree', 'a ball', '12 nuts', 'his hat')


@dataclass
class Material:
    folder: Path

    @property
    def plan(self) -> Path:
        return self.folder / 'plan.json'

    @property
    def cache(self) -> Path:
        return self.folder / 'cache'

    @property
    def comparison(self) -> Path:
        return self.folder / 'compare'

    @property
    def stopped(self) -> Path:
        """A run of the first experiment that was interrupted."""
        return self.folder / 'stopped'

    @property
    def compared(self) -> list[str]:
        """The arguments of lmp_compare."""
        options = ('--plan', self.plan, '--seeds', 2, '--out', self.comparison, '--device', 'cpu')
        return [*EXPERIMENTS, *map(str, options)]

    def run(self, exp: str, seed: int = 0) -> Path:
        (folder,) = self.comparison.glob(f'runs/{exp}-*/seed-{seed}')
        return folder

    def training(self, run_dir: Path, *more: object) -> list[object]:
        """The arguments of lmp_trainer for the run that was stopped."""
        options = ['--exp', EXPERIMENTS[0], '--training-plan', self.plan, '--device', 'cpu', '--quiet']
        return [*options, '--run-dir', run_dir, *more]


@contextmanager
def in_place(folder: Path) -> Iterator[None]:
    """The environment of a campaign: a cache of its own, reproducible pictures, and few of them."""
    own = {'LMP_DATASETS': str(folder / 'cache'), 'SOURCE_DATE_EPOCH': '0', 'HF_HUB_OFFLINE': '1'}
    with mock.patch.dict(os.environ, own):
        import matplotlib

        with (
            matplotlib.rc_context({'svg.hashsalt': 'x', 'svg.fonttype': 'none'}),
            mock.patch('lmplay.train.finish.plot_run', lambda run: run),  # pictures take most of the time
            mock.patch('lmplay.compare.report.pictures', lambda *_: {}),
            mock.patch('lmplay.compare.report.xrays', lambda found, *_: dict.fromkeys(found['routing'], '')),
        ):
            yield


def write_text(file: Path, documents: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    rows = [
        {'text': ' '.join(rng.choices(WORDS, k=rng.randint(5, 40))), 'kind': rng.choice('ab')}
        for _ in range(documents)
    ]
    file.write_text('\n'.join(map(json.dumps, rows)))


def write_plan(file: Path, text: Path, **stage: object) -> None:
    own = {'dataset': 'mine', 'steps': 8, 'batch_size': 4, 'row_length': 32, 'validation_bytes': 800}
    content = {
        'datasets': {'mine': {'loader': 'json', 'path': str(text), 'domain_column': 'kind'}},
        'tokenizer': 'bytes',
        'model': MODEL,
        'validation_fraction': 0.2,
        'stages': {'s': own | {'lr': 0.01, 'save_interval': 8} | stage},
    }
    file.write_text(json.dumps(content))


def _train_here(jobs, pool=None, *, on_finish=None, **_) -> None:
    """`run_jobs`, without processes."""
    for job in jobs:
        if not job.finished:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            ended = train([*job.arguments, '--run-dir', str(job.folder), '--device', 'cpu', '--quiet'])
            assert ended == 0, job
            job.process = None


def make(folder: Path) -> Material:
    """Trains everything, in this process: a few seconds."""
    made = Material(folder)
    write_text(folder / 'text.jsonl', 60)
    write_plan(made.plan, folder / 'text.jsonl')
    with mock.patch('lmplay.compare.comparison.run_jobs', _train_here):
        assert compare(made.compared) == 0
    _stop(made)
    return made


def _stop(made: Material) -> None:
    """Trains a run that gets a signal after its fourth step."""
    from lmplay.runs.recorder import Recorder

    record, seen = Recorder.train, []

    def recorded(self, line):
        record(self, line)
        seen.append(line)
        if len(seen) == 4:
            signal.raise_signal(signal.SIGINT)

    with mock.patch.object(Recorder, 'train', recorded):
        assert train([str(a) for a in made.training(made.stopped)]) == 130


def copy(run: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(run, to, symlinks=True))
