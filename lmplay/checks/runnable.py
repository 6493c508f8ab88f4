"""Does a model's forward pass return what the contract says? Asked before a run begins,
not when text is generated at its end."""

import torch
from torch import Tensor

from ..base.base_model import LMBase, LMOutput
from ..errors import ExperimentError
from ..tokenizers import as_tokenizer


@torch.no_grad()
def check_runnable(model: LMBase) -> None:
    """Raises ExperimentError where the forward pass, with and without a cache,
    does not return what the contract says."""
    name, vocabulary = type(model).__name__, as_tokenizer(model.tokenizer).n_vocab
    first = next(model.parameters(), None)
    if first is None:
        raise ExperimentError(f'{name} has no parameters: there is nothing to train.')
    length = min(8, model.max_len)
    x = (torch.arange(2 * length, device=first.device) % vocabulary).view(2, length)
    training = model.training
    model.eval()
    try:
        out = model(x)
        cached = model(x, cache=[]) if model.takes_cache else None
        features = model.features(x) if defines_both(model) else None
    finally:
        model.train(training)
    logits = out.logits if isinstance(out, LMOutput) else out
    _check_shape(
        logits,
        (2, length, vocabulary),
        f'{name}.forward(x) must return logits of shape (sequences, positions, vocabulary)',
    )
    if features is not None:
        assert isinstance(logits, Tensor)
        _check_same(model, logits, features)
    if cached is None or isinstance(cached, (Tensor, LMOutput)):
        return  # a model without a cache, which generates all the same
    if not isinstance(cached, tuple) or len(cached) != 2:
        given = type(cached).__name__
        raise ExperimentError(
            f'{name}.forward(x, cache=[]) must return (logits, cache), or logits alone; given: {given}.'
        )
    last = f'{name}.forward(x, cache=[]) must return logits of the last position, (sequences, 1, vocabulary)'
    _check_shape(cached[0], (2, 1, vocabulary), last)


def defines_both(model: LMBase) -> bool:
    """Whether the model defines a forward of its own beside features and a head."""
    own_forward = type(model).forward is not LMBase.forward
    return own_forward and type(model).features is not LMBase.features and hasattr(model, 'fc')


def _check_same(model: LMBase, logits: Tensor, features: Tensor | LMOutput) -> None:
    """A forward that is not fc(features(x)) is a mistake in one of the two."""
    name = type(model).__name__
    given = features.features if isinstance(features, LMOutput) else features
    other = model.fc(given)[..., : logits.shape[-1]].float()
    difference = float('nan') if logits.is_meta else (logits.float() - other).abs().max().item()
    # capped logits differ by little at first
    if difference > 0 and difference > 1e-5 * other.abs().max().item():
        raise ExperimentError(
            f'{name}.forward(x) and {name}.fc({name}.features(x)) are not the same (logits differ by up to '
            f'{difference:.3g}). Drop `forward` if the second is meant, or rename `features` if the first is.'
        )


def _check_shape(logits: object, expected: tuple[int, ...], what: str) -> None:
    if isinstance(logits, Tensor) and tuple(logits.shape) == expected:
        return
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise ExperimentError(f'{what} = {expected}; given: {given}.')
