"""A command in processes of its own, disturbed, then run to its end: is the result the undisturbed one?

Processes are forked from the campaign's, which has imported everything: a start takes milliseconds.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from lmplay.compare.__main__ import main as compare
from lmplay.errors import UserError
from lmplay.export.__main__ import main as export
from lmplay.export.clean import main as clean
from lmplay.runs.finished import read_run
from lmplay.train.__main__ import main as train

from .material import EXPERIMENTS, Material, _train_here
from .outcomes import SECONDS, Ended, Outcome, judge

OWN = ('seconds', 'tokens_per_second', 'memory', 'data_wait', 'mfu', 'load')
STEPS = 12  # of a run that is disturbed; it saves four times


@dataclass
class Process:
    """A command in a forked process, its standard error in a file."""

    pid: int
    log: Path

    @classmethod
    def start(cls, main: Callable, arguments: list, log: Path, disturb: Callable[[], None] | None = None):
        pid = os.fork()
        if not pid:
            code = 70
            try:
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                sys.stdout, sys.stderr = (open(n, 'w', buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
                signal.signal(signal.SIGINT, signal.default_int_handler)
                if disturb is not None:
                    disturb()
                code = main([str(a) for a in arguments])
            except BaseException:  # noqa: BLE001
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        return cls(pid, log)

    def wait(self, seconds: float = 10 * SECONDS) -> Ended:
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return Ended(code, err=self.log.read_text(errors='replace'))
            if time.monotonic() > deadline:
                self.kill()
                return Ended(None, err=self.log.read_text(errors='replace'), error='hang')
            time.sleep(0.01)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def weights_of(file: Path) -> str:
    """A digest of safetensors without their header, whose order is left to chance."""
    data = file.read_bytes()
    return hashlib.sha1(data[8 + int.from_bytes(data[:8], 'little') :]).hexdigest()


def result_of(run: Path) -> object:
    """Weights and records of a finished run, but for timings and the like."""
    read_run(run)
    last = run / 'checkpoints' / 'last'
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_bytes().splitlines()]
    records = [{k: v for k, v in r.items() if k not in OWN} for r in lines if r['kind'] != 'event']
    return weights_of(last / 'model.safetensors'), records


class Disturbed:
    """A command that writes, and what it leaves when it ends undisturbed."""

    def __init__(self, made: Material, scratch: Path, name: str):
        self.made, self.scratch, self.name = made, scratch, name
        self.out, self.cache = scratch / 'out', scratch / 'cache'
        self.log = scratch / 'log'
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        with self.surroundings():
            began = time.monotonic()
            ended = self.start().wait()
            self.seconds = time.monotonic() - began
        assert ended.code == 0, ended
        self.expected = self.result()

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        with mock.patch.dict(os.environ, {'LMP_DATASETS': str(self.cache)}):
            with mock.patch('lmplay.compare.comparison.run_jobs', _train_here):
                yield

    def start(self, disturb: Callable[[], None] | None = None) -> Process:
        main, arguments = self.command()
        return Process.start(main, arguments, self.log, disturb)

    def command(self) -> tuple[Callable, list]:
        run = self.made.run(EXPERIMENTS[0])
        if self.name == 'lmp_compare':
            more = ['--plan', self.made.plan, '--seeds', 1, '--out', self.out, '--device', 'cpu']
            return compare, [EXPERIMENTS[0], f'{EXPERIMENTS[0]},embed_dim=32', *more]
        if self.name == 'lmp_export':
            return export, [run, '--to', self.out, '--format', 'safetensors']
        if self.name == 'lmp_cleanmodel':
            return clean, [run, '--model-out', self.out]
        return train, self.made.training(self.out, '--steps', STEPS, '--save-interval', 12)

    def clear(self) -> None:
        for folder in (self.out, self.cache):
            shutil.rmtree(folder, ignore_errors=True)

    def result(self) -> object:
        if self.name == 'lmp_trainer':
            return result_of(self.out)
        if self.name == 'lmp_compare':
            return [result_of(f.parent) for f in sorted(self.out.glob('runs/*/*/summary.json'))]
        return sorted((f.name, f.stat().st_size) for f in self.out.iterdir())

    def finish(self) -> tuple[Outcome, str]:
        """Runs the command to its end, undisturbed."""
        with self.surroundings():
            if self.name in ('lmp_export', 'lmp_cleanmodel') and self.out.exists():
                ended = Ended(0)  # what appears is whole
            else:
                ended = self.start().wait()
        outcome = judge(ended)
        if outcome is Outcome.CLEAN:  # the fault is over, so nothing is left to complain of
            return Outcome.LOST, ended.err[-600:]
        if ended.code != 0:
            return outcome, ended.err[-1500:]
        try:
            same = self.result() == self.expected
        except (UserError, OSError) as error:
            return Outcome.LOST, str(error)
        return (Outcome.SURVIVED, '') if same else (Outcome.SILENT, 'the result differs')


KILLED = ('lmp_trainer', 'lmp_trainer', 'lmp_trainer', 'lmp_compare', 'lmp_export', 'lmp_cleanmodel')


def kills(made: Material, scratch: Path, *, rounds: int, seed: int) -> Iterator[tuple[str, Outcome, str]]:
    """(a) SIGKILL at a random moment, up to three times in a row; then the command is run to its end.

    Each kill counts as a fault, with the outcome of its row.
    """
    subjects = {name: Disturbed(made, scratch / name, name) for name in dict.fromkeys(KILLED)}
    for i in range(rounds):
        for j, name in enumerate(KILLED):
            rng, subject = random.Random(f'{seed} {i} {j}'), subjects[name]
            subject.clear()
            times = rng.randint(1, 3)
            moments = [rng.uniform(0.02, 1.0) * subject.seconds for _ in range(times)]
            for moment in moments:
                with subject.surroundings():
                    process = subject.start()
                time.sleep(moment)
                process.kill()
            outcome, told = subject.finish()
            shown = ', '.join(f'{m:.3f}' for m in moments)
            for _ in moments:
                yield f'seed {seed} round {i}: {name} killed after {shown} s', outcome, told
