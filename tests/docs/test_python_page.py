"""docs/python.md, run from its first line to its last as a user would paste it, with little to train."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lmplay

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_runs_from_top_to_bottom(tmp_path, cache):
    page = (ROOT / 'docs' / 'python.md').read_text(encoding='utf-8')
    code = '\n'.join(re.findall(r'```python\n(.*?)```', page, re.S))
    assert 'tokens=60_000' in code
    script = tmp_path / 'page.py'
    script.write_text(code.replace('tokens=60_000', 'tokens=20_000'))
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'LMP_DATASETS': str(cache), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'gpt2ish 0 ' in done.stdout and 'report.html' in done.stdout and 'curves.png' in done.stdout
    assert (tmp_path / 'exported' / 'model.safetensors').is_file()


def test_it_has_every_function():
    page = (ROOT / 'docs' / 'python.md').read_text(encoding='utf-8')
    compatible = {'MODEL_RUNNERS'}  # for experiments of the original lmplay
    assert [n for n in lmplay.__all__ if n not in compatible and not re.search(rf'\b{n}\b', page)] == []
    assert all(getattr(lmplay, name) for name in re.findall(r'`lmplay\.(\w+)\(', page))


def test_importing_lmplay_imports_no_torch():
    code = (
        'import sys, lmplay; dir(lmplay); lmplay.train; '
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
