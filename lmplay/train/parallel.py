"""How the ranks of a run share a training step: DDP or FSDP2 around the objective. On one process, neither.

Both sum gradients and do not average them, because the objective's divisor is that of the whole batch.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..base.base_model import LMBase
from ..device import Compute
from ..errors import UserError
from .objective import MicroLoss, Objective
from .plan import Stage
from .ranks import ALONE, Ranks

SHARDABLE = ('adamw', 'adam', 'sgd')  # optimizers that update a tensor element by element


def check_shardable(stage: Stage, compute: Compute) -> None:
    """Raises UserError for a stage whose model can't be sharded."""
    where = f'Stage "{stage.name}": --parallel fsdp'
    if stage.optimizer not in SHARDABLE:
        raise UserError(
            f'{where} splits matrices among processes, and {stage.optimizer} needs whole ones; allowed: '
            f'{", ".join(SHARDABLE)}. Use --parallel ddp.'
        )
    if compute.dtype is torch.float16:
        raise UserError(f'{where} needs a device with bf16 for --amp; this one has fp16. Use --parallel ddp.')


class Engine:
    """Runs the objective on all ranks together.

    kind: one of plan.PARALLEL. FSDP2 replaces the model's parameters by sharded ones; compute: the precision
    in which these are gathered.
    """

    def __init__(
        self,
        objective: Objective,
        ranks: Ranks = ALONE,
        *,
        kind: str = 'ddp',
        compute: Compute | None = None,
    ):
        self.objective, self.ranks, self.sharded = objective, ranks, kind != 'ddp' and not ranks.alone
        self.module: Any = objective
        self._names = {id(p): name for name, p in objective.named_parameters()} if self.sharded else {}
        if self.sharded:
            assert compute is not None
            if kind == 'fsdp_all':
                _make_shardable(objective.model)
            _shard(objective, compute, ranks.size)
        elif not ranks.alone:
            self.module = _data_parallel(objective)

    def __call__(self, x: Tensor, y: Tensor, mask: Tensor, *, last: bool, **counts: Any) -> MicroLoss:
        """The objective of a micro-batch. Gradients are exchanged in the backward pass of a step's `last`.

        A rank with nothing left of a batch takes part in evaluation mode, in which models count nothing.
        """
        if self.ranks.alone:
            return self.objective(x, y, mask, **counts)
        with self._exchanging(last), self._counting(empty=not counts['tokens_share']):
            return self.module(x, y, mask, **counts)

    def placed(self, groups: list[dict]) -> list[dict]:
        """The parameter groups of the plain model, with its sharded parameters in their place."""
        if not self.sharded:
            return groups
        now = dict(self.objective.named_parameters())
        return [g | {'params': [now[self._names[id(p)]] for p in g['params']]} for g in groups]

    def placed_moments(self, state: dict, optimizer: Any) -> dict:
        """The saved state of an optimizer, cut to this rank's part."""
        if not self.sharded:
            return state
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        moments = {
            i: {key: shard_like(value, parameters[i]) for key, value in own.items()}
            for i, own in state['state'].items()
            if i < len(parameters)
        }
        return state | {'state': moments}

    def preview(self, x: Tensor, mask: Tensor, *, empty: bool) -> None:
        """See `Objective.preview`."""
        with self._counting(empty=empty):
            self.objective.preview(x, mask)

    @contextlib.contextmanager
    def _counting(self, *, empty: bool) -> Iterator[None]:
        if empty:
            self.objective.eval()
        yield
        if empty:
            self.objective.train()

    @contextlib.contextmanager
    def _exchanging(self, last: bool) -> Iterator[None]:
        if self.sharded:
            self.module.set_requires_gradient_sync(last)
            yield
        else:
            with contextlib.nullcontext() if last else self.module.no_sync():
                yield


def _data_parallel(objective: Objective) -> nn.Module:
    """DDP: a copy on each rank. A parameter that a step does not use gets no gradient, as on one process."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # newer torch has another name for broadcast_buffers
        module = nn.parallel.DistributedDataParallel(
            objective, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    module.register_comm_hook(None, _sum)
    return module


def _sum(
    _: Any,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]  DDP reads this annotation
) -> torch.futures.Future[Tensor]:
    """A communication hook of DDP: sums the ranks' gradients, where DDP itself averages them."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _shard(objective: Objective, compute: Compute, size: int) -> None:
    """FSDP2: leaves on each rank a part of every parameter; a block's are gathered while it computes.

    In mixed precision, blocks are gathered in the compute dtype and gradients are reduced in float32.
    Embedding, head and activations are left to autocast.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from torch.distributed.fsdp import register_fsdp_forward_method as passes_through

    mesh = init_device_mesh(compute.device.type, (size,))
    policy = MixedPrecisionPolicy(
        param_dtype=compute.dtype,
        reduce_dtype=compute.dtype and torch.float32,
        cast_forward_inputs=False,
    )
    for block in blocks(objective.model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh)
    for method in ('output', 'preview', 'token_losses'):
        passes_through(objective, method)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _make_shardable(model: LMBase) -> None:
    """Turns the buffers that modules declare as `frozen` into parameters without a gradient, which FSDP2 can
    shard. They stay out of the model's state dict."""
    for module in model.modules():
        for name in getattr(module, 'frozen', ()):
            parameter = nn.Parameter(getattr(module, name), requires_grad=False)
            delattr(module, name)
            module.register_parameter(name, parameter)
        if hasattr(module, 'frozen'):
            module.register_state_dict_post_hook(_without_frozen)


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in module.frozen:  # type: ignore[union-attr]
        state.pop(f'{prefix}{name}', None)


def blocks(model: LMBase) -> list[nn.Module]:
    """The parts of a model that are sharded separately: the members of its outermost module lists that a
    forward pass calls once, and whose parameters belong to nothing else."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    inner = {id(m) for outer in lists for m in outer.modules() if m is not outer}
    members = [member for outer in lists if id(outer) not in inner for member in outer]
    calls, owners = _calls(model, members), _owned(model)

    def apart(block: nn.Module) -> bool:
        own = _owned(block)
        return bool(own) and all(owners[p] == count for p, count in own.items())

    return [block for block in members if calls[id(block)] == 1 and apart(block)]


def _owned(module: nn.Module) -> Counter[int]:
    """How many of its modules own each parameter, by its id."""
    return Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))


@torch.no_grad()
def _calls(model: LMBase, members: list[nn.Module]) -> Counter[int]:
    """How often each of these modules is called in a forward pass over one token, by its id."""
    calls: Counter[int] = Counter()
    hooks = [m.register_forward_pre_hook(lambda module, _: calls.update([id(module)])) for m in members]
    training = model.training
    try:
        model.eval()
        model(torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return calls


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has in full, sharded as the parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    where = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor.to(parameter.device), *where, src_data_rank=None)
