"""Sums over the processes (ranks) that train one batch together, as an experiment asks for them.

On one process, and outside of a training step, nothing here does anything: a check, an evaluation or a
generated text is one process's own affair.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

_joined = False


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside it, all ranks compute the same step, each its share: sums go over all of them."""
    global _joined
    before, _joined = _joined, dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    try:
        yield
    finally:
        _joined = before


@torch.no_grad()
def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors, of the same shape on each of them; without a gradient.

    Every rank must ask for the same sums in the same order. On one process, the tensor itself.
    """
    if not _joined:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@torch.no_grad()
def mean_over_ranks(mean: Tensor, weight: Tensor | float) -> Tensor:
    """The mean over all ranks of what is, on each, a mean over that much weight (a number of tokens, say).

    On one process, the tensor itself.
    """
    if not _joined:
        return mean
    weight = torch.as_tensor(weight, dtype=mean.dtype, device=mean.device).reshape(1)
    total = sum_over_ranks(torch.cat([(mean * weight).flatten(), weight]))
    return (total[:-1] / total[-1].clamp(min=1)).view_as(mean)


@torch.no_grad()
def gather_over_ranks(tensor: Tensor) -> Tensor:
    """The ranks' tensors (N, ...), all of the same shape, concatenated: (ranks * N, ...).

    On one process, the tensor itself.
    """
    if not _joined:
        return tensor
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered)
