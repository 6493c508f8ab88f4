"""The directory of a comparison: where its plans and runs are kept, and which are there already."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, UserError
from ..files import locked, seal_is_broken, sealed, write_text
from ..runs.finished import FinishedRun, read_run
from ..runs.formats import Form, checked, read
from .prepare import Prepared
from .runner import Job


def write_strict_json(file: Path, content) -> None:
    """Writes JSON, whole or not at all. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(file, json.dumps(content, indent=1, allow_nan=False) + '\n')


def read_json(file: Path, *keys: str) -> dict:
    """What `write_strict_json` wrote. Raises DataError for a file that is damaged."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        if not isinstance(content, dict) or not content.keys() >= set(keys):
            raise ValueError('not what lmp_compare writes there')
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' is damaged ({error}). Delete it, or give another --out.") from error
    return content


class Looks(Form):
    """comparison.json: what was asked for, and the numbers of seeds at each look."""

    asked: dict[str, Any]
    experiments: list[str] = []
    seeds: list[int]


def write_looks(file: Path, content: dict[str, Any]) -> None:
    write_strict_json(file, sealed(checked(Looks, content)))


def read_looks(file: Path) -> dict[str, Any]:
    """What `write_looks` wrote. Raises DataError for a file that is damaged."""
    try:
        content = read(file, Looks)
        if seal_is_broken(content):
            raise ValueError('it has changed since it was written')
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' is damaged ({error}). Delete it, or give another --out.") from error
    return content


# what was asked for where a key says nothing
UNSET = {'rule for seeds': 'a fixed number', 'budget': "the plan's own"}


def earlier_looks(file: Path, asked: dict[str, Any]) -> list[int]:
    """The numbers of seeds asked for before. Raises UserError where another comparison is kept there."""
    if not file.is_file():
        return []
    known = read_looks(file)
    for key, value in asked.items():
        if known['asked'].get(key) != value:
            unset = UNSET.get(key, 'none')
            there, here = (unset if v is None else v for v in (known['asked'].get(key), value))
            raise UserError(
                f"'{file.parent}' holds a comparison with another {key}: {there} there, {here} now. Give "
                'another --out beside it; finished runs that serve are used again.'
            )
    return known['seeds']


def read_job(job: Job) -> FinishedRun:
    """The finished run of a job. Raises DataError for a damaged one."""
    try:
        return read_run(job.folder)
    except DataError as error:
        raise DataError(
            f'{error} Delete that folder, and rerun the same command to train it again.'
        ) from error


@dataclass
class Folder:
    """The directory `path`; plan: the name of the plan; say: receives lines about what happens; yes: whether
    its runs are given --yes."""

    path: Path
    plan: str
    say: Callable[[str], None]
    yes: bool = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes and locks the directory. Raises UserError where it is in use or can't be written."""
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path / '.lock'))
            except BlockingIOError:
                raise UserError(
                    f"Another lmp_compare is running in '{self.path}'. Wait for it, or give another --out."
                ) from None
            except OSError as error:
                raise UserError(f"Can't write the comparison '{self.path}': {error.strerror}.") from error
            yield

    def plan_file(self, p: Prepared) -> Path:
        return self.path / 'plans' / p.folder / f'{self.plan}.json'

    def write_plan(self, p: Prepared) -> None:
        file = self.plan_file(p)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_strict_json(file, p.plan)

    def job(self, p: Prepared, kind: str, seed: int, name: str) -> Job:
        """The run of an experiment as it is prepared now; kind: 'runs' or 'tuning'."""
        arguments = ['--exp', p.spec.exp, '--training-plan', str(self.plan_file(p))]
        arguments += ['--amp'] * p.amp + ['--yes'] * self.yes
        for key, value in p.spec.model.items():
            arguments += ['--set', f'{key}={json.dumps(value)}']
        return Job(
            name=name,
            folder=self._place(p, kind, seed),
            arguments=[*arguments, '--seed', str(seed)],
            unit=p.unit,
            length=sum(p.lengths),
        )

    def _place(self, p: Prepared, kind: str, seed: int) -> Path:
        """A run's directory; that of a finished run alike, also in comparisons beside this one."""
        own = self.path / kind / p.folder / f'seed-{seed}'
        if (own / 'summary.json').is_file():
            return own
        others = sorted(self.path.resolve().parent.glob(f'*/{kind}/*-{p.digest}/seed-{seed}/summary.json'))
        if others:
            self.say(f'{p.spec.label} seed {seed}: reusing {others[0].parent}.')
            return others[0].parent
        return own
