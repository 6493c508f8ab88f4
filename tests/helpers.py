"""What several tests share: data in memory, tiny models, a trainer by itself, and runs compared."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lmplay.base.base_model import LMBase
from lmplay.base.runner_list import find_runner
from lmplay.compare.forkserver import Fork, ForkServer
from lmplay.data.held_out import HeldOut
from lmplay.data.mixture import Mixture
from lmplay.data.rows import IGNORE, Batch, PaddedRows
from lmplay.device import Compute
from lmplay.files import checksum, sealed
from lmplay.runs.checkpoints import Checkpoints
from lmplay.runs.recorder import NoRecorder, Recorder, read_metrics
from lmplay.tokenizers import BytesTokenizer
from lmplay.train.console import ConsoleReporter
from lmplay.train.evaluate import Evaluator
from lmplay.train.length import stage_length
from lmplay.train.loader import Loader
from lmplay.train.objective import Objective
from lmplay.train.optimizer import make_optimizer, parameter_groups
from lmplay.train.parallel import Engine
from lmplay.train.plan import Stage
from lmplay.train.ranks import ALONE, Ranks
from lmplay.train.saving import StageCheckpoints
from lmplay.train.state import TrainState
from lmplay.train.stopping import StopSignal
from lmplay.train.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / 'tests' / 'train' / 'experiments.py'
EOT = BytesTokenizer.eot_token
# Times, speeds and sizes of a process are its own; all else that a run records is the same in a second one.
OWN = ('seconds', 'tokens_per_second', 'memory', 'data_wait', 'mfu')


# ---- data


class Memory:
    """A store in memory: documents of given token lists (without the end of text)."""

    def __init__(self, documents, prompts=None, domains=None):
        self.lists = [[*d, EOT] for d in documents]
        self.tokens = np.array([i for d in self.lists for i in d], np.uint16)
        self.starts = np.cumsum([0, *map(len, self.lists)])
        self.lengths = np.diff(self.starts)
        self.prompt_lengths = np.array(prompts or [0] * len(documents))
        self.text_bytes = np.array([[0, len(d)] for d in documents])
        self.domains = np.array(domains or [0] * len(documents))
        self.splits, self.folder = np.zeros(len(documents), np.uint8), Path('memory')
        self.hashes = np.arange(len(documents), dtype=np.uint64)[::-1].copy()
        self.meta = {'domains': [f'd{i}' for i in range(max(self.domains, default=0) + 1)]}


def mixture(*counts, weights=None, seed=0, stage='s', exhaust='first_exhausted', length=4) -> Mixture:
    """One source per count; its documents are all different: (source, document, 0)."""
    stores = [Memory([[j, i % 256, i // 256] for i in range(n)]) for j, n in enumerate(counts)]
    sources = [
        PaddedRows(s, np.arange(len(s.lists)), length=length, tokenizer=BytesTokenizer()) for s in stores
    ]
    return Mixture(sources, weights or [1.0] * len(counts), seed=seed, stage=stage, exhaust=exhaust)


def held_out(*documents, length=8, max_bytes=10**6, **options) -> HeldOut:
    """All of these documents, one a sequence."""
    about = {name: options.pop(name, None) for name in ('prompts', 'domains')}
    store = Memory(list(documents), **about)

    def rows(store, documents):
        return PaddedRows(store, documents, length=length, tokenizer=BytesTokenizer(), **options)

    prompts = options.get('include_prompts', True)
    return HeldOut(
        [(store, np.arange(len(documents)))],
        make_rows=rows,
        length=length,
        tokenizer=BytesTokenizer(),
        max_bytes=max_bytes,
        document_bytes=None,
        include_prompts=prompts,
    )


def ragged(seed=0, rows=4, length=24) -> Batch:
    """A batch as padded data gives it: sequences of very unequal length, some of it not scored."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length, 3, 11, 2][:rows])
    x, y = (torch.randint(0, 256, (rows, length), generator=g) for _ in range(2))
    y[torch.arange(length) >= lengths[:, None]] = IGNORE
    y[0, :5] = IGNORE
    return Batch(x, y, lengths, int((y != IGNORE).sum()))


