"""The device a run trains on: its precision, speed and memory."""

import contextlib
import ctypes
import functools
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import UserError, unknown

# Dense bf16 or fp16 FLOP/s by datasheet, for model FLOPs utilisation (Chowdhery et al. 2022, appendix B).
PEAK_FLOPS = {
    'B300': 2250e12,
    'GB300': 2500e12,
    'B200': 2250e12,
    'GB200': 2500e12,
    'B100': 1750e12,
    'GH200': 989e12,
    'H200': 989e12,
    'H200 NVL': 835e12,
    'H100': 989e12,
    'H100 NVL': 835e12,
    'H100 PCIe': 756e12,
    'H800': 989e12,
    'H20': 148e12,
    'A100': 312e12,
    'A800': 312e12,
    'A40': 149.7e12,
    'A30': 165e12,
    'A10': 125e12,
    'A10G': 70e12,
    'RTX A6000': 154.8e12,
    'L40': 181e12,
    'L40S': 362e12,
    'L4': 121e12,
    'V100': 125e12,
    'T4': 65e12,
    'RTX 5090': 209.5e12,
    'RTX 4090': 165.2e12,
    'RTX 4080': 97.5e12,
    'RTX 3090': 71e12,
    'RTX 3080': 59.5e12,
    'RTX 3070': 40.6e12,
}
# A part of a card, or a card of another speed that shares the name.
OTHERS = {'mig', 'laptop', 'mobile', 'max', 'ti', 'super', 'd', 'nvl', 'pcie'}
CONTAINER_LIMITS = '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'
GROWTH = 1.5  # of a process, at which memory that it has freed is returned


def seed_all(seed: int) -> None:
    """What torch.manual_seed does, for the devices that this torch knows.

    On a machine without a GPU that one costs 0.5 ms a call, for it keeps where it was called from.
    """
    torch.default_generator.manual_seed(seed)
    if torch.backends.cuda.is_built():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def find_device(name: str) -> torch.device:
    """The device `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises UserError where this machine lacks it."""
    if name == 'auto':
        name = _best_device()
    if name.split(':')[0] not in ('cpu', 'cuda', 'mps'):
        raise UserError(unknown('device', name, ['auto', 'cpu', 'cuda', 'mps']))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"Unknown device '{name}': {error}.") from None
    if reason := _missing(device):
        raise UserError(f"Device '{name}' is not available: {reason}. Use --device cpu.")
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return 'cuda'
    return 'mps' if torch.backends.mps.is_available() else 'cpu'


def _missing(device: torch.device) -> str:
    """Why this machine can't provide the device, '' where it can."""
    if device.type == 'mps' and not torch.backends.mps.is_available():
        return 'this torch sees no Apple GPU'
    if device.type == 'cuda' and not torch.cuda.is_available():
        return f'this torch ({torch.__version__}) sees no CUDA GPU'
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        return f'the number of GPUs is {torch.cuda.device_count()}'
    return ''


def amp_dtype(device: torch.device, amp: bool) -> torch.dtype | None:
    """The autocast dtype of --amp: bf16 where the device has it, else fp16; None without --amp."""
    if not amp:
        return None
    if device.type == 'cuda':
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # a CPU with neither computes bf16 in fp32, slowly but correctly
        has_bf16 = (
            device.type != 'cpu'
            or torch.ops.mkldnn._is_mkldnn_bf16_supported()
            or not torch.ops.mkldnn._is_mkldnn_fp16_supported()
        )
    return torch.bfloat16 if has_bf16 else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None):
    """Mixed precision in that dtype, or a context that does nothing."""
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext()


@dataclass(frozen=True)
class Compute:
    """What a run computes on; dtype is that of mixed precision, None without."""

    device: torch.device
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, device: str, *, amp: bool) -> 'Compute':
        """From the options --device and --amp. Raises UserError where this machine lacks the device."""
        found = find_device(device)
        return cls(found, amp_dtype(found, amp))

    def autocast(self):
        return autocast(self.device, self.dtype)

    @property
    def is_cpu(self) -> bool:
        return self.device.type == 'cpu'

    @property
    def peak_flops(self) -> float | None:
        return peak_flops(self.device, self.dtype)

    def __str__(self) -> str:
        dtype = '' if self.dtype is None else ', ' + str(self.dtype).removeprefix('torch.')
        return f'{self.device}{dtype}'


