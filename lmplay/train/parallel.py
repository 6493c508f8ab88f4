"""How the ranks of a run share a training step: DDP or FSDP2 around the objective. On one process, neither.

Both add gradients up; neither divides by the number of ranks, because the objective's divisor is already
that of the whole batch.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .objective import MicroLoss, Objective
from .ranks import ALONE, Ranks


class Engine:
    """Makes training passes of an objective, on all ranks together."""

    def __init__(self, objective: Objective, ranks: Ranks = ALONE, kind: str = 'ddp'):
        self.objective, self.ranks = objective, ranks
        self.sharded = kind == 'fsdp' and not ranks.alone
        self.module: Any = objective
        if not ranks.alone and not self.sharded:
            self.module = _data_parallel(objective)

    def __call__(self, x: Tensor, y: Tensor, mask: Tensor, *, last: bool, **counts: Any) -> MicroLoss:
        """The objective of a micro-batch. Gradients are exchanged in the backward pass of a step's `last`.

        Where a rank has nothing left of a batch, it passes in evaluation mode, in which models count nothing.
        """
        if self.ranks.alone:
            return self.objective(x, y, mask, **counts)
        empty = not counts['tokens_share']
        with self._exchanging(last):
            self.module.train(not empty)
            micro = self.module(x, y, mask, **counts)
            self.module.train()
            return micro

    @contextlib.contextmanager
    def _exchanging(self, last: bool) -> Iterator[None]:
        if self.sharded:
            self.module.set_requires_gradient_sync(last)
            yield
        else:
            with contextlib.nullcontext() if last else self.module.no_sync():
                yield


def _data_parallel(objective: Objective) -> nn.Module:
    """A copy on each rank. A parameter that a step does not use gets no gradient, as on one process."""
    module = nn.parallel.DistributedDataParallel(
        objective, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
    )
    module.register_comm_hook(None, _sum)
    return module


def _sum(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A hook of DDP: the sum of the ranks' gradients, where its own is the mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
