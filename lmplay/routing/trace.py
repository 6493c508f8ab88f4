"""A text that the model writes itself, and the experts that serve each of its tokens.

T tokens, K choices per token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..base.routed import RoutedLayer, RoutedLM
from ..device import autocast
from ..errors import UserError
from ..generate.generator import generate
from ..tokenizers import as_tokenizer
from .token_types import Pieces

NEW_TOKENS = 60
SAMPLING = {'temperature': 0.8, 'top_k': 50, 'seed': 0}
GOLDEN_ANGLE = 137.508  # degrees between the hues of neighbouring experts: no two of a few look alike


@dataclass(frozen=True)
class Traced:
    """A token in a layer: whether the model wrote it, and (expert, gate weight), strongest first."""

    position: int
    token: int
    text: str
    written: bool
    experts: list[tuple[int, float]]

    @property
    def hue(self) -> float:
        """Of its strongest expert, in degrees."""
        return self.experts[0][0] * GOLDEN_ANGLE % 360


@dataclass(frozen=True)
class Trace:
    """The tokens layer by layer: (name of the layer, its T tokens)."""

    prompt: str
    layers: list[tuple[str, list[Traced]]]


def trace(model: RoutedLM, prompt: str, *, device: torch.device, dtype: torch.dtype | None = None) -> Trace:
    """Lets the model continue the prompt by up to 60 tokens, and routes all of it once more.

    Raises UserError for a prompt that leaves no room for a token.
    """
    tokenizer = as_tokenizer(model.tokenizer)
    ids = tokenizer.encode(prompt) or [tokenizer.eot_token]
    room = model.max_len - len(ids)
    if room < 1:
        raise UserError(
            f'The prompt of --trace has {len(ids)} tokens; at most {model.max_len - 1} of the '
            f"model's {model.max_len} leave room for one of its own."
        )
    with autocast(device, dtype):
        (new,) = generate(
            model, [ids], max_new_tokens=min(NEW_TOKENS, room), stop_token=tokenizer.eot_token, **SAMPLING
        )
        with torch.no_grad():
            layers = model.eval().routing(torch.tensor([ids + new], device=device))
    pieces = Pieces(tokenizer)
    return Trace(
        prompt, [(layer.name, list(_traced(layer, ids + new, len(ids), pieces))) for layer in layers]
    )


def _traced(layer: RoutedLayer, tokens: list[int], given: int, pieces: Pieces) -> Iterator[Traced]:
    chosen = layer.expert_ids[0].tolist(), layer.weights[0].float().tolist()
    for position, (token, experts, weights) in enumerate(zip(tokens, *chosen)):
        served = sorted(zip(experts, weights), key=lambda each: -each[1])
        yield Traced(position, token, pieces(token), position >= given, served)
