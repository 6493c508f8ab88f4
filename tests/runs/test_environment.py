import json
import subprocess
import sys

import torch

from lmplay.runs.environment import environment


def test_environment_is_json_and_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(json.dumps(environment()))
    assert (
        found['packages']['torch'].split('+')[0] == torch.__version__.split('+')[0]
    )  # a build's suffix may be the module's alone
    assert found['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert found['cpu'] and found['cpu_count'] >= 1
    assert len(found['gpus']) == torch.cuda.device_count()
    assert {'cudnn', 'driver', 'cuda_visible_devices'} <= found.keys()
    assert found['git']['working_directory'] is None
    assert found['working_directory'] == str(tmp_path)


def test_git_state_of_the_working_directory(tmp_path, monkeypatch):
    def git(*arguments):
        return subprocess.run(
            ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git('init', '-q')
    git('commit', '-q', '--allow-empty', '-m', 'first')
    monkeypatch.chdir(tmp_path)
    assert environment()['git']['working_directory'] == {'commit': git('rev-parse', 'HEAD'), 'dirty': False}
    (tmp_path / 'new').touch()
    assert environment()['git']['working_directory']['dirty'] is True
