"""The receipt of a comparison: what its runs were started with, and digests of what they left behind."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..base.runner_list import find_entry
from ..errors import DataError
from ..files import write_json
from ..runs.finished import ENVIRONMENT, PLAN, SETTINGS, STAGES, SUMMARY
from ..runs.recorder import METRICS
from ..runs.source import SOURCE
from .folder import Folder, read_json
from .prepare import Prepared, trainer_digest
from .runner import Job

RECEIPT = 'receipt.json'


def write_receipt(
    folder: Folder, prepared: Sequence[Prepared], jobs: Mapping[str, Sequence[Job]], numbers: str
) -> None:
    """Writes receipt.json for the finished runs of a comparison.

    jobs: label -> by seed; numbers: the file of its results. Paths are relative; those of runs that another
    comparison trained lead there.
    """
    out, runs = folder.path, []
    for p in prepared:
        entry = find_entry(p.spec.exp)
        for seed, job in enumerate(jobs[p.spec.label]):
            if job.finished:
                runs.append(
                    {
                        'label': p.spec.label,
                        'exp': entry.name,
                        'file': entry.module.endswith('.py'),  # given by its path
                        'model': p.spec.model,
                        'amp': p.amp,
                        'folder': _relative(job.folder, out),
                        'plan': _relative(folder.plan_file(p), out),
                        'seed': seed,
                    }
                )
    files = {numbers: sha256(out / numbers)}
    for run in runs:
        for file in (out / run['plan'], *run_files(out / run['folder'])):
            files[_relative(file, out)] = sha256(file)
    content = {'device': prepared[0].device_kind, 'trainer': trainer_digest(), 'runs': runs, 'files': files}
    write_json(out / RECEIPT, content)


def read_receipt(out: Path) -> dict:
    """The receipt of the comparison in a directory, every file that it names unchanged.

    Raises DataError where there is none, and for the first file that is missing or was changed.
    """
    if not (out / RECEIPT).is_file():
        raise DataError(
            f"'{out}' holds no {RECEIPT}, which a finished comparison that trained its runs has. Rerun its "
            'command to write one; finished runs are kept.'
        )
    receipt = read_json(out / RECEIPT, 'device', 'trainer', 'runs', 'files')
    for name, digest in receipt['files'].items():
        if not (out / name).is_file():
            raise DataError(f"'{out / name}' is missing, so the comparison cannot be verified.")
        if sha256(out / name) != digest:
            raise DataError(
                f"'{out / name}' is not what the comparison wrote: it was changed since, so there is nothing "
                'to verify. Restore it, or compare again in another directory.'
            )
    return receipt


def run_files(folder: Path) -> Iterator[Path]:
    """What a run was started with, and its numbers."""
    for name in (PLAN, SETTINGS, STAGES, SUMMARY, ENVIRONMENT, METRICS):
        yield folder / name
    yield from sorted(folder.glob('held_out-*.npz'))
    yield from sorted(f for f in (folder / SOURCE).rglob('*') if f.is_file())


def sha256(file: Path) -> str:
    with open(file, 'rb') as content:
        return hashlib.file_digest(content, 'sha256').hexdigest()


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
