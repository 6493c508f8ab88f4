"""A model held up to its contract: a copy in float64 that is fed small batches, so that differences are the
model's own.

B sequences, T positions, V vocabulary.
"""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..base.base_model import LMBase, LMOutput
from ..base.fusion import fused_head
from ..device import seed_all
from ..tokenizers import as_tokenizer

CHECK = 'check'  # the stage that steps taken here belong to
SEED = 0
OTHER_SEED = 0x5EED  # of a model that is built again; no run is likely to have it
POSITIONS = 32  # of the batches that are compared
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
REPEATS = 20  # of a pass, to learn how much its own chance does


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

    def __init__(self, model: LMBase, rebuild: Callable[[], LMBase] | None = None):
        tokenizer = model.tokenizer
        self.rebuild = rebuild
        self.vocabulary, self.end = as_tokenizer(tokenizer).n_vocab, as_tokenizer(tokenizer).eot_token
        self.model = _copied(model, {id(tokenizer): tokenizer})
        self.device = next(model.parameters()).device
        self.precision = self._precision()
        _convert(self.model, self.precision.dtype)
        self.head = fused_head(self.model)
        self._context: dict[bool, float] = {}
        self._results: dict[tuple, Tensor] = {}
        self._chance: dict[bool, float] = {}

    def _precision(self) -> Precision:
        """float64 where device and model support it, else float32."""
        if self.device.type == 'mps':
            return SINGLE
        try:
            with preserved_random_state(self.device), torch.no_grad():
                _convert(self.model, torch.float64).eval()
                self._pass(self.text(1, min(4, self.model.max_len)))
                return DOUBLE
        except (RuntimeError, TypeError):  # a part that knows float32 only
            return SINGLE

    def text(self, sequences: int, positions: int, *, seed: int = SEED) -> Tensor:
        """Random token ids (B, T), of which about every third repeats the one before it, as words do, and one
        in 16 ends a text."""
        generator = torch.Generator().manual_seed(seed)
        shape = (sequences, positions)
        x = torch.randint(0, self.vocabulary, shape, generator=generator)
        ends, repeats = (
            torch.rand((2, *shape), generator=generator) < torch.tensor([1 / 16, 1 / 3])[:, None, None]
        )
        x = torch.where(ends, self.end, x)
        repeats[:, :1] = False
        return torch.where(repeats, x.roll(1, 1), x).to(self.device)

    def other(self, x: Tensor) -> Tensor:
        """Tokens that differ from x everywhere."""
        return (x + 1 + self.text(*x.shape, seed=SEED + 1) % max(1, self.vocabulary - 1)) % self.vocabulary

    def sizes(self) -> list[tuple[int, int]]:
        """Of the texts to try, (sequences, positions): several short ones, one as long as can be."""
        longest = self.model.max_len
        return [(3, min(POSITIONS, longest)), *([(1, longest)] if longest > POSITIONS else [])]

    def odd_size(self) -> tuple[int, int]:
        """Of a larger batch, whose length divides into no usual block."""
        return 5, min(27, self.model.max_len)

    @property
    def takes_mask(self) -> bool:
        """Whether the model is told what of a text is padding."""
        takes = self.model.forward_takes if self.head is None else self.model.features_takes
        return 'mask' in takes

    def _pass(self, x: Tensor):
        mask = {'mask': torch.ones_like(x, dtype=torch.bool)} if 'mask' in self.model.forward_takes else {}
        return self.model(x, **mask)

    def prepare(self, *, training: bool, seed: int = SEED) -> None:
        """Mode, and the random numbers of a seed for the next pass, wherever the model draws them from."""
        self.model.train(training)
        seed_all(seed)
        random.seed(seed)
        np.random.seed(seed)
        held = (value for module in self.model.modules() for value in vars(module).values())
        for value in held:
            if isinstance(value, GENERATORS):
                _seed(value, seed)

    def output(self, x: Tensor, *, training: bool = False, seed: int = SEED) -> LMOutput:
        """One pass over x (B, T) with the random numbers of a seed."""
        self.prepare(training=training, seed=seed)
        out = self._pass(x)
        return out if isinstance(out, LMOutput) else LMOutput(logits=out)

    def result(
        self, x: Tensor, *, training: bool = False, seed: int = SEED, mask: Tensor | None = None
    ) -> Tensor:
        """What the model computes of x: (B, T, D) features where its head only multiplies them, else (B, T,
        V) logits. What training keeps in buffers (running averages) is put back.

        Short texts are passed in training as they are trained on, with a graph. mask (B, T): the real tokens.
        """
        mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        given = {'mask': mask} if self.takes_mask else {}
        kept = {name: b.clone() for name, b in self.model.named_buffers()} if training else {}
        self.prepare(training=training, seed=seed)
        with torch.set_grad_enabled(training and x.shape[1] <= POSITIONS):
            if self.head is None:
                out = self.model(x, **given)
                out = out.logits if isinstance(out, LMOutput) else out
            else:
                out = self.model.features(x, **given)
                out = out.features if isinstance(out, LMOutput) else out
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                if name in kept:
                    buffer.copy_(kept[name])
        assert out is not None
        return out.detach()

    @contextlib.contextmanager
    def stirred(self) -> Iterator[None]:
        """Inside it, parameters that are all zeros or another constant differ a little from it, as they will
        after the first steps: an output projection of zeros hides everything that comes before it."""
        constant = [p for p in self.trainable().values() if p.numel() and bool((p == p.flatten()[0]).all())]
        values = [p.detach().flatten()[0].clone() for p in constant]
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for p in constant:
                p.add_(0.02 * torch.randn(p.shape, generator=generator).to(p))
        self.forget()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(constant, values):
                    p.fill_(value)
            self.forget()

    def forget(self) -> None:
        """What was measured of the model before it was changed."""
        self._context.clear()
        self._results.clear()
        self._chance.clear()

    def is_finite(self) -> bool:
        """Whether the model, as steps have left it, computes numbers; at its own rate it may well do so."""
        self.forget()
        return bool(self.baseline(*self.sizes()[0]).isfinite().all())

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Inside it, modules leave nothing out, as far as their attributes say how much they do."""
        kept = [
            (module, name, value)
            for module in self.model.modules()
            for name, value in vars(module).items()
            if isinstance(value, float)
            and ('drop' in name or (name == 'p' and isinstance(module, _DropoutNd)))
        ]
        for module, name, _ in kept:
            setattr(module, name, 0.0)
        try:
            yield
        finally:
            for module, name, value in kept:
                setattr(module, name, value)

    def rebuilt(self) -> LMBase:
        """The model built again with other random numbers; memory that nothing was written to is NaN."""
        assert self.rebuild is not None
        seed_all(OTHER_SEED)
        random.seed(OTHER_SEED)
        np.random.seed(OTHER_SEED)
        mode = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode('warn')  # in which torch fills what it gives without values
        try:
            return _convert(self.rebuild(), self.precision.dtype)
        finally:
            torch.set_deterministic_debug_mode(mode)

    @contextlib.contextmanager
    def replaced(self, model: LMBase) -> Iterator[None]:
        """Inside it, passes are through another model."""
        own = self.model, self.head
        self.model, self.head = model, fused_head(model)
        try:
            yield
        finally:
            self.model, self.head = own

    def chance(self, *, training: bool) -> float:
        """How much the same pass differs from itself, where its random numbers are not under control here."""
        if training not in self._chance:
            size = self.sizes()[0]
            x, before = self.text(*size), self.baseline(*size, training=training)
            results = (self.result(x, training=training) for _ in range(REPEATS))
            self._chance[training] = max((result - before).abs().max().item() for result in results)
        return self._chance[training]

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


def _seed(generator: Any, seed: int) -> None:
    """Seeds one of GENERATORS."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed)


def _convert(model: LMBase, dtype: torch.dtype) -> LMBase:
    """The model in another precision; unlike `model.to`, it leaves complex tensors complex."""
    kinds = {torch.float64: torch.complex128}

    def converted(t: Tensor) -> Tensor:
        if t.is_complex():
            return t.to(kinds.get(dtype, torch.complex64))
        return t.to(dtype) if t.is_floating_point() else t

    return model._apply(converted)


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
