"""Runs as jobs of Slurm."""

import csv
import shutil
import signal
import subprocess
import time

import pytest

from lmplay.compare.__main__ import main
from lmplay.compare.runner import Job
from lmplay.compare.slurm import SlurmQueue, parse_options
from lmplay.errors import UserError
from tests.compare.test_comparison import OWN, start

ASK = ('--launcher', 'slurm', '--slurm', 'cpus_per_task=1,timeout_min=30')


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def has_slurm() -> bool:
    """Asked so that a machine whose controller is not there says so at once."""
    if shutil.which('scontrol') is None:
        return False
    return ' is UP' in subprocess.run(['scontrol', 'ping'], capture_output=True, text=True).stdout


def test_options_are_read_as_submitit_takes_them():
    assert parse_options('partition=gpu,gpus_per_node=1,timeout_min=240') == {
        'partition': 'gpu',
        'gpus_per_node': 1,
        'timeout_min': 240,
    }
    assert parse_options('') == {}


@pytest.mark.parametrize('given', ['partition', '=gpu', 'partition=', 'nodes=2'])
def test_other_options_are_refused(given):
    with pytest.raises(UserError, match='--slurm'):
        parse_options(given)


@pytest.fixture
def other_slurm(tmp_path, monkeypatch):
    """Puts commands of these names and contents in place of this machine's Slurm, if it has any."""

    def install(**scripts: str) -> None:
        folder = tmp_path / 'bin'
        folder.mkdir()
        for name, script in scripts.items():
            (folder / name).write_text(f'#!/bin/sh\n{script}\n')
            (folder / name).chmod(0o755)
        monkeypatch.setenv('PATH', str(folder))

    return install


SILENT = 'exec /bin/sleep 60'
REFUSED = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


@pytest.mark.parametrize(
    ('scripts', 'told'),
    [
        ({}, 'No Slurm on this machine: there is no sbatch. Use --launcher local.'),
        (
            {'sbatch': SILENT, 'srun': SILENT, 'squeue': SILENT},
            "Slurm's controller does not answer (squeue has waited 0.5 s).",
        ),
        (
            {'sbatch': SILENT, 'srun': SILENT, 'squeue': REFUSED},
            "Slurm's controller does not answer (slurm_load_jobs error: Unable to contact slurm controller ",
        ),
    ],
)
def test_without_a_slurm_the_command_says_so(
    scripts, told, other_slurm, tmp_path, write_plan, monkeypatch, capsys
):
    pytest.importorskip('submitit')
    monkeypatch.setattr('lmplay.compare.slurm.ANSWER_SECONDS', 0.5)
    other_slurm(**scripts)
    out = tmp_path / 'out'
    arguments = ('gpt2ish', 'gpt2ish,embed_dim=16', '--plan', write_plan(tmp_path), *ASK, '--out', out)
    assert main([str(part) for part in arguments]) == 2
    said = capsys.readouterr().err
    assert f'lmp_compare: {told}' in said and said.count('\n') == 1
    assert not out.exists()


def test_a_slurm_that_stops_answering_is_waited_for_and_says_so_once(other_slurm, tmp_path):
    pytest.importorskip('submitit')
    other_slurm(sbatch=SILENT, srun=SILENT, squeue=REFUSED)
    said = []
    job = Job('a-0', tmp_path / 'a', [], 'tokens', 100)
    queue = SlurmQueue([job], tmp_path / 'slurm', {}, device='cpu', say=said.append)
    assert [*queue.launch(), *queue.launch()] == [] and queue.waiting == [job]
    assert said == ['Slurm does not answer. Its jobs go on; waiting until it does.']


def finish(arguments, cwd, cache) -> None:
    process = start(arguments, cwd, cache)
    _, error = process.communicate(timeout=800)
    assert process.returncode == 0, error


def wait_for(what, seconds: float = 250):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def saved_job(out, label: str, seed: int):
    """The number of a run's job, once the run has a checkpoint."""

    def look():
        notes = [f for f in out.glob(f'runs/*/seed-{seed}.slurm') if f.parent.name.startswith(label)]
        return [
            note.read_text().split()[0]
            for note in notes
            if (note.with_suffix('') / 'checkpoints/last').exists()
        ]

    return wait_for(look)[0]


def table(out) -> list[dict[str, str]]:
    """What the report judges, without what a clock measured."""
    rows = csv.DictReader((out / 'runs.csv').open())
    return [{k: v for k, v in row.items() if k not in (*OWN, 'tokens_per_second')} for row in rows]


@pytest.mark.slurm
@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_slurm(), reason='no Slurm is running here')
def test_a_comparison_on_slurm_survives_a_killed_and_a_requeued_job_and_being_closed(
    tmp_path, write_plan, cache
):
    """2 experiments x 3 seeds; the report is that of the same comparison on this machine."""
    plan = write_plan(tmp_path, tokens=100_000, save_interval=160)
    command = ('gpt2ish', 'gpt2ish,embed_dim=16', '--plan', plan, '--seeds', '3')
    out = tmp_path / 'slurm' / 'out'
    first = start((*command, *ASK, '--out', out), tmp_path, cache)
    slurm('scancel', '--signal=KILL', saved_job(out, 'gpt2ish', 0))
    requeued = saved_job(out, 'gpt2ish', 1)
    slurm('scontrol', 'requeue', requeued)
    time.sleep(5)
    slurm('scontrol', 'update', f'JobId={requeued}', 'StartTime=now')
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=60)
    assert first.returncode == 130 and 'runs continue in Slurm' in told
    finish((*command, *ASK, '--out', out), tmp_path, cache)
    finish((*command, '--device', 'cpu', '--jobs', '2', '--out', tmp_path / 'local' / 'out'), tmp_path, cache)
    assert table(out) == table(tmp_path / 'local' / 'out')
