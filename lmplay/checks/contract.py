"""A quick check that an experiment keeps the contract of lmplay.base.base_model, at its smallest size on the CPU."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..base.base_model import LMBase, LMOutput, StepContext
from ..base.runner_list import find_runner
from ..data.rows import IGNORE
from ..errors import UserError
from ..tokenizers import as_tokenizer
from ..train.describe import check_runnable
from ..train.objective import fuses_head, micro_loss
from ..train.optimizer import make_optimizer
from ..train.plan import Stage

SMALLEST = {
    'num_blocks': 4,
    'embed_dim': 16,
    'num_heads': 2,
    'max_len': 32,
    'num_experts': 4,
    'top_k': 2,
    'd_ffn': 16,
    'tokenizer': 'bytes',
}
STEPS = 30  # after which every trainable parameter must have had a gradient


def smallest(name: str) -> LMBase:
    """The experiment's model with those of its parameters made small that are known by name."""
    function = find_runner(name).function
    declared = function().parameters
    torch.manual_seed(0)
    return function(**{k: v for k, v in SMALLEST.items() if declared.get(k) is not None}).build()


def _text(rows: int, model: LMBase) -> Tensor:
    vocabulary = as_tokenizer(model.tokenizer).n_vocab
    return torch.randint(
        0, min(256, vocabulary), (rows, min(24, model.max_len)), generator=torch.Generator().manual_seed(0)
    )


def _logits(model: LMBase, x: Tensor) -> Tensor:
    out = model(x)
    return out.logits if isinstance(out, LMOutput) else out


def _builds(name: str) -> None:
    find_runner(name).function().build('meta')


def _shape(name: str) -> None:
    check_runnable(smallest(name))


@torch.no_grad()
def _no_future(name: str) -> None:
    model = smallest(name).eval()
    x = _text(2, model)
    half = x.shape[1] // 2
    changed = x.clone()
    changed[:, half:] = (changed[:, half:] + 1) % 256
    before, after = _logits(model, x), _logits(model, changed)
    off = (after[:, :half] - before[:, :half]).abs().max().item()
    if off > 1e-4:
        raise UserError(
            f'changing the tokens from position {half} on changes earlier logits by up to {off:.2g}: the model sees '
            f'the future'
        )


@torch.no_grad()
def _cache(name: str) -> None:
    model = smallest(name).eval()
    x = _text(2, model)
    full, cache, at = _logits(model, x), [], 0
    for n in (7, 1, 1, 5):
        logits, cache = model(x[:, at : at + n], cache=cache)
        at += n
        if tuple(logits.shape) != (2, 1, full.shape[-1]):
            raise UserError(
                f'with a cache, forward must return logits of shape (rows, 1, vocabulary); given: '
                f'{tuple(logits.shape)}'
            )
        off = (logits[:, 0] - full[:, at - 1]).abs().max().item()
        if off > 1e-3:
            raise UserError(
                f'logits with the cache differ from those without by up to {off:.2g} at position {at - 1}'
            )


def _gradients(name: str) -> None:
    model = smallest(name)
    optimizer = make_optimizer(model, Stage(dataset='embedded', lr=1e-3))
    x = _text(4, model)
    y = torch.cat([x[:, 1:], torch.full((4, 1), IGNORE)], 1)
    without = {n for n, p in model.named_parameters() if p.requires_grad}
    for step in range(STEPS):
        model.before_step(StepContext('check', step, STEPS, 0))
        optimizer.zero_grad()
        micro = micro_loss(
            model,
            model.features if fuses_head(model) else model,
            x,
            y,
            torch.ones_like(x, dtype=torch.bool),
            scored=int((y != IGNORE).sum()),
            tokens_share=1.0,
        )
        micro.objective.backward()
        without -= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        model.after_step(StepContext('check', step, STEPS, 0))
        if not without:
            return
    raise UserError(f'{len(without)} trainable parameters get no gradient: {", ".join(sorted(without)[:5])}')


CHECKS: dict[str, Callable[[str], None]] = {
    'it builds at its full size': _builds,
    'logits have the shape (rows, positions, vocabulary)': _shape,
    'no position sees the future': _no_future,
    'generation with the cache equals the full forward pass': _cache,
    'every trainable parameter gets a gradient': _gradients,
}


def check(name: str) -> Iterator[tuple[str, str | None]]:
    """(what is checked, what is wrong or None) one after the other. `name` as for find_runner."""
    for what, test in CHECKS.items():
        try:
            test(name)
        except Exception as error:  # noqa: BLE001  an experiment may raise anything; it becomes the finding
            yield what, f'{type(error).__name__}: {error}' if not isinstance(error, UserError) else str(error)
        else:
            yield what, None
