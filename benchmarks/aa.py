"""How often lmp_compare tells an experiment from itself: real runs whose random numbers alone differ.

    python -m benchmarks.aa --seeds 24 --out compare/aa            trains 48 runs; rerun it to resume
    python -m benchmarks.aa --seeds 24 --out compare/aa --plan quickstart --set embed_dim=128 --jobs 2

The experiment draws some random numbers before its parameters, so that with another `shift` it is the same
method with another initialisation, and other dropout, on the same data. Sets of seeds are then drawn from the
pairs at random, with one half of the held-out documents, and judged as a comparison is.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmplay.compare.api import compare
from lmplay.compare.judge import compare_pair
from lmplay.new.copying import copy_experiment
from lmplay.runs.finished import FinishedRun

NAME, SEEDS, TRIALS = 'aa_test', (2, 3, 5), 400


def experiment(folder: Path) -> Path:
    """The versions.py of gpt2ish with a parameter `shift`: random numbers drawn before anything else."""
    if not (folder / NAME).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        copy_experiment(NAME, origin='gpt2ish', folder=folder)
        model = folder / NAME / 'model.py'
        text = model.read_text()
        places = f"version='{NAME}',\n        **ignore", 'super().__init__(to_name('
        assert all(text.count(place) == 1 for place in places), 'gpt2ish has changed'
        for place, before in zip(places, ('shift=0,', 'torch.rand(shift)')):
            text = text.replace(place, f'{before}\n        {place}')
        model.write_text(text)
    return folder / NAME / 'versions.py'


def part(run: FinishedRun, chosen: np.ndarray) -> FinishedRun:
    return replace(run, documents={name: column[chosen] for name, column in run.documents.items()})


def false_alarms(
    ours: list[FinishedRun], theirs: list[FinishedRun], seeds: int, trials: int = TRIALS
) -> dict[str, float]:
    """How often each verdict is given on `seeds` random pairs and a random half of the documents."""
    rng, found = np.random.default_rng(seeds), []
    total = len(ours[0].documents['hash'])
    for _ in range(trials):
        pairs = rng.choice(len(ours), seeds, replace=False)
        chosen = rng.choice(total, max(1, total // 2), replace=False)
        sides = ([part(runs[i], chosen) for i in pairs] for runs in (ours, theirs))
        found.append(compare_pair(*sides, 'loss', 0.05)['verdict'])
    return {verdict: found.count(verdict) / trials for verdict in sorted(set(found))}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seeds', type=int, default=24)
    parser.add_argument('--out', type=Path, default=Path(tempfile.gettempdir()) / 'lmplay-aa')
    parser.add_argument('--plan', default='quickstart')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE')
    parser.add_argument('--budget')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--jobs', type=int, default=1)
    args = parser.parse_args(argv)
    versions = experiment(args.out / 'experiment')
    found = compare(
        str(versions),
        f'{versions},shift=1',
        plan=args.plan,
        seeds=args.seeds,
        budget=args.budget,
        settings=args.set,
        device=args.device,
        jobs=args.jobs,
        out=args.out / 'comparison',
    )
    print(found)
    ours, theirs = found.runs.values()
    differences = [b.loss() - a.loss() for a, b in zip(ours, theirs)]
    spread, mean = float(np.std(differences, ddof=1)), float(np.mean(differences))
    print(f'Paired differences over {len(ours)} seeds: {mean:+.5f}, standard deviation {spread:.5f}.')
    for seeds in (s for s in SEEDS if s <= len(ours)):
        rates = false_alarms(ours, theirs, seeds)
        alarms = sum(rates.get(verdict, 0.0) for verdict in ('better', 'worse'))
        told = ', '.join(f'{verdict} {rate:.1%}' for verdict, rate in rates.items())
        print(f'{seeds} seeds, half of the documents: told apart in {alarms:.1%} ({told}).')
    print(
        f'One set of {len(ours)} pairs is one sample: its mean is off zero by '
        f'{abs(mean) / (spread / math.sqrt(len(ours))):.1f} standard errors, and all sets share that.'
    )


if __name__ == '__main__':
    main()
