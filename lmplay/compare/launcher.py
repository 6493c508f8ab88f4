"""Where the runs of a comparison are trained: on this machine's devices, or in Slurm's queue."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .runner import Job, Pool, Workers
from .slurm import SlurmQueue, check_slurm, parse_options

SHARE = 0.8  # of the free memory, that runs may be estimated to fill


def devices_of(given: str) -> list[str]:
    """The devices to spread runs over: those named, or every GPU for 'cuda' and 'auto'."""
    from ..device import find_device

    names = given.split(',')
    found = [find_device(n) for n in names]
    if len(found) == 1 and found[0].type == 'cuda' and found[0].index is None:
        import torch

        return [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    if len({d.type for d in found}) > 1:
        raise UserError(f"--device: the runs of a comparison need devices of one kind; given: '{given}'.")
    return [str(d) for d in found]


@dataclass
class Launcher:
    """Makes the pools that train jobs.

    kind     'local' or 'slurm'; slurm: what a job asks for, KEY=VALUE,...
    device   as it was asked for; devices: those of the runs, which on a cluster are not this machine's
    workers  runs at a time on this machine; None for one on each device, on a CPU one on each core, as far as
             memory goes, because two of one thread each take less time than one of two after another
    out      the directory of the comparison
    memory   bytes that a run needs, by estimate
    """

    kind: str
    slurm: str
    device: str
    workers: int | None
    out: Path
    say: Callable[[str], None]
    memory: int = field(default=0, init=False)
    devices: list[str] = field(init=False)

    def __post_init__(self):
        self.options = parse_options(self.slurm)
        if self.kind == 'local':
            self.devices = devices_of(self.device)
            return
        if self.device not in ('auto', 'cpu', 'cuda'):
            raise UserError(f'--launcher slurm takes --device auto, cpu or cuda; given: {self.device}.')
        check_slurm()
        gpu = self.device == 'cuda' or self.options.get('gpus_per_node')
        self.devices = ['cuda' if gpu else 'cpu']

    @property
    def local(self) -> bool:
        return self.kind == 'local'

    @property
    def at_a_time(self) -> int:
        """How many runs are trained together on this machine."""
        if self.workers is not None:
            return self.workers
        if not self.local or self.devices[0] != 'cpu' or not self.memory:
            return len(self.devices)
        from ..device import available_memory

        return max(1, min(os.cpu_count() or 1, int(SHARE * available_memory()) // self.memory))

    @property
    def abreast(self) -> int:
        """How many of those have a device to themselves; others share its time."""
        return min(self.at_a_time, len(set(self.devices)))

    def pool(self, jobs: Sequence[Job]) -> Pool:
        if self.local:
            return Workers(jobs, self.devices, self.at_a_time)
        return SlurmQueue(jobs, self.out / 'slurm', self.options, device=self.devices[0], say=self.say)

    def check_timed(self, what: str) -> None:
        """Raises UserError where timed runs would share a device; by default they do not."""
        devices = len(set(self.devices))
        if self.workers is None:
            self.workers = devices
        if self.local and self.workers > devices:
            raise UserError(
                f'{what} needs a device for every job, because runs on one device slow each other down; '
                f'given: --jobs {self.workers}, and {devices} device(s).'
            )

    def speed(self, amp: bool) -> float:
        """FLOP/s that training may reach on this machine: half of what a matrix product does."""
        from ..device import Compute, measured_flops

        compute = Compute.of(self.devices[0] if self.local else 'auto', amp=amp)
        return 0.5 * measured_flops(compute.device, compute.dtype)
