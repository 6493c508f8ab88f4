"""Runs forked from one process: what they leave behind is what runs started afresh leave behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmplay.compare.forkserver import ForkServer
from lmplay.compare.runner import Job, Workers, run_jobs
from lmplay.runs.finished import read_run
from tests.helpers import assert_same_run

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='runs are forked on Linux only')
SIZE = ('--num-blocks', '1', '--embed-dim', '16', '--num-heads', '2', '--max-len', '32', '--quiet')


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def server():
    made = ForkServer(dict(os.environ))
    yield made
    if made.process.poll() is None and not made.connection.closed:
        made.close()


def job(name: str, folder: Path, plan: Path, *flags: str, **options) -> Job:
    arguments = ['--exp', 'gpt2ish', '--training-plan', str(plan), *SIZE, *flags]
    return Job(name, folder / name, arguments, unit='tokens', length=512, **options)


def test_both_ways_give_one_run(tiny_plan, tmp_path):
    """`environment` makes the second start afresh; seed, threads and what is recorded are the same."""
    plan = tiny_plan()
    jobs = [job('forked', tmp_path, plan), job('afresh', tmp_path, plan, environment={'LMP_MARK': '1'})]
    run_jobs(jobs, Workers(jobs, ['cpu'], 1), say=lambda line: None)
    forked, afresh = (read_run(j.folder) for j in jobs)
    assert_same_run(forked.folder, afresh.folder)
    for key in ('torch_threads', 'packages', 'python'):
        assert forked.environment[key] == afresh.environment[key]
    assert forked.environment['command'].replace('forked', 'afresh') == afresh.environment['command']


def test_exit_codes_and_output(server, tmp_path):
    log = tmp_path / 'log'
    log.write_text('before\n')
    listed, wrong = server.start(['--version'], log), server.start(['--exp', 'gpt2ich'], tmp_path / 'wrong')
    assert (listed.wait(), wrong.wait()) == (0, 2)
    assert log.read_text().startswith('before\nlmp_trainer (lmplay')
    assert "'gpt2ich'" in (tmp_path / 'wrong').read_text()


@pytest.mark.parametrize('how', ['terminate', 'kill', 'close', 'kill the server'])
def test_a_run_that_is_ended(server, tiny_plan, tmp_path, how):
    """SIGTERM, also by the death of the server, lets it save its state: 143. No process is left behind."""
    plan = tiny_plan(stages={'only': {'steps': 100_000}})
    endless = job('endless', tmp_path, plan)
    fork = server.start([*endless.arguments, '--run-dir', str(endless.folder)], endless.log)
    until(lambda: endless.latest() or fork.poll() is not None)
    assert fork.poll() is None, endless.log.read_text()
    if how == 'terminate':
        fork.terminate()
        assert fork.wait() == 128 + signal.SIGTERM
    elif how == 'kill':
        os.kill(fork.pid, signal.SIGKILL)
        assert fork.wait() == -signal.SIGKILL
    elif how == 'close':
        server.close()
    else:
        server.process.kill()
        assert fork.wait() < 0
    until(lambda: not alive(fork.pid))
    if how != 'kill':
        assert (endless.folder / 'checkpoints' / 'last').exists()
    if how == 'kill the server':
        with pytest.raises((OSError, EOFError)):
            server.start(['--version'], tmp_path / 'log')


def test_it_ends_with_the_process_that_started_it(tmp_path):
    program = (
        'import os, sys, time\n'
        'from lmplay.compare.forkserver import ForkServer\n'
        'made = ForkServer(dict(os.environ))\nprint(made.process.pid, flush=True)\ntime.sleep(600)'
    )
    with subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert alive(server)
        process.kill()
    until(lambda: not alive(server))


def test_where_the_server_is_gone_runs_start_afresh(server, tmp_path):
    server.process.kill()
    server.process.wait()
    version = Job('version', tmp_path / 'version', ['--version'], unit='tokens', length=1)
    version.start('cpu', dict(os.environ), server)
    assert isinstance(version.process, subprocess.Popen) and version.process.wait() == 0
    assert 'lmplay' in version.log.read_text()


def test_from_a_process_whose_streams_are_closed(tmp_path):
    program = (
        'import os, pathlib, sys\n'
        'for stream in (0, 1, 2): os.close(stream)\n'
        'from lmplay.compare.forkserver import ForkServer\n'
        'made, log = ForkServer(dict(os.environ)), pathlib.Path(sys.argv[1])\n'
        "code = made.start(['--exp', 'gpt2ich'], log).wait()\n"
        'made.close()\nos._exit(code)'
    )
    log = tmp_path / 'log'
    assert subprocess.run([sys.executable, '-c', program, str(log)]).returncode == 2
    assert "'gpt2ich'" in log.read_text()
