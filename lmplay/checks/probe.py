"""A model held up to its contract: a copy in float64 that is fed small batches, so that differences are the
model's own.

B sequences, T positions, V vocabulary.
"""

import contextlib
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.base_model import LMBase, LMOutput
from ..base.fusion import fused_head
from ..tokenizers import as_tokenizer

SEED = 0
POSITIONS = 32  # of the batches that are compared


@dataclass(frozen=True)
class Tolerance:
    """What a difference is allowed to be: a share of what a change of context does to logits,
    plus a share of their size."""

    of_context: float
    of_size: float


@dataclass(frozen=True)
class Precision:
    """The type that a model is checked in, with the tolerances that its rounding asks for.

    equal   of passes that must compute the very same
    cached  of passes with and without a cache, which may sum in another order
    """

    dtype: torch.dtype
    equal: Tolerance
    cached: Tolerance


DOUBLE = Precision(torch.float64, Tolerance(1e-5, 1e-10), Tolerance(1e-4, 1e-9))
SINGLE = Precision(torch.float32, Tolerance(1e-3, 1e-5), Tolerance(1e-2, 1e-5))


class Probe:
    """A copy of the model, and passes through it.

    The model itself, its mode and the random state stay as they are.
    """

    def __init__(self, model: LMBase):
        tokenizer = model.tokenizer
        self.vocabulary = as_tokenizer(tokenizer).n_vocab
        self.model = _copied(model, {id(tokenizer): tokenizer})
        self.device = next(model.parameters()).device
        self.precision = self._precision()
        self.model.to(self.precision.dtype)
        self.head = fused_head(self.model)
        self._context: dict[bool, float] = {}
        self._results: dict[tuple, Tensor] = {}

    def _precision(self) -> Precision:
        """float64 where device and model support it, else float32."""
        if self.device.type == 'mps':
            return SINGLE
        try:
            with preserved_random_state(self.device), torch.no_grad():
                self.model.to(torch.float64).eval()
                self._pass(self.text(1, min(4, self.model.max_len)))
                return DOUBLE
        except (RuntimeError, TypeError):  # a part that knows float32 only
            return SINGLE

    def text(self, sequences: int, positions: int, *, seed: int = SEED) -> Tensor:
        """Random token ids (B, T)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (sequences, positions)
        return torch.randint(0, self.vocabulary, shape, generator=generator).to(self.device)

    def other(self, x: Tensor) -> Tensor:
        """Tokens that differ from x everywhere."""
        return (x + 1 + self.text(*x.shape, seed=SEED + 1) % max(1, self.vocabulary - 1)) % self.vocabulary

    def _pass(self, x: Tensor):
        mask = {'mask': torch.ones_like(x, dtype=torch.bool)} if 'mask' in self.model.forward_takes else {}
        return self.model(x, **mask)

    def _prepare(self, training: bool) -> None:
        """Mode, and the same random numbers for every pass, wherever the model draws them from."""
        self.model.train(training)
        torch.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)
        for module in self.model.modules():
            for value in vars(module).values():
                if isinstance(value, torch.Generator):
                    value.manual_seed(SEED)

    def output(self, x: Tensor, *, training: bool = False) -> LMOutput:
        """One pass over x (B, T), each with the same random numbers."""
        self._prepare(training)
        out = self._pass(x)
        return out if isinstance(out, LMOutput) else LMOutput(logits=out)

    @torch.no_grad()
    def result(self, x: Tensor, *, training: bool = False) -> Tensor:
        """What the model computes of x: (B, T, D) features where its head only multiplies them, else (B, T,
        V) logits. What training keeps in buffers (running averages) is put back."""
        kept = {name: b.clone() for name, b in self.model.named_buffers()} if training else {}
        out = (
            self._features(x, training) if self.head is not None else self.output(x, training=training).logits
        )
        for name, buffer in self.model.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])
        assert out is not None
        return out

    def _features(self, x: Tensor, training: bool) -> Tensor | None:
        self._prepare(training)
        mask = {'mask': torch.ones_like(x, dtype=torch.bool)} if 'mask' in self.model.features_takes else {}
        out = self.model.features(x, **mask)
        return out.features if isinstance(out, LMOutput) else out

    def baseline(self, sequences: int, positions: int, *, training: bool = False) -> Tensor:
        """`result` of `text(sequences, positions)`, computed once: others are compared with it."""
        key = (sequences, positions, training)
        if key not in self._results:
            self._results[key] = self.result(self.text(sequences, positions), training=training)
        return self._results[key]

    @torch.no_grad()
    def logits_of(self, result: Tensor) -> Tensor:
        """Logits (..., V) of a `result`."""
        return result if self.head is None else self.head(result)[..., : self.vocabulary]

    def context(self, *, in_logits: bool = False) -> float:
        """How much changing one earlier token changes a number of the result, or a logit, on average,
        in evaluation."""
        if in_logits not in self._context:
            x = self.text(1, min(POSITIONS, self.model.max_len))
            at = x.shape[1] // 2
            changed = x.clone()
            changed[:, at] = self.other(x)[:, at]
            before, after = (self.result(text)[:, at + 1 :] for text in (x, changed))
            if in_logits:
                before, after = self.logits_of(before), self.logits_of(after)
            self._context[in_logits] = (after - before).abs().mean().item() if after.numel() else 0.0
        return self._context[in_logits]

    def limit(self, tolerance: Tolerance, result: Tensor, *, in_logits: bool = False) -> float:
        """The largest difference between results like this one that is still rounding."""
        context = self.context(in_logits=in_logits)
        return tolerance.of_context * context + tolerance.of_size * result.abs().mean().item()

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def _copied(model: LMBase, memo: dict) -> LMBase:
    """A deep copy. What cannot be copied (a lock, an open file, a tensor of a graph) is shared."""
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:  # noqa: BLE001  a class may raise anything when it is copied
        for module in model.modules():
            for name, value in vars(module).items():
                if name not in ('_parameters', '_buffers', '_modules') and not _can_be_copied(value, memo):
                    memo[id(value)] = value
        return copy.deepcopy(model, memo)


def _can_be_copied(value: Any, memo: dict) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # noqa: BLE001
        return False
    return True


@contextlib.contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """What is drawn inside, from torch, NumPy or Python, changes nothing outside."""
    own, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)
