"""(b) Faults of the machine: full disks, limits, removed files, clocks, two processes at once."""

import contextlib
import ctypes
import os
import random
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .material import Material
from .outcomes import GOOD, Outcome, judge
from .processes import Disturbed, Process

NEWPID = 0x20000000  # CLONE_NEWPID


def limit_sizes(rng: random.Random, subject: Disturbed) -> Callable[[], None]:
    size = int(10 ** rng.uniform(1, 6))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def limit_files(rng: random.Random, subject: Disturbed) -> Callable[[], None]:
    used = len(os.listdir('/proc/self/fd'))
    most = used + rng.randint(0, 12)
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def set_clock_back(rng: random.Random, subject: Disturbed) -> Callable[[], None]:
    real, at = time.time, time.time() + rng.uniform(0, subject.seconds)
    back = 10 ** rng.uniform(0, 8)

    def disturb():
        time.time = lambda: real() - (back if real() > at else 0)

    return disturb


def remove(rng: random.Random, subject: Disturbed) -> Callable[[], None]:
    """Anything below the run or the cache, at a random moment."""
    delay, choice = rng.uniform(0, subject.seconds), rng.random()

    def later():
        time.sleep(delay)
        found = sorted([*subject.out.rglob('*'), *subject.cache.rglob('*'), subject.out, subject.cache])
        chosen = found[int(choice * len(found))]
        if chosen.is_dir() and not chosen.is_symlink():
            shutil.rmtree(chosen, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                chosen.unlink()

    return lambda: threading.Thread(target=later, daemon=True).start()


def close_streams(rng: random.Random, subject: Disturbed) -> Callable[[], None]:
    number, full = rng.choice((1, 2)), rng.random() < 0.5

    def disturb():
        if full:
            os.dup2(os.open('/dev/full', os.O_WRONLY), number)
        else:
            os.close(number)

    return disturb


FAULTS = (limit_sizes, limit_sizes, limit_files, set_clock_back, remove, remove, close_streams)


def machines(made: Material, scratch: Path, *, rounds: int, seed: int) -> Iterator[tuple[str, Outcome, str]]:
    subject = Disturbed(made, scratch / 'machine', 'lmp_trainer')
    for i in range(rounds):
        for fault in FAULTS:
            rng = random.Random(f'{seed} {i} {fault.__name__}')
            subject.clear()
            with subject.surroundings():
                disturbed = subject.start(fault(rng, subject)).wait()
            outcome, told = judge(disturbed), disturbed.err[-1500:]
            if fault is close_streams and not disturbed.error and disturbed.code in (0, 1, 2, 120, 141):
                outcome = (
                    Outcome.SURVIVED if disturbed.code == 0 else Outcome.CLEAN
                )  # it has nowhere to say why
            if outcome in GOOD:
                ended, said = _finish(subject)
                outcome, told = (ended, said) if ended not in GOOD else (outcome, told)
            yield f'seed {seed} round {i}: {fault.__name__}', outcome, told
        for together in (at_once, at_once_in_namespaces, on_small_disk):
            rng = random.Random(f'{seed} {i} {together.__name__}')
            subject.clear()
            found = together(rng, subject)
            if found is not None:
                yield f'seed {seed} round {i}: {together.__name__}', *found


def _finish(subject: Disturbed) -> tuple[Outcome, str]:
    """Runs to the end without the fault, in the rescued directory where there is one."""
    rescued = subject.out.with_name(f'{subject.out.name}-rescued')
    if rescued.is_dir():
        shutil.rmtree(subject.out, ignore_errors=True)
        rescued.rename(subject.out)
    return subject.finish()


def at_once(rng: random.Random, subject: Disturbed, *, isolate: Callable[[], None] | None = None):
    """Two processes with one cache, and in half of the cases with one run directory."""
    shared = rng.random() < 0.5
    main, arguments = subject.command()
    other = [a if a != subject.out or shared else subject.scratch / 'other' for a in arguments]
    shutil.rmtree(subject.scratch / 'other', ignore_errors=True)
    with subject.surroundings():
        first = Process.start(main, arguments, subject.log, isolate)
        time.sleep(rng.uniform(0, 0.3))
        second = Process.start(main, other, subject.scratch / 'log2', isolate)
        ended = [first.wait(), second.wait()]
    outcomes = [judge(e) for e in ended]
    told = ' | '.join(e.err[-500:] + e.error for e in ended)
    if not all(o in GOOD for o in outcomes):
        return next(o for o in outcomes if o not in GOOD), told
    if not shared and any(e.code for e in ended):
        return Outcome.LOST, told
    found = subject.finish()
    return found if found[0] not in GOOD else (max(outcomes, key=list(Outcome).index), '')


def _isolate() -> None:
    """Continues in a child that is process 1 of a PID namespace of its own, as on another machine."""
    if ctypes.CDLL(None).unshare(NEWPID):  # os.unshare is new in Python 3.12
        os._exit(70)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def may_isolate() -> bool:
    return not subprocess.call(['unshare', '--pid', '--fork', 'true'], stderr=subprocess.DEVNULL)


def at_once_in_namespaces(rng: random.Random, subject: Disturbed):
    return at_once(rng, subject, isolate=_isolate) if may_isolate() else None


def on_small_disk(rng: random.Random, subject: Disturbed):
    """A file system of a few hundred kilobytes, which then grows; None where mounting is not allowed."""
    size, place = int(10 ** rng.uniform(4.2, 5.9)), subject.scratch
    disk = place / 'disk'
    disk.mkdir(exist_ok=True)
    options = ['-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(disk)]
    if subprocess.call(['mount', *options], stderr=subprocess.DEVNULL):
        return None
    before = subject.out, subject.cache
    try:
        subject.out, subject.cache = disk / 'out', disk / 'cache'
        with subject.surroundings():
            ended = subject.start().wait()
        outcome, told = judge(ended), ended.err[-1500:]
        if outcome is Outcome.CLEAN and 'full' not in told and 'No space' not in told:
            return Outcome.TRACEBACK, f'a full disk is not called one: {told}'
        subprocess.check_call(['mount', '-o', 'remount,size=64m', str(disk)])
        found = subject.finish() if outcome in GOOD else (outcome, told)
        return found if found[0] not in GOOD else (outcome, told)
    finally:
        subject.out, subject.cache = before
        subprocess.call(['umount', '-l', str(disk)])