def peak_flops(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """Peak FLOP/s of the device in mixed precision, None where it is unknown or trains in fp32."""
    if device.type != 'cuda' or dtype is None:
        return None
    return datasheet_flops(torch.cuda.get_device_name(device))


def datasheet_flops(name: str) -> float | None:
    """Peak FLOP/s of a GPU by its name, None where the table does not know it or it is a slice of a card.

    Whole words count: an A10G is no A10, an RTX A4000 no A40.
    """
    words = _words(name)
    keys = [key for key in PEAK_FLOPS if f' {" ".join(_words(key))} ' in f' {" ".join(words)} ']
    if not keys:
        return None
    key = max(keys, key=len)
    # PCIe marks a variant of a card whose own row is another's; for older cards it is part of every name
    rest = set(words) - set(_words(key)) - ({'pcie'} if key != 'H100' else set())
    return None if OTHERS & rest else PEAK_FLOPS[key]


def _words(name: str) -> list[str]:
    return re.findall('[a-z0-9]+', name.lower())


def measured_flops(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of square matrix products on this machine, the best of six timings.

    On a GPU large products and several to a timing, since launching and waiting would be measured else.
    """
    size, products = (8192, 5) if device.type == 'cuda' else (1024, 1)
    a = torch.randn(size, size, device=device, dtype=dtype or torch.float32)
    best = float('inf')
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(products):
            b = a @ a
        b.sum().item()
        best = min(best, time.perf_counter() - began)
    return products * 2 * size**3 / best


def expected_seconds(device: torch.device, training_flops: float) -> float:
    """Roughly how long a GPU takes for that many FLOPs."""
    return training_flops / (0.3 * (peak_flops(device, torch.bfloat16) or 1e14))


def compiling_pays(device: torch.device, seconds: float) -> bool:
    """Whether torch.compile repays its start-up in a stage of that length: on a GPU, from five minutes on.

    On CPUs it does not: a compiled step measures no faster than the eager one, whose head and matrix products
    are already fast (docs/performance.md).
    """
    return device.type == 'cuda' and seconds > 300


def memory_in_use(device: torch.device) -> int:
    """Peak bytes: of the GPU's allocator, or of this process's resident memory."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def available_memory() -> int:
    """Bytes of this machine's memory that a process can still have, within the limit of its container."""
    page, limits = os.sysconf('SC_PAGE_SIZE'), []
    with contextlib.suppress(OSError):
        found = re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())
        limits += [int(found[1]) * 1024] if found else []
    for file in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # 'max' is no number
            limits.append(int(Path(file).read_text()))
    return min([page * os.sysconf('SC_PHYS_PAGES'), *limits])


def keep_freed_memory() -> None:
    """Keeps glibc from returning large blocks to the system after every step, only to fault them in again.

    On CPUs this makes eager steps 2 to 4 times faster, at the cost of a larger resident size. Linux with
    glibc only.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping for a single block
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Inside it, attention on a GPU runs on other kernels than cuDNN's.

    cuDNN's makes a plan for each shape, reported to take 0.4 s forward and 0.5 s backward; texts of many
    lengths never earn that back.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


def return_freed_memory() -> None:
    """Gives the system what `keep_freed_memory` has kept so far, for what comes is of other sizes."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc; finding that out reads Python's own file."""
    glibc = sys.platform == 'linux' and platform.libc_ver()[0] == 'glibc'
    return ctypes.CDLL(None) if glibc else None


class FreedMemory:
    """Freed memory that is kept, in pieces of which some never fit again: it grows from pass to pass.

    `check`, called after each, returns it when the process has grown by half since the first pass after the
    last return. One pass in several then pays for its memory once more.
    """

    def __init__(self) -> None:
        self._resident: int | None = None  # bytes after the first pass

    def check(self) -> bool:
        """Whether it was returned."""
        now = resident_memory()
        if self._resident is None:
            self._resident = now
        if now <= GROWTH * self._resident:
            return False
        return_freed_memory()
        self._resident = None
        return True


def resident_memory() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    try:
        with open('/proc/self/statm', 'rb') as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def reset_peak_memory(device: torch.device) -> None:
    """Lets `memory_in_use` of a GPU begin at what is in use now; earlier runs of a process do not count."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)


OUT_OF_MEMORY = (
    'DefaultCPUAllocator',
    'CUBLAS_STATUS_ALLOC_FAILED',
    'CUDNN_STATUS_ALLOC_FAILED',
    'CUSOLVER_STATUS_ALLOC_FAILED',
    'out of memory',
    'OutOfMemory',
    'Storage size calculation overflowed',  # more than any memory
    'integer multiplication overflow',
    'Unable to allocate',
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, which torch, its libraries and Triton say in several ways, of which a compiler
    may make errors of its own."""
    while error is not None:
        said = f'{type(error).__name__}: {error}'
        if (
            isinstance(error, MemoryError)
            or not isinstance(error, UserError)
            and any(text in said for text in OUT_OF_MEMORY)
        ):
            return True
        error = error.__cause__
    return False
