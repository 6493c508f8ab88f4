"""What is left to do where a step does not fit into memory."""

import dataclasses
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..data.rows import Batch, Whole
from ..errors import UserError
from .ranks import Ranks


class Rehearsed:
    """The largest step that several ranks have found to fit, each by itself; one process covers any.

    A step takes the more memory the more tokens its micro-batches have, and more once the optimizer has made
    its first `updated`, which allocates its moments.
    """

    def __init__(self, ranks: Ranks):
        self.ranks, self.updated, self._largest = ranks, False, (False, 0)

    def covers(self, batch: Batch, mini_batch: int) -> bool:
        """Equal on all ranks."""
        return batch.whole is None or self._size(batch.whole, mini_batch) <= self._largest

    def add(self, batch: Batch, mini_batch: int) -> None:
        if batch.whole is not None:
            self._largest = self._size(batch.whole, mini_batch)

    def _size(self, whole: Whole, mini_batch: int) -> tuple[bool, int]:
        share = -(-whole.sequences // self.ranks.size)
        return self.updated, min(mini_batch, share) * whole.width


def does_not_fit(sequences: int, width: int, *, auto: bool) -> UserError:
    """For a micro-batch of so many sequences of `width` tokens; auto: halving them by itself is of no use."""
    smaller = f'--mini-batch-size {sequences // 2}, ' if sequences > 1 else ''
    advice = smaller if auto else '--mini-batch-size auto, a smaller one, '
    return UserError(
        f'Out of memory at mini-batch size {sequences} x {width} tokens. '
        f'Use {advice}a shorter --row-length, or --amp.'
    )


def forget_pass(model: nn.Module) -> None:
    """Sets to None the attributes of modules that hold a part of a graph, and with it all its activations."""
    for module in model.modules():
        kept = [name for name, value in vars(module).items() if not name.startswith('_') and _in_graph(value)]
        for name in kept:
            setattr(module, name, None)


def _in_graph(value: Any) -> bool:
    leaves = tree_leaves(vars(value) if dataclasses.is_dataclass(value) else value)
    return any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in leaves)
