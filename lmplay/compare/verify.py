"""The same answer twice: one seed of a finished comparison, trained again from what it kept."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import user_path
from ..runs.checkpoint import WEIGHTS
from ..runs.finished import FinishedRun, read_run
from ..runs.source import ORIGINS, SOURCE, changed_source
from .folder import read_json
from .launcher import devices_of
from .prepare import PACKAGE, trainer_digest
from .receipt import read_receipt
from .report import NUMBERS
from .runner import Job, Workers, run_jobs


@dataclass(frozen=True)
class Verification:
    """What came of one run. identical: losses of every step and held-out document, and the final weights, to
    the bit; error: of the held-out loss, or None where it is not finite; allowed: what a device that is not
    deterministic may differ by; why: what may explain a difference."""

    label: str
    seed: int
    identical: bool
    error: float | None
    allowed: float | None
    why: list[str]

    @property
    def holds(self) -> bool:
        near = self.error is not None and self.allowed is not None and abs(self.error) <= self.allowed
        return self.identical or near

    def __str__(self) -> str:
        name = f'{self.label} seed {self.seed}'
        if self.identical:
            return f'{name}: bit-identical: every loss, every held-out document, the final weights.'
        apart = 'not finite' if self.error is None else f'{self.error:+.2e}'
        explained = f' {" ".join(self.why)}' if self.why else ''
        if self.allowed is None:
            return f'{name}: NOT the same: its held-out loss differs by {apart}.{explained}'
        near = 'within' if self.holds else 'beyond'
        return (
            f'{name}: not bit-identical; its held-out loss differs by {apart}, {near} the {self.allowed:.2e} '
            f'by which seeds differ.{explained}'
        )


def verify(report: str | Path, *, device: str = 'auto', say: Callable[[str], None]) -> list[Verification]:
    """Trains every experiment of a finished comparison again with its first seed.

    report: its page or directory. The source that the runs kept is what is trained, so this runs code of that
    directory. Raises UserError for a comparison that was changed by hand or cannot be trained here.
    """
    out = user_path(report)
    out = out.parent if out.is_file() else out
    receipt = read_receipt(out)
    devices = devices_of(receipt['device'] if device == 'auto' else device)
    if not devices[0].startswith(receipt['device']):
        raise UserError(
            f'--device: the comparison was trained on {receipt["device"]}, and its results are reproducible '
            f"on that kind of device only; given: '{device}'."
        )
    seeds: dict[str, set[int]] = {}
    for run in receipt['runs']:
        seeds.setdefault(run['label'], set()).add(run['seed'])
    common = set.intersection(*seeds.values())
    if not common:
        raise UserError(f"The experiments of '{out}' have no finished seed in common.")
    chosen = [run for run in receipt['runs'] if run['seed'] == min(common)]
    with tempfile.TemporaryDirectory(prefix='lmplay-verify-') as place:
        jobs = [_job(out, run, Path(place) / str(i)) for i, run in enumerate(chosen)]
        say(f"Training {len(jobs)} runs again from the source and settings kept in '{out}'.")
        run_jobs(jobs, Workers(jobs, devices[:1], 1), say=say)
        noise = read_json(out / NUMBERS, 'noise')['noise']['sd']
        allowed = None if receipt['device'] == 'cpu' else noise
        changed = receipt['trainer'] != trainer_digest()
        return [
            _verification(run, read_run(out / run['folder']), job, allowed, changed)
            for run, job in zip(chosen, jobs)
        ]


def _job(out: Path, run: dict, place: Path) -> Job:
    """The run again, in `place`, as the comparison started it."""
    kept = read_run(out / run['folder'])
    exp, path = _experiment(out / run['folder'], run, place)
    arguments = ['--exp', exp, '--training-plan', str(out / run['plan']), *(['--amp'] if run['amp'] else [])]
    for key, value in run['model'].items():
        arguments += ['--set', f'{key}={json.dumps(value)}']
    environment = {'OMP_NUM_THREADS': str(kept.environment.get('torch_threads') or 1)}
    environment |= {'PYTHONPATH': str(path)} if path else {}
    tokens = float(kept.cost['tokens'] or 1)
    return Job(
        name=f'{run["label"]} seed {run["seed"]}',
        folder=place / 'run',
        arguments=[*arguments, '--seed', str(run['seed'])],
        unit='tokens',
        length=tokens,
        environment=environment,
    )


def _experiment(folder: Path, run: dict, place: Path) -> tuple[str, Path | None]:
    """(what --exp names, what PYTHONPATH begins with) to train the source that a run kept.

    An installed experiment that has not changed is used as it is. Any other is the kept source, copied: a
    folder of lmplay.exp into a copy of the package, because an experiment's name is taken once. No path that
    the directory names is run.
    """
    if not run['file'] and not changed_source(folder):
        return run['exp'], None
    origins = json.loads((folder / SOURCE / ORIGINS).read_text())
    if set(origins) != {''}:
        raise UserError(
            f"The runs of '{folder}' keep the source of several experiments, which cannot be verified."
        )
    origin = Path(origins[''])
    if not run['file'] and origin.is_relative_to(PACKAGE):
        shutil.copytree(PACKAGE, place / PACKAGE.name, ignore=shutil.ignore_patterns('__pycache__'))
        copy = place / PACKAGE.name / origin.relative_to(PACKAGE)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / SOURCE, copy)
        return run['exp'], place
    copy = place / origin.name
    shutil.copytree(folder / SOURCE, copy)
    return f'{copy / "versions.py"}:{run["exp"]}', None


def _verification(
    run: dict, kept: FinishedRun, job: Job, allowed: float | None, trainer_changed: bool
) -> Verification:
    if not job.finished:
        return Verification(
            run['label'], run['seed'], False, None, allowed, [f'It stopped early: {job.stopped}']
        )
    again = read_run(job.folder)
    error = again.loss() - kept.loss()
    same = _losses(again) == _losses(kept) and all(
        np.array_equal(column, again.documents[name], equal_nan=column.dtype.kind == 'f')
        for name, column in kept.documents.items()
    )
    why = ["lmplay's own code has changed since."] if trainer_changed else []
    for key in ('cpu', 'torch_threads', 'devices', 'packages', 'python'):
        before, now = kept.environment.get(key), again.environment.get(key)
        if before != now:
            why.append(f'{key} was {before} and is {now}.')
    finite = error if np.isfinite(error) else None
    return Verification(
        run['label'], run['seed'], same and _same_weights(kept.folder, job.folder), finite, allowed, why
    )


def _losses(run: FinishedRun) -> list[tuple]:
    return [(r['kind'], r['samples'], repr(r.get('loss'))) for r in run.records if r['kind'] != 'event']


def _same_weights(before: Path, after: Path) -> bool:
    """Whether the last checkpoints hold the same tensors; True where the comparison's was deleted."""
    import torch
    from safetensors.torch import load_file

    files = [place / 'checkpoints' / 'last' / WEIGHTS for place in (before, after)]
    if not files[0].is_file():
        return True
    a, b = map(load_file, files)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
