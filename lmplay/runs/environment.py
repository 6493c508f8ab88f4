"""What a run ran on: enough to explain a difference between two runs."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import lmplay

PACKAGES = (
    'torch',
    'numpy',
    'transformers',
    'tokenizers',
    'tiktoken',
    'datasets',
    'safetensors',
    'pydantic',
    'triton',
)


def environment() -> dict:
    """Versions, machine, devices, command line, git state of lmplay and working directory; JSON values."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    package = Path(lmplay.__file__).resolve().parent
    return {
        'lmplay': lmplay.__version__,
        'python': platform.python_version(),
        'packages': packages,
        'platform': platform.platform(),
        'cpu': _cpu_model(),
        'float32_products': torch.get_float32_matmul_precision(),
        'cpu_count': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'torch_threads': torch.get_num_threads(),
        'load': load(),
        'cuda': torch.version.cuda,
        'devices': [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        'gpus': [_gpu(i) for i in range(torch.cuda.device_count())],
        'cudnn': torch.backends.cudnn.version(),
        'driver': _driver(),
        'cuda_visible_devices': os.environ.get('CUDA_VISIBLE_DEVICES'),
        'git': {'lmplay': _git(package, package / '__init__.py'), 'working_directory': _git(Path.cwd())},
        'working_directory': str(Path.cwd()),
        'command': shlex.join(sys.argv),
    }


def load() -> float | None:
    """Tasks that ran or waited in the last minute, per core of the machine: above 1 it is busy."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except OSError:
        return None


def _gpu(index: int) -> dict:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {'name': found.name, 'capability': [found.major, found.minor], 'memory': found.total_memory}


def _driver() -> str | None:
    """Version of NVIDIA's kernel driver."""
    file = Path('/sys/module/nvidia/version')
    try:
        return file.read_text(encoding='utf-8').strip()
    except OSError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _git(folder: Path, tracked: Path | None = None) -> dict | None:
    """Commit of the repository around `folder`, and whether anything differs from it, new files included.

    None outside a repository, or where it does not track `tracked` (a package installed below some other
    project).
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', '-C', str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if tracked is not None:
            git('ls-files', '--error-unmatch', str(tracked))
        return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '--porcelain'))}
    except (OSError, subprocess.SubprocessError):
        return None