def mask_of(batch: Batch) -> torch.Tensor:
    return torch.arange(batch.x.shape[1]) < batch.lengths[:, None]


# ---- models


def tiny(exp='gpt2ish', **parameters) -> LMBase:
    """A small model of an experiment that ships with lmplay, without dropout, on bytes."""
    plain = dict(attn_dropout=0.0, ff_dropout=0.0, embed_dropout=0.0) if exp == 'gpt2ish' else {}
    shape = dict(num_blocks=1, embed_dim=16, num_heads=2, max_len=24, tokenizer='bytes')
    torch.manual_seed(0)
    return find_runner(exp).function(**shape | plain | parameters).build()


def experiment(name: str, **parameters) -> LMBase:
    """A model of tests/train/experiments.py."""
    torch.manual_seed(0)
    return find_runner(f'{EXPERIMENTS}:{name}').function(**parameters).build()


# ---- a trainer, without the session around it


def make_trainer(
    model: LMBase,
    folder: Path,
    *,
    data: Mixture | None = None,
    state=None,
    ranks: Ranks = ALONE,
    kind='ddp',
    **stage,
) -> Trainer:
    """A trainer as a session would put it together, on the CPU, in `folder`."""
    settings = Stage(name='s', dataset='embedded', **{'batch_size': 4, 'steps': 6, 'lr': 0.01} | stage)
    data, state, compute = data or mixture(40), state or TrainState(), Compute(torch.device('cpu'))
    state.mini_batch_size = state.mini_batch_size or int(settings.mini_batch_size)
    groups, objective = parameter_groups(model, settings), Objective(model)
    engine = Engine(objective, ranks, kind=kind, compute=compute)
    optimizer = make_optimizer(model, settings, engine.placed(groups))
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    recorder = Recorder(folder) if ranks.first else NoRecorder()
    console = ConsoleReporter(StringIO())
    checkpoints = Checkpoints(folder / 'checkpoints', keep=2, background=False)
    header = {'exp': 'test', 'stage': 's', 'seed': 0}
    return Trainer(
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        stage=settings,
        seed=0,
        loader=Loader(data, pin=False, ranks=ranks),
        length=stage_length(settings, data),
        state=state,
        engine=engine,
        evaluator=Evaluator(held_out([1, 2, 3], [4, 5, 6, 7]), compute),
        compute=compute,
        flops_per_token=1.0,
        recorder=recorder,
        console=console,
        checkpoints=StageCheckpoints(
            checkpoints, header, model, optimizer, scaler, state, recorder, ranks, engine.sharded
        ),
        stop=StopSignal(console),
    )


class Clock:
    """Stands in for the module `time`: it stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


# ---- runs


@contextlib.contextmanager
def stop_at(step: int) -> Iterator[None]:
    """Inside it, the models of experiments.py send their own process SIGINT in that step of each stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('STOP_AT', str(step))
        yield


