"""Trains the runs of a comparison as jobs of Slurm, through submitit: one job for each run.

The comparison may be closed: its jobs go on, and the same command finds them again. A preempted job saves its
state, is requeued, and resumes.
"""

import getpass
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .runner import Job

LOOK_SECONDS = 2.0  # between looks at the queue
ANSWER_SECONDS = (
    12.0  # for the controller to answer before anything is prepared; squeue itself gives up after 9
)
ATTEMPTS = 4  # to train a run whose job ends without an exit code
SHARED = ('timeout_min', 'mem_gb', 'nodes', 'cpus_per_task', 'gpus_per_node', 'tasks_per_node', 'name')
SAVED = (143, -15)  # exit codes of a trainer that SIGTERM has ended


def parse_options(text: str) -> dict[str, Any]:
    """partition=gpu,gpus_per_node=1,timeout_min=240 as submitit takes it. Raises UserError."""
    found: dict[str, Any] = {}
    for item in filter(None, text.split(',')):
        key, equals, value = (part.strip() for part in item.partition('='))
        if not equals or not key or not value:
            raise UserError(f"--slurm takes KEY=VALUE,KEY=VALUE; given: '{item}'.")
        found[key] = int(value) if value.isdigit() else value
    for key in ('nodes', 'tasks_per_node'):
        if found.get(key, 1) != 1:
            raise UserError(f'--slurm: a run is one task on one node; given: {key}={found[key]}.')
    return found


