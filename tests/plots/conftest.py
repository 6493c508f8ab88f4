"""Runs for the plots: recorded by the recorder, or in the original lmplay's tables."""

from pathlib import Path

import pytest

from lmplay.runs.recorder import Recorder


@pytest.fixture(scope='session', name='make_run')
def _make_run():
    return make_run


@pytest.fixture(scope='session', name='make_csv')
def _make_csv():
    return make_csv


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
