"""Trains the runs of a comparison as processes of lmp_trainer: several at a time, each resumable."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..cli import cell, count, duration, plain
from ..errors import UserError
from ..files import from_json, locked
from ..runs.formats import Record, checked
from ..runs.recorder import METRICS, read_metrics
from .forkserver import ForkServer, end_with_parent

POLL_SECONDS = 0.2
LINE_SECONDS = 30.0  # between lines of progress where there is no terminal
JUDGE_SECONDS = 2.0  # between looks at whether a run should be given up
PATIENCE = 120.0  # seconds to wait for a run that an earlier, killed comparison still holds


@dataclass
class Job:
    """A run to be trained.

    arguments      of lmp_trainer, all but device and directory
    unit, length   how long it is: 'tokens' or 'seconds', and how many
    environment    variables that it gets besides this process's
    stopped        why it ended early
    hopeless       whether it was stopped because it could not catch up with the baseline
    """

    name: str
    folder: Path
    arguments: list[str]
    unit: str
    length: float
    environment: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    hopeless: bool = False
    process: Any = field(default=None, repr=False)  # or what stands for one that runs elsewhere
    device: str = ''

    @property
    def finished(self) -> bool:
        return (self.folder / 'summary.json').is_file()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def log(self) -> Path:
        return self.folder.with_name(f'{self.folder.name}.log')

    def start(self, device: str, environment: dict[str, str], server: ForkServer | None) -> None:
        """Starts the process: of the server where there is one that works, else afresh."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.device = device
        arguments = [*self.arguments, '--run-dir', str(self.folder), '--device', device]
        if server is not None and not self.environment:
            with contextlib.suppress(EOFError, OSError):
                self.process = server.start(arguments, self.log)
                return
        with open(self.log, 'ab') as log:
            # A session of its own: Ctrl-C reaches this process alone, which lets the runs save their state.
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'lmplay.train', *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | self.environment,
                start_new_session=True,
                preexec_fn=end_with_parent if sys.platform == 'linux' else None,
            )

    def latest(self) -> dict:
        """The last training record on the disk; empty where there is none."""
        try:
            with open(self.folder / METRICS, 'rb') as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
                lines = file.read().split(b'\n')[1:-1]
        except OSError:
            return {}
        for line in reversed(lines):
            try:
                record = checked(Record, from_json(line))
            except ValueError:
                continue
            if record['kind'] == 'train':
                return record
        return {}

    def busy(self) -> bool:
        """Whether another process trains in the folder."""
        if not (self.folder / '.lock').exists():
            return False
        try:
            with locked(self.folder / '.lock'):
                return False
        except BlockingIOError:
            return True

    def check(self) -> None:
        """After the process has ended: notes why the run stopped early. Raises UserError where it failed."""
        assert self.process is not None
        code = self.process.returncode
        if self.hopeless or code == 0 and self.finished:
            return
        if code == 1:
            events = [
                r for r in read_metrics(self.folder) if r['kind'] == 'event' and r.get('event') == 'stopped'
            ]
            if events:
                self.stopped = events[-1]['message']
                return
        lines = self.log.read_text(errors='replace').strip().splitlines()
        last = lines[-1].removeprefix('lmp_trainer: ') if lines else 'no output.'
        raise UserError(f'The run {self.name} failed (exit code {code}): {last} See {self.log}.')


class Pool(Protocol):
    """What trains the jobs that it was given: `Workers` on this machine, `SlurmQueue` on a cluster."""

    def __bool__(self) -> bool: ...

    def collect(self) -> Iterator[Job]: ...

    def launch(self) -> Iterator[Job]: ...

    def terminate(self) -> None: ...


