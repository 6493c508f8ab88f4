"""Does generation through a model's cache compute the same model?

B sequences, T positions, V vocabulary.
"""

import torch

from ..errors import ExperimentError
from .probe import Probe


def check_cache(probe: Probe) -> None:
    """Generation through the cache gives, at any length, what a pass over the whole text gives."""
    model = probe.model
    if not model.takes_cache or not model.causal:  # without causality the two cannot be the same
        return
    for size in probe.sizes():
        _through_cache(probe, size, _chunk_ends(size[1]))
        _through_cache(probe, size, sorted({-(-2 * size[1] // 3), size[1]}))  # as after a prompt


def _through_cache(probe: Probe, size: tuple[int, int], ends: list[int]) -> None:
    model, x = probe.model, probe.text(*size)
    whole = probe.logits_of(probe.baseline(*size)[:, [end - 1 for end in ends]])
    limit = probe.limit(probe.precision.cached, whole, in_logits=True)
    cache: list = []
    at = 0
    for place, end in enumerate(ends):
        with torch.no_grad():
            answer = model.eval()(x[:, at:end], cache=cache)
        if not isinstance(answer, tuple):
            return  # logits alone: the model generates without a cache
        logits, cache = answer
        difference = (logits[:, -1] - whole[:, place]).abs().max().item()
        if not difference <= limit:
            raise ExperimentError(
                f'with a cache, logits at position {end - 1} differ from those of a pass over the whole text '
                f'by up to {difference:.2g} (positions {at} to {end - 1}, after {at} cached ones): generated '
                "text would not be this model's."
            )
        at = end


def _chunk_ends(length: int) -> list[int]:
    """Where a text of that length is cut: single tokens at the start, around powers of two and at the end,
    the rest in between."""
    ends = {1, 7, 8, 9, length - 1, length}
    power = 16
    while power < length:
        ends |= {power - 1, power, power + 1}
        power *= 2
    return sorted(end for end in ends if 1 <= end <= length)
