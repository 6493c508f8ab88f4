"""How the next token is chosen from logits.

B rows, V vocabulary, N candidates (N <= V), in order of falling probability where top-k or top-p is asked
for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError

LEAST = 1e-30  # temperature
HEAD = (256, 4096)  # how many tokens are tried for top-p before all are sorted


@dataclass(frozen=True)
class Sampling:
    """How to sample. In this order: repetition penalty, temperature, top-k, top-p.

    temperature         divides the logits; 0 takes the most probable token
    top_k               only the k most probable tokens
    top_p               only the smallest set of most probable tokens whose probabilities, after top_k, sum to
                        at least p (nucleus sampling, Holtzman et al. 2020, section 3.1)
    repetition_penalty  of tokens already in the text: positive logits are divided by it, negative ones
                        multiplied (Keskar et al. 2019, section 4.1, which divides all; for a negative logit
                        that would be a reward)

    Raises UserError for a value out of range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise UserError(
                f'temperature must be 0 (the most probable token always) or above; given: {self.temperature}.'
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f'top_k must be at least 1; given: {self.top_k}.')
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f'top_p must be above 0 and at most 1; given: {self.top_p}.')
        if not self.repetition_penalty > 0:
            raise UserError(
                f'repetition_penalty must be above 0 (1 changes nothing); given: {self.repetition_penalty}.'
            )

    def penalise(self, logits: Tensor, seen: Tensor) -> Tensor:
        """logits (B, V) with the repetition penalty at `seen` (B, V) bool."""
        penalty = self.repetition_penalty
        return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """logits (B, V) to (weights (B, N) float64, 0 for what is ruled out; ids (B, N),
        None where N = V in order of id)."""
        # The greatest logit is taken off first, and the temperature kept where fp32 has it: a low one must
        # not overflow.
        probs = ((logits - logits.amax(-1, keepdim=True)) / max(self.temperature, LEAST)).softmax(-1)
        vocab = probs.shape[-1]
        if self.top_k is None and self.top_p is None:
            return probs.double(), None
        if self.top_k is not None:
            weights, ids = probs.topk(min(self.top_k, vocab))
            total = weights.sum(-1, keepdim=True, dtype=torch.float64)
        else:  # sorting a whole vocabulary is slow, and mostly its head reaches p
            assert self.top_p is not None
            total = probs.sum(-1, keepdim=True, dtype=torch.float64)
            for width in (*(n for n in HEAD if n < vocab), vocab):
                weights, ids = probs.topk(width)
                if width == vocab or bool(
                    (weights.sum(-1, keepdim=True, dtype=torch.float64) > self.top_p * total).all()
                ):
                    break
        weights = weights.double()
        if self.top_p is not None:
            weights = weights * (weights.cumsum(-1) - weights < self.top_p * total)
        return weights, ids

    def pick(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """The next token of each row, (B,) int64, from logits (B, V) and random numbers (B,) float64 in [0,
        1).

        Raises UserError for logits that are not finite.
        """
        if not bool(logits.amax(-1).isfinite().all()):
            raise UserError(
                "The model's logits are not finite: its weights are damaged, or it diverged in training."
            )
        if self.temperature == 0:
            return logits.argmax(-1)
        weights, ids = self.candidates(logits)
        cumulative = weights.cumsum(-1)
        place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
        place.clamp_(max=weights.shape[-1] - 1)
        return (place if ids is None else ids.gather(-1, place)).squeeze(-1)
