"""What is known of a device without having one."""

import subprocess
import sys

import pytest
import torch

from lmplay import device
from lmplay.device import datasheet_flops, is_out_of_memory, measured_flops, resident_memory, seed_all
from lmplay.errors import UserError


@pytest.mark.parametrize(
    'name, tera',
    [
        ('NVIDIA A10', 125),
        ('NVIDIA A10G', 70),
        ('NVIDIA L4', 121),
        ('NVIDIA L40', 181),
        ('NVIDIA L40S', 362),
        ('NVIDIA A40', 149.7),
        ('NVIDIA RTX A4000', None),
        ('NVIDIA RTX A6000', 154.8),
        ('NVIDIA T400 4GB', None),
        ('Tesla T4', 65),
        ('Tesla V100-SXM2-16GB', 125),
        ('NVIDIA A100-SXM4-40GB', 312),
        ('NVIDIA A100-PCIE-40GB', 312),
        ('NVIDIA A100 80GB PCIe', 312),
        ('NVIDIA A100-SXM4-40GB MIG 1g.5gb', None),
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H100 PCIe', 756),
        ('NVIDIA H100 NVL', 835),
        ('NVIDIA H100 80GB HBM3 MIG 3g.40gb', None),
        ('NVIDIA H200', 989),
        ('NVIDIA GH200 480GB', 989),
        ('NVIDIA B200', 2250),
        ('NVIDIA GB200', 2500),
        ('NVIDIA GeForce RTX 4090', 165.2),
        ('NVIDIA GeForce RTX 4090 Laptop GPU', None),
        ('NVIDIA GeForce RTX 4090 D', None),
        ('NVIDIA GeForce RTX 3080 Ti', None),
        ('NVIDIA GeForce RTX 4080 SUPER', None),
        ('NVIDIA GeForce GTX 1080', None),
    ],
)
def test_peak_flops_are_those_of_the_very_card(name, tera):
    assert datasheet_flops(name) == (None if tera is None else pytest.approx(tera * 1e12))


class OutOfMemoryError(Exception):
    """As a library may call its own."""


def caused(error, by):
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'),
        RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
        RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'),
        RuntimeError('Triton Error [CUDA]: out of memory'),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        OutOfMemoryError('no room'),
        MemoryError(),
        caused(RuntimeError('backend failed'), torch.OutOfMemoryError('CUDA out of memory')),
    ],
)
def test_memory_that_ran_out_is_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    'error',
    [RuntimeError('shapes differ'), ValueError('no'), UserError('Out of memory at mini-batch size 1')],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_products_are_timed():
    assert measured_flops(torch.device('cpu'), None) > 1e8


def test_mixed_precision_leaves_full_precision_products_full():
    """TF32 would make routers and keys, which are computed outside autocast, choose other experts."""
    code = (
        'import torch; from lmplay.device import Compute; from lmplay.train.session import Session; '
        'Compute.of("cpu", amp=True); assert torch.get_float32_matmul_precision() == "highest"; '
        'assert not torch.backends.cuda.matmul.allow_tf32'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_freed_memory_is_returned_when_the_process_has_grown_by_half(monkeypatch):
    """Measured again after the next pass: what a pass needs is no growth."""
    sizes, returned = iter([100, 120, 149, 151, 110, 160, 166]), []
    monkeypatch.setattr(device, 'resident_memory', lambda: next(sizes))
    monkeypatch.setattr(device, 'return_freed_memory', lambda: returned.append(1))
    freed = device.FreedMemory()
    assert [freed.check() for _ in range(7)] == [False, False, False, True, False, False, True]
    assert len(returned) == 2 and resident_memory() > 2**20


def test_seeds_are_those_of_torch():
    seed_all(7)
    ours = torch.rand(5)
    torch.manual_seed(7)
    assert torch.equal(ours, torch.rand(5))
    assert torch.initial_seed() == 7
