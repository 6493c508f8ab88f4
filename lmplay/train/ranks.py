"""The processes (ranks) of one run, as torchrun starts them: their numbers, collectives, and how they end.

One process is the usual case; everything here then does nothing. Rank 0 prints, records and draws.
"""

import contextlib
import logging
import os
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..base import ranks as contract
from ..cli import Terminated
from ..device import find_device
from ..errors import UserError

Item = TypeVar('Item')
POLL_SECONDS = 0.05
START_SECONDS = 300.0  # for all processes of a run to have started
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
LOST = ('gloo', 'pair closure', 'closed by peer')  # in what torch says of processes that have gone
NUMBERS = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'GROUP_RANK')  # of those it sets; the last is the machine


@dataclass(eq=False)
class Ranks:
    """This process among those that train together.

    rank, size   which one of how many
    local, node  which one on its machine; which machine
    timeout      seconds to wait for the others in a collective
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    node: int = 0
    timeout: float = 600.0
    _store: Any = field(default=None, repr=False)
    _host: Any = field(default=None, repr=False)  # process group of tensors in the host's memory
    _loader: Any = field(default=None, repr=False)  # the same, for the thread that makes batches
    _barriers: int = field(default=0, repr=False)

    @classmethod
    def of_environment(cls, timeout: float = 600.0) -> 'Ranks':
        """As torchrun has set it. Raises UserError where a variable is missing or not a whole number."""
        size = os.environ.get('WORLD_SIZE', '1')
        if size == '1':
            return cls()
        given = {name: os.environ.get(name, '0') for name in NUMBERS}
        for name, value in given.items():
            if not value.isdecimal() or name == 'WORLD_SIZE' and not int(value):
                raise UserError(
                    f'{name} in the environment must be a whole number{" above 0" * (name == "WORLD_SIZE")}, '
                    f"as torchrun sets it; given: '{value}'. To train on one process, unset WORLD_SIZE."
                )
        if missing := [name for name in TORCHRUN if name not in os.environ]:
            raise UserError(
                f'WORLD_SIZE is {size} in the environment, as torchrun sets it, without '
                f'{" and ".join(missing)}. Start with: torchrun --nproc-per-node {size} -m lmplay.train ...'
            )
        rank, ranks, local, node = map(int, given.values())
        return cls(rank, ranks, local, node, timeout)

    @property
    def first(self) -> bool:
        """Whether it is the one that prints, records and draws."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def device(self, name: str) -> str:
        """The device of this rank: of several GPUs its own. Raises UserError for one that all would share."""
        if self.alone:
            return name
        device = find_device(name)
        if device.type != 'cuda':
            return str(device)
        if device.index is not None:
            raise UserError(f'--device {name} names one GPU for {self.size} processes. Use --device cuda.')
        return f'cuda:{self.local}'

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connects the processes. Where one fails, it reports its error, and the others exit silently."""
        if self.alone:
            yield
            return
        if not self.first:
            logging.getLogger('lmplay').setLevel(logging.ERROR)
            warnings.simplefilter('ignore')
        self._connect(device)
        try:
            yield
            self._barrier()
        except KeyboardInterrupt as interruption:
            if self.first:
                raise
            number = signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT
            raise SystemExit(128 + number) from interruption
        except BaseException as error:  # noqa: BLE001  whatever ends one rank ends all
            self._end(error)
        else:
            dist.destroy_process_group()

    def _connect(self, device: torch.device) -> None:
        patience, limit = timedelta(seconds=START_SECONDS), timedelta(seconds=self.timeout)
        prefixed: Any = dist.distributed_c10d.PrefixStore
        self._store, _, _ = next(rendezvous('env://', self.rank, self.size, timeout=patience))
        self._store = prefixed('lmplay', self._store)
        self._barrier()
        cuda = device.type == 'cuda'
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            'cpu:gloo,cuda:nccl' if cuda else 'gloo',
            store=prefixed('group', self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=limit,
            device_id=device if cuda else None,
        )
        self._host, self._loader = (dist.new_group(backend='gloo', timeout=limit) for _ in range(2))

    def _end(self, error: BaseException) -> None:
        lost = isinstance(error, RuntimeError) and _is_lost(error)
        first = True
        with contextlib.suppress(RuntimeError):  # the store ends with the process that holds it
            if lost:
                time.sleep(1.0)  # let a process that ended for a reason of its own report that first
            first = self._store.add('failed', 1) == 1
        if not first:
            raise SystemExit(1) from error
        if not lost:
            if isinstance(error, UserError) and not self.first:
                raise type(error)(f'Rank {self.rank} of {self.size}: {error}') from error
            raise error
        what = (
            f'no answer from another process within {self.timeout:g} s (--rank-timeout)'
            if any(sign in str(error).lower() for sign in ('timed out', 'timeout'))
            else 'another process of the run has ended'
        )
        raise UserError(
            f'Rank {self.rank} of {self.size}: {what}. Rerun the same command to resume from the last '
            'checkpoint.'
        ) from error

    # ---- barriers, and taking turns

    def _barrier(self) -> None:
        """Returns when all ranks are here, however long that takes; a signal still ends this process."""
        self._barriers += 1
        self._store.set(f'barrier {self._barriers} {self.rank}', '')
        self._wait([f'barrier {self._barriers} {rank}' for rank in range(self.size)])

    def _wait(self, keys: list[str]) -> None:
        while not self._store.check(keys):
            if self._store.check(['failed']):  # another rank has reported an error, and will not come
                raise SystemExit(1)
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 runs the block first, then one rank of each other machine, then the rest, all at once.

        So what the block fetches and prepares is fetched and prepared once per machine.
        """
        if self.alone:
            yield
            return
        self._barriers += 1
        turn = f'turn {self._barriers}'
        if not self.first:
            self._wait([f'{turn} rank 0' if self.local == 0 else f'{turn} node {self.node}'])
        yield
        if self.first:
            self._store.set(f'{turn} rank 0', '')
        if self.local == 0:
            self._store.set(f'{turn} node {self.node}', '')
        self._barrier()

    # ---- collectives: all ranks call these, in the same order

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all ranks."""
        return list(values) if self.alone else self._reduced(values, dist.ReduceOp.MAX, self._host)

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all ranks; for the thread that makes batches."""
        return list(values) if self.alone else self._reduced(values, dist.ReduceOp.SUM, self._loader)

    def widest(self, value: int) -> int:
        """The largest of all ranks; for the thread that makes batches."""
        return value if self.alone else int(self._reduced([value], dist.ReduceOp.MAX, self._loader)[0])

    @staticmethod
    def _reduced(values: Sequence[float], operation, group) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device='cpu')
        dist.all_reduce(tensor, operation, group=group)
        return tensor.tolist()

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor, in the host's memory, over all ranks."""
        if not self.alone:
            dist.all_reduce(tensor, group=self._host)
        return tensor

    def summed_on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same for a tensor on the ranks' devices; only the devices wait for it."""
        dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: Item) -> list[Item]:
        """The values of all ranks, in order. They are pickled, so keep them small."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._host)
        return values

    def dealt(self, items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
        """(item, whether this rank counts it): all ranks get equally many; the last one may be a repeat."""
        hand: list[Item] = []
        for item in items:
            hand.append(item)
            if len(hand) == self.size:
                yield hand[self.rank], True
                hand = []
        if hand:
            yield hand[min(self.rank, len(hand) - 1)], self.rank < len(hand)

    # ---- a step

    def joined(self) -> contextlib.AbstractContextManager[None]:
        """A training step, in which an experiment's sums go over all ranks."""
        return contextlib.nullcontext() if self.alone else contract.joined()

    def passes(self, sequences: int, mini_batch: int) -> int:
        """Forward passes that each rank makes of a batch, micro-batches of `mini_batch` sequences on each."""
        return -(-sequences // (self.size * mini_batch))

    def share(self, sequences: int, mini_batch: int) -> list[int]:
        """Which sequences of a batch are this rank's, in the order of its micro-batches.

        The ranks' n-th micro-batches follow each other in the batch: together they are what one process with
        micro-batches of size * mini_batch sequences computes at once.
        """
        own: list[int] = []
        for start in range(0, sequences, self.size * mini_batch):
            count = min(self.size * mini_batch, sequences - start)
            own += range(start + count * self.rank // self.size, start + count * (self.rank + 1) // self.size)
        return own


ALONE = Ranks()


def _is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has ended, or does not answer."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST)