class Training:
    """What a job does: trains a run, and writes its exit code to a file."""

    def __init__(self, command: list[str], log: Path, code: Path):
        self.command, self.log, self.code = command, log.resolve(), code.resolve()
        self.process: subprocess.Popen | None = None

    def __call__(self) -> None:
        self.code.unlink(missing_ok=True)
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        code = self.process.wait()
        if code not in SAVED:
            self.code.write_text(str(code))

    def checkpoint(self) -> Any:
        """Called before preemption or a time-out: saves the run's state, and asks to be requeued."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        return DelayedSubmission(Training(self.command, self.log, self.code))


@dataclass
class Submitted:
    """A job of Slurm in place of a process."""

    id: str
    attempts: int
    returncode: int | None = None
    seen: float = field(default_factory=time.monotonic)  # in the queue, the last time


class SlurmQueue:
    """Trains jobs in Slurm's queue; used as `Workers` is. folder: for what submitit keeps."""

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path,
        options: dict[str, Any],
        *,
        device: str,
        say: Callable[[str], None],
    ):
        self.device, self.say = device, say
        self.gpus = int(options.get('gpus_per_node', 0))
        self.executor = _executor(folder, options)
        self.waiting = [job for job in jobs if not job.finished]
        self.running: list[Job] = []
        self._looked, self._answers = 0.0, True

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running)

    def launch(self) -> Iterator[Job]:
        """Finds jobs that an earlier start has submitted, and submits the others, as one array."""
        if not self.waiting:
            return
        queued, new = self._queued(), []
        if queued is None:
            return
        for job in self.waiting:
            known = _note(job, 'slurm')
            number, attempts = known.read_text().split() if known.is_file() else ('', '0')
            if number in queued:
                job.process = Submitted(number, int(attempts))
            else:
                new.append(job)
        if new:
            self._submit(new, [1] * len(new))
        self.running, self.waiting = self.running + self.waiting, []
        for job in self.running:
            job.device = f'Slurm job {job.process.id}'
            yield job

    def _queued(self) -> set[str] | None:
        """As `_queue`; says so where Slurm has stopped answering."""
        queued = _queue()
        if queued is None and self._answers:
            self.say('Slurm does not answer. Its jobs go on; waiting until it does.')
        self._answers = queued is not None
        return queued

    def _submit(self, jobs: list[Job], attempts: list[int]) -> None:
        trainings = []
        for job in jobs:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            _note(job, 'code').unlink(missing_ok=True)
            trainings.append(Training(self._command(job), job.log, _note(job, 'code')))
        try:
            with self.executor.batch():
                submitted = [self.executor.submit(training) for training in trainings]
        except Exception as error:  # submitit wraps what sbatch says
            said = ' '.join(str(error).split())[:300]
            raise UserError(f'Slurm rejected the jobs ({type(error).__name__}: {said}).') from error
        for job, sent, attempt in zip(jobs, submitted, attempts):
            job.process = Submitted(sent.job_id, attempt)
            _note(job, 'slurm').write_text(f'{sent.job_id} {attempt}')

    def _command(self, job: Job) -> list[str]:
        several = ['torch.distributed.run', '--standalone', f'--nproc-per-node={self.gpus}', '-m']
        trainer = [sys.executable, '-m', *(several if self.gpus > 1 else []), 'lmplay.train']
        return [*trainer, *job.arguments, '--run-dir', str(job.folder.resolve()), '--device', self.device]

    def collect(self) -> Iterator[Job]:
        """The jobs that have ended since. One that left no exit code is resubmitted, and resumes."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked, queued = time.monotonic(), self._queued()
        for job in list(self.running) if queued is not None else []:
            if job.process.id in queued:
                job.process.seen = self._looked
            elif self._looked - job.process.seen > LOOK_SECONDS:  # files may appear later than the queue says
                yield from self._ended(job)

    def _ended(self, job: Job) -> Iterator[Job]:
        code = _note(job, 'code')
        if job.finished or code.is_file():
            job.process.returncode = 0 if job.finished else int(code.read_text())
            self.running.remove(job)
            yield job
        elif job.process.attempts < ATTEMPTS:
            self.say(f'{job.name}: its job ended before the run did; resubmitted, it resumes.')
            self._submit([job], [job.process.attempts + 1])
            job.device = f'Slurm job {job.process.id}'
        else:
            raise UserError(
                f'The job of run {job.name} ended {ATTEMPTS} times before the run did. See {job.log}, and '
                f"the logs of Slurm in '{self.executor.folder}'."
            )

    def terminate(self) -> None:
        """Leaves the jobs to Slurm."""
        if self.running:
            numbers = ' '.join(dict.fromkeys(job.process.id.split('_')[0] for job in self.running))
            self.say(
                f'{len(self.running)} runs continue in Slurm; rerun the same command to return to them, or '
                f'end them with: scancel {numbers}'
            )


def _executor(folder: Path, options: dict[str, Any]) -> Any:
    import submitit

    named = {key if key in SHARED else f'slurm_{key}': value for key, value in options.items()}
    try:
        executor = submitit.AutoExecutor(folder=str(folder.resolve()), cluster='slurm')
        executor.update_parameters(**{'name': 'lmplay', 'slurm_signal_delay_s': 90} | named)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f'--slurm: {" ".join(str(error).split())}') from error
    return executor


def _note(job: Job, kind: str) -> Path:
    """A file beside the run's directory."""
    return job.folder.with_name(f'{job.folder.name}.{kind}')


def check_slurm() -> None:
    """Raises UserError where jobs can't be submitted: without submitit, or a Slurm that answers."""
    if importlib.util.find_spec('submitit') is None:
        raise UserError('--launcher slurm needs the package submitit: pip install lmplay[slurm].')
    if missing := [name for name in ('sbatch', 'squeue', 'srun') if shutil.which(name) is None]:
        raise UserError(f'No Slurm on this machine: there is no {missing[0]}. Use --launcher local.')
    try:
        _ask(ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        said = f'squeue has waited {ANSWER_SECONDS:g} s'
    except subprocess.CalledProcessError as error:
        said = ' '.join(error.stderr.split())[:200]
    else:
        return
    raise UserError(
        f"Slurm's controller does not answer ({said}). Nothing was submitted; 'scontrol ping' tells when it "
        'is back. --launcher local trains on this machine.'
    )


def _queue() -> set[str] | None:
    """The IDs of this user's jobs that are pending or running; None where Slurm does not answer."""
    try:
        return set(_ask(60).split())
    except (OSError, subprocess.SubprocessError):
        return None


def _ask(timeout: float) -> str:
    command = ['squeue', '--noheader', '--array', '--format=%i', '--user', getpass.getuser()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout).stdout