class Workers:
    """Trains jobs, `workers` at a time, worker i on devices[i % len(devices)]."""

    def __init__(self, jobs: Sequence[Job], devices: Sequence[str], workers: int):
        self.devices = devices
        self.waiting = [j for j in jobs if not j.finished]
        self.running: list[Job | None] = [None] * workers
        self.environment = dict(os.environ)
        if workers > 1 and devices[0] == 'cpu':
            self.environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // workers)))
        self.server: ForkServer | None = None
        self.began = time.monotonic()

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting) or any(self.running)

    def collect(self) -> Iterator[Job]:
        """The jobs that have ended since."""
        for i, job in enumerate(self.running):
            if job is not None and job.process is not None and job.process.poll() is not None:
                self.running[i] = None
                yield job

    def launch(self) -> Iterator[Job]:
        """Starts a waiting job on each idle worker. Raises UserError where others hold them for too long."""
        for i, job in enumerate(self.running):
            ready = next((j for j in self.waiting if not j.busy()), None) if job is None else None
            if ready is not None:
                self.waiting.remove(ready)
                device = self.devices[i % len(self.devices)]
                if self.server is None and device == 'cpu' and sys.platform == 'linux':
                    self.server = ForkServer(self.environment)
                ready.start(device, self.environment, self.server)
                self.running[i] = ready
                yield ready
        if self.waiting and not any(self.running) and time.monotonic() - self.began > PATIENCE:
            raise UserError(
                f"Another process is training in '{self.waiting[0].folder}'. Wait for it, or end it."
            )

    def give_up(self, why: Callable[[Job], str | None]) -> None:
        """Ends the jobs that there is a reason to end; they are collected like others."""
        for job in self.running:
            if job is not None and job.running and (reason := why(job)):
                job.stopped, job.hopeless = reason, True
                if job.process is not None:
                    job.process.terminate()

    def terminate(self) -> None:
        """Lets what runs save its state, and waits for it."""
        processes = [job.process for job in self.running if job is not None and job.process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        if self.server is not None:
            self.server.close()
            self.server = None


def run_jobs(
    jobs: Sequence[Job],
    pool: Pool,
    *,
    say: Callable[[str], None],
    on_finish: Callable[[Job], None] = lambda job: None,
    judge: Callable[[], None] | None = None,
) -> None:
    """Trains all jobs that are not finished, in their pool. judge: called now and then meanwhile.

    However this ends, it leaves no process behind on this machine, and unfinished runs have saved their
    state. Raises UserError where a run failed.
    """
    judged = time.monotonic()
    try:
        with Board(jobs, say) as board:
            while pool:
                for job in pool.collect():
                    job.check()
                    board.line(f'{job.name}: {job.stopped or "finished."}')
                    on_finish(job)
                for job in pool.launch():
                    board.line(f'{job.name}: training on {job.device}.')
                if judge and time.monotonic() - judged > JUDGE_SECONDS:
                    judged = time.monotonic()
                    judge()
                board.show()
                time.sleep(POLL_SECONDS)
    finally:
        pool.terminate()


class Board:
    """All runs in one view: a live table in a terminal, lines elsewhere."""

    def __init__(self, jobs: Sequence[Job], say: Callable[[str], None]):
        self.jobs, self.say = jobs, say
        self.live = None
        self.reported = time.monotonic()

    def __enter__(self):
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(self, *error):
        if self.live is not None:
            self.live.update(self.table())
            self.live.__exit__(*error)

    def line(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(plain(text), highlight=False, markup=False)
        else:
            self.say(text)

    def show(self) -> None:
        if self.live is not None:
            self.live.update(self.table())
        elif time.monotonic() - self.reported > LINE_SECONDS:
            self.reported = time.monotonic()
            for job in self.jobs:
                if job.running:
                    self.say(f'{job.name}: {self.progress(job)}')

    @staticmethod
    def progress(job: Job) -> str:
        record = job.latest()
        if not record:
            return 'starting'
        done, speed = record[job.unit] / job.length, record.get('tokens_per_second') or 0
        if record.get('loss') is None:
            return f'{done:.0%}'
        left = f', {duration(max(0.0, record["seconds"] * (1 / done - 1)))} left' if done else ''
        return f'{min(1.0, done):.0%}, loss {record["loss"]:.4f}, {count(speed)} tok/s{left}'

    def state(self, job: Job) -> str:
        if job.finished:
            return 'finished'
        if job.stopped:
            return job.stopped
        return self.progress(job) if job.running else 'waiting'

    def table(self):
        from rich.table import Table

        table = Table(box=None, header_style='bold')
        for heading in ('run', 'state', 'device'):
            table.add_column(heading, no_wrap=heading != 'state')
        for job in self.jobs:
            table.add_row(*map(cell, (job.name, self.state(job), job.device)))
        return table
