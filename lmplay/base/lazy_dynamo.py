"""Keeps torch's compiler out of processes that compile nothing: importing torch._dynamo takes about 0.9 s.

Three things import it on first use without need: an optimizer's methods and the FLOP counter, each wrapped so
that dynamo does not trace it, and random initialisation on the meta device.
"""

import inspect
from collections.abc import Callable
from types import MethodType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import flop_counter

RANDOM = ('normal_', 'uniform_', 'trunc_normal_', 'xavier_normal_', 'xavier_uniform_', 'kaiming_normal_')
RANDOM += ('kaiming_uniform_', 'orthogonal_', 'exponential_', 'bernoulli_', 'random_')


def spare_dynamo() -> None:
    """Lets optimizers and the FLOP counter run without importing the compiler.

    Their wrapper asks dynamo once for a function that it won't trace and keeps the answer; here the answer is
    the function itself. Safe because nothing in lmplay compiles an optimizer or a counted pass.
    """
    optimizer, counter = torch.optim.Optimizer, getattr(flop_counter, '_FlopCounterMode', None)
    for name in ('add_param_group', 'zero_grad', 'state_dict', 'load_state_dict'):
        _answer(getattr(optimizer, name))
    if counter is not None:
        _answer(counter.__torch_dispatch__)


def _answer(wrapper: Callable) -> None:
    function = inspect.unwrap(wrapper)
    if not hasattr(function, '__dynamo_disable'):
        setattr(function, '__dynamo_disable', function)  # noqa: B010 (a class would mangle the name)


def step_without_dynamo(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, its `step` stripped of the wrapper that imports the compiler, and of hooks."""
    step = inspect.unwrap(type(optimizer).step)
    optimizer.step = MethodType(torch.no_grad()(step), optimizer)
    return optimizer


class NoRandomInit(TorchFunctionMode):
    """Within it, filling a tensor on the meta device with random numbers does nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, '__name__', '') in RANDOM:
            tensor = args[0] if args else kwargs['tensor']  # torch.nn.init's functions pass it by name
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
