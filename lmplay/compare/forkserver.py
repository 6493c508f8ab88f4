"""Processes of lmp_trainer that do not import torch again: forks of one process that has.

A run on a CPU begins 3 s of processor time earlier than one that is started afresh.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple

PRELOADED = (
    'lmplay.train.__main__',
    'lmplay.train.session',
    'lmplay.plots.plot',
    'matplotlib.backends.backend_agg',
    'matplotlib.figure',
    'tokenizers',
)
POLL_SECONDS = 0.1


def end_with_parent() -> None:
    """PR_SET_PDEATHSIG: a process whose parent is killed gets SIGTERM; a run saves its state and ends."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Request(NamedTuple):
    """A run to be started: the arguments of lmp_trainer, and the file that gets what it prints."""

    arguments: list[str]
    log: str


@dataclass
class Fork:
    """A started run, with what `subprocess.Popen` offers of it."""

    pid: int
    log: Path
    server: 'ForkServer' = field(repr=False)
    returncode: int | None = None

    def poll(self) -> int | None:
        self.server.listen()
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class ForkServer:
    """The process that has imported everything; `environment` is that of all its runs."""

    def __init__(self, environment: dict[str, str]):
        self.runs: dict[int, Fork] = {}
        self.connection, theirs = Pipe()
        with theirs:
            # beyond the standard streams, which may be closed here
            passed = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 3)
        # A session of its own: Ctrl-C reaches this process alone, which lets the runs save their state. What
        # it prints would be why it cannot start; a run that is then started afresh says so in its log.
        self.process = subprocess.Popen(
            [sys.executable, '-m', __name__, str(passed)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[passed],
            env=environment,
            start_new_session=True,
        )
        os.close(passed)

    def start(self, arguments: list[str], log: Path) -> Fork:
        """A process of `lmp_trainer ARGUMENTS` whose output is appended to `log`.

        Raises OSError or EOFError where the server has ended.
        """
        self.connection.send(Request(arguments, str(log)))
        while not isinstance(told := self.connection.recv(), int):
            self._ended(*told)
        self.runs[told] = Fork(told, log, self)
        return self.runs[told]

    def listen(self) -> None:
        """Learns which runs have ended."""
        try:
            while self.connection.poll():
                self._ended(*self.connection.recv())
        except (EOFError, OSError):  # the server was killed, upon which its runs get SIGTERM
            self._all_ended()

    def close(self) -> None:
        """Lets the runs save their state and end, and waits for it."""
        self.connection.close()
        self.process.wait()
        self._all_ended()

    def _ended(self, pid: int, code: int) -> None:
        self.runs.pop(pid).returncode = code

    def _all_ended(self) -> None:
        for pid in list(self.runs):
            self._ended(pid, -signal.SIGTERM)


def serve(requests: Connection) -> Request | None:
    """Forks a process for each request and tells how it ended, until the client has gone.

    Returns the request in the fork; None in the server, when all its runs have ended.
    """
    runs: set[int] = set()
    while True:
        if requests.poll(POLL_SECONDS):
            try:
                request = requests.recv()
            except (EOFError, OSError):
                break
            server = os.getpid()
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of threads: those of BLAS, which knows of forks
                pid = os.fork()
            if not pid:
                requests.close()
                _become(request, server)
                return request
            runs.add(pid)
            requests.send(pid)
        while runs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            runs.remove(pid)
            with contextlib.suppress(OSError):
                requests.send((pid, os.waitstatus_to_exitcode(status)))
    for pid in runs:
        os.kill(pid, signal.SIGTERM)
    for pid in runs:
        os.waitpid(pid, 0)
    return None


def _become(request: Request, server: int) -> None:
    """Makes the fork what a process started afresh would be."""
    os.setsid()
    end_with_parent()
    if os.getppid() != server:  # it had been killed before that
        sys.exit(128 + signal.SIGTERM)
    log = os.open(request.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def main() -> int:
    requests = Connection(int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # what was imported stays shared with the forks
    request = serve(requests)
    if request is None:
        return 0
    trainer = sys.modules['lmplay.train.__main__']
    sys.argv = [str(trainer.__file__), *request.arguments]
    return trainer.main(request.arguments)


if __name__ == '__main__':
    sys.exit(main())
