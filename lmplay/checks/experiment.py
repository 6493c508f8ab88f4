"""The contract of an experiment by its name, narrow but with all its layers and positions: quick enough to
run after every edit."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base.base_model import BasicModelRunner, LMBase
from ..base.runner_list import find_runner
from ..device import seed_all
from ..errors import UserError
from .contract import Finding, check_contract, is_too_large, require_contract
from .documents import require_document_mask

SMALLEST = {
    'num_blocks': 4,
    'embed_dim': 16,
    'num_heads': 2,
    'max_len': 64,
    'num_experts': 4,
    'top_k': 2,
    'd_ffn': 16,
    'vocab_size': 264,
    'warmup_steps': 2,
    'tokenizer': 'bytes',
}


def smallest_parameters(name: str) -> dict:
    """Small values for those of an experiment's parameters that are known by name and are not smaller
    already."""
    declared = find_runner(name).function().parameters
    small = {k: v for k, v in SMALLEST.items() if declared.get(k) is not None}
    numbers = {k: min(v, declared[k]) for k, v in small.items() if isinstance(v, int)}
    return small | numbers | ({'vocab_size': small['vocab_size']} if 'vocab_size' in small else {})


def smallest(name: str, device: str = 'cpu') -> LMBase:
    """An experiment's model at its smallest size."""
    seed_all(0)
    return find_runner(name).function(**smallest_parameters(name)).build(device)


def narrow(name: str, given: Mapping[str, Any] | None = None) -> BasicModelRunner:
    """An experiment's runner, narrow, with as many layers and positions as it has: a mistake may be in the
    sixth layer, or begin at position 500.

    given: model parameters that differ from the experiment's own.
    """
    small = {k: v for k, v in smallest_parameters(name).items() if k not in ('num_blocks', 'max_len')}
    return find_runner(name).function(**{k: v for k, v in (given or {}).items() if k != 'version'} | small)


def require_experiment(
    model: LMBase,
    exp: str,
    runner: BasicModelRunner,
    *,
    device: str | torch.device = 'cpu',
    document_mask: bool = False,
) -> None:
    """Raises ExperimentError where the model that `runner` builds breaks the contract, or where the
    `document_mask` that it is to be trained with does not reach it.

    One that is too large to be copied is checked in its narrow form.
    """
    require_contract(model, lambda: runner.build(device))
    if is_too_large(model):
        small = narrow(exp, runner.given)
        require_contract(small.build(), small.build)
    if document_mask:
        require_document_mask(model)


def check_experiment(name: str) -> Iterator[Finding]:
    """Whether the experiment builds at its full size, then each check of the contract in its narrow form."""
    try:
        find_runner(name).function().build('meta')
        runner = narrow(name)
        seed_all(0)
        model = runner.build()
    except Exception as error:  # noqa: BLE001  an experiment may raise anything; it becomes the finding
        problem = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
        yield Finding('it builds at its full size', problem)
        return
    yield Finding('it builds at its full size')
    yield from check_contract(model, rebuild=runner.build)
