"""How tests of training train: an experiment of experiments.py,
by the command itself or by a session on another device."""

import pytest

from lmplay.train.__main__ import main
from lmplay.train.console import ConsoleReporter
from lmplay.train.plan import load_plan
from lmplay.train.resolve import Settings
from lmplay.train.session import Session
from tests.helpers import EXPERIMENTS


@pytest.fixture
def train(tmp_path, tiny_plan):
    """Trains for 12 steps unless the stage says otherwise; returns (exit code, run directory).

    compute: what the session computes on in place of the plain CPU; keywords that are left over: the model's
    parameters.
    """

    def run(
        name='run',
        *,
        exp='troubled',
        stage=None,
        stages=None,
        flags=(),
        quiet=True,
        compute=None,
        **parameters,
    ):
        plan = tiny_plan(stages or {'s': {'steps': 12} | (stage or {})})
        exp, folder = f'{EXPERIMENTS}:{exp}', tmp_path / name
        if compute is not None:
            settings = Settings(exp=exp, device='cpu', run_dir=str(folder), model=parameters)
            session = Session(load_plan(str(plan)), settings, console=ConsoleReporter(quiet=quiet))
            session.compute = compute
            return session.train(), folder
        options = ['--exp', exp, '--training-plan', plan, '--run-dir', folder, '--device', 'cpu', *flags]
        options += [f'--set={k}={v}' for k, v in parameters.items()] + ['--quiet'] * quiet
        return main([str(o) for o in options]), folder

    return run
