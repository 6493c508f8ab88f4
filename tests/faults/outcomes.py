"""The outcome of a command that met a fault, and counts of outcomes."""

import contextlib
import enum
import io
import json
import logging
import os
import re
import select
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field


class Outcome(enum.StrEnum):
    """survived: the result is as without the fault, or what differs is said; clean: one sentence and an exit
    code; silent: another result, and nothing said; lost: something that was there before is gone."""

    SURVIVED = 'survived'
    CLEAN = 'clean error'
    TRACEBACK = 'traceback'
    HANG = 'hang'
    SILENT = 'silent wrong'
    LOST = 'lost'


GOOD = (Outcome.SURVIVED, Outcome.CLEAN)
CODES = (0, 1, 2, 130, 141, 143)  # with which a command may end
SECONDS = 60  # of work after which a command hangs; on a busy machine ten times as long by the clock


class Hang(BaseException):
    """Raised by the watchdog in whatever runs too long."""


@dataclass
class Ended:
    """How a command ended. code: None after an exception, which is then `error`."""

    code: int | None
    out: str = ''
    err: str = ''
    error: str = ''

    @property
    def clean(self) -> bool:
        """Whether its last line is a sentence on what is wrong; libraries may have logged lines before it."""
        lines = self.err.strip().splitlines()
        return self.code in (1, 2, 141) and bool(lines) and bool(re.match(r'lmp_\w+: .', lines[-1]))


def call(main: Callable[[list[str]], int], arguments: Iterable[object], *, seconds: float = SECONDS) -> Ended:
    """Runs a command in this process, under a watchdog."""
    out, err = io.StringIO(), io.StringIO()
    code, error = None, ''
    logging.captureWarnings(True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with watchdog(seconds):
                code = main([str(a) for a in arguments])
        except SystemExit as ended:  # --help
            code = ended.code if isinstance(ended.code, int) else 0
        except Hang:
            error = 'hang'
        except BaseException:  # noqa: BLE001  that is what is looked for
            error = traceback.format_exc()
    return Ended(code, out.getvalue(), err.getvalue(), error)


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Limits the CPU time of the block. A process that sleeps for ever is seen by `in_children`."""

    def bark(number, frame):
        raise Hang

    before = signal.signal(signal.SIGPROF, bark)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judge(ended: Ended, result: object = None, expected: object = None) -> Outcome:
    """The outcome of a command whose result should be `expected`; None where only its end matters."""
    if ended.error == 'hang':
        return Outcome.HANG
    if ended.error or ended.code not in CODES:
        return Outcome.TRACEBACK
    if ended.code != 0:
        return Outcome.CLEAN if ended.clean or ended.code > 128 else Outcome.TRACEBACK
    if expected is None or result == expected or ended.err.strip():
        return Outcome.SURVIVED
    return Outcome.SILENT


@dataclass
class Found:
    """One fault. what: enough to make it again, with the seed of the campaign."""

    part: str
    what: str
    outcome: Outcome
    told: str = ''


@dataclass
class Tally:
    """Counts by part of the campaign; `bad` holds what must not happen."""

    counts: dict[str, Counter] = field(default_factory=dict)
    seconds: Counter = field(default_factory=Counter)
    bad: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        self.counts.setdefault(found.part, Counter())[found.outcome] += 1
        if found.outcome not in GOOD:
            self.bad.append(found)

    def table(self) -> str:
        """As docs/reliability.md has it."""
        lines = [f'| part | faults | {" | ".join(Outcome)} | time |', f'|---|{"--:|" * (len(Outcome) + 2)}']
        for part, counts in self.counts.items():
            cells = [f'{counts[o]:,}' for o in Outcome]
            minutes, seconds = divmod(round(self.seconds[part]), 60)
            lines.append(f'| {part} | {counts.total():,} | {" | ".join(cells)} | {minutes}:{seconds:02d} |')
        return '\n'.join(lines)


# ---- children: faults that may take their process with them


Case = tuple[str, Callable[[], tuple[Outcome, str]]]


def in_children(cases: Iterable[Case], *, at_a_time: int = 40) -> Iterator[tuple[str, Outcome, str]]:
    """Runs cases in forked processes, many in each; a process that dies or hangs is an outcome too."""
    waiting = list(cases)
    while waiting:
        batch = waiting[:at_a_time]
        done = 0
        for outcome, told in _fork(batch):
            yield batch[done][0], outcome, told
            done += 1
        waiting = waiting[done:]


def _fork(batch: list[Case]) -> Iterator[tuple[Outcome, str]]:
    """The outcomes of the first cases of a batch, of at least one."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _work(batch, write)
    os.close(write)
    done, hangs = 0, False
    with open(read, 'rb', buffering=0) as pipe:
        buffer = b''
        while done < len(batch):
            hangs = not select.select([pipe], [], [], 10 * SECONDS)[0]
            chunk = b'' if hangs else pipe.read(1 << 16)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b'\n')
            for line in lines:
                outcome, told = json.loads(line)
                yield Outcome(outcome), told
                done += 1
    if hangs:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if done < len(batch):
        yield (Outcome.HANG if hangs else Outcome.TRACEBACK), f'the process ended with wait status {status}'


def _work(batch: list[Case], write: int) -> None:
    try:
        for _, case in batch:
            try:
                outcome, told = case()
            except BaseException:  # noqa: BLE001
                outcome, told = Outcome.TRACEBACK, 'in the campaign itself: ' + traceback.format_exc()
            os.write(write, json.dumps([outcome, told[-3000:]]).encode() + b'\n')
    finally:
        sys.stdout.flush()
        os._exit(0)