@functools.cache
def server(cache: Path) -> ForkServer:
    own = {'LMP_DATASETS': str(cache), 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return ForkServer(os.environ | own)


def start(*arguments, cache: Path) -> Fork:
    """lmp_trainer in a process of its own, on the CPU."""
    descriptor, log = tempfile.mkstemp(dir=cache)
    os.close(descriptor)
    return server(cache).start(['--device', 'cpu', *map(str, arguments)], Path(log))


def spawn(
    size: int, *arguments: str, only: dict[int, dict[str, str]] | None = None, **environment: str
) -> list[subprocess.Popen]:
    """Python processes that are ranks, as torchrun would start them.

    only: more environment variables of some of them.
    """
    shared = {'WORLD_SIZE': str(size), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
    shared |= {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), **environment}
    return [
        subprocess.Popen(
            [sys.executable, '-m', *arguments],
            env=os.environ
            | shared
            | {'RANK': str(rank), 'LOCAL_RANK': str(rank)}
            | (only or {}).get(rank, {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def kill_after_records(process: Fork, run_dir: Path, records: int) -> None:
    """SIGKILL once the run has written that many lines, wherever it is then."""
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        file = run_dir / 'metrics.jsonl'
        if file.exists() and file.read_bytes().count(b'\n') >= records:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()


def train_records(run_dir: Path) -> list[dict]:
    return [r for r in read_metrics(run_dir) if r['kind'] == 'train']


def losses(run_dir: Path) -> list[float]:
    return [r['loss'] for r in train_records(run_dir)]


def events(run_dir: Path, name: str) -> list[dict]:
    return [r for r in read_metrics(run_dir) if r.get('event') == name]


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / 'summary.json').read_text())


def progress(run_dir: Path, checkpoint='last') -> dict:
    """How far the run was at a checkpoint, as state.json holds it."""
    return json.loads((run_dir / 'checkpoints' / checkpoint / 'state.json').read_text())['progress']


def rewrite(folder: Path, **changes) -> None:
    """Gives the checkpoint another state.json, which fits its files as they are now, as an attacker would."""
    state = json.loads((folder / 'state.json').read_text())
    files = [f for f in folder.iterdir() if f.name != 'state.json']
    own = {
        'sizes': {f.name: f.stat().st_size for f in files},
        'checksums': {f.name: checksum(f) for f in files},
    }
    state = {k: v for k, v in state.items() if k != 'checksum'} | own | changes
    (folder / 'state.json').write_text(json.dumps(sealed(state)))


def unseal(run_dir: Path) -> None:
    """Takes the checksums of its records from a finished run, as one of an older lmplay has none."""
    summary = json.loads((run_dir / 'summary.json').read_text())
    older = {k: v for k, v in summary.items() if not k.startswith('checksum')}
    (run_dir / 'summary.json').write_text(json.dumps(older))


def weights(run_dir: Path, checkpoint='last') -> dict[str, torch.Tensor]:
    return load_file(run_dir / 'checkpoints' / checkpoint / 'model.safetensors')


def statistics(run_dir: Path) -> tuple:
    """All that a run recorded but what is a process's own."""
    records = [{k: v for k, v in r.items() if k not in OWN} for r in read_metrics(run_dir)]
    return (
        [r for r in records if r['kind'] != 'event'],
        (run_dir / 'train_stats.csv').read_text(),
        (run_dir / 'samples.jsonl').read_text(),
    )


def assert_equal(a, b) -> None:
    """Equal to the bit, tensors in dictionaries and lists too."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, (dict, list, tuple)):
        assert len(a) == len(b)
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_equal(a[key], b[key])
    else:
        assert a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs ended with the same weights, moments, statistics and position."""
    assert_equal(weights(a), weights(b))
    assert_equal(*(torch.load(d / 'checkpoints/last/optimizer.pt', weights_only=True) for d in (a, b)))
    for ours, theirs in zip(statistics(a), statistics(b)):
        assert ours == theirs
    mine, others = ({k: v for k, v in progress(d).items() if not k.endswith('seconds')} for d in (a, b))
    assert mine == others


@dataclass
class Listed:
    """A source of rows given by hand."""

    listed: list
    name: str = 'listed'
    mark: str = ''
    read: int = 0  # how often its rows were asked for

    spec = {}

    def fingerprint(self):
        return f'{self.mark}{self.listed}'

    def rows(self):
        self.read += 1
        return iter(self.listed)


def flip(file, byte=-1):
    content = bytearray(file.read_bytes())
    content[byte] ^= 4
    file.write_bytes(content)


DAMAGES = {
    'flipped': flip,
    'truncated': lambda file: file.write_bytes(file.read_bytes()[:-1]),
    'empty': lambda file: file.write_bytes(b''),
    'missing': lambda file: file.unlink(),
}
