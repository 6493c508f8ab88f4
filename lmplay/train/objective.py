"""The objective: cross-entropy summed over scored tokens, divided by the scored tokens of the whole step.

Micro-batches add up to the same gradient however a batch is cut, because the divisor is the step's, not
theirs. Auxiliary losses are means over a micro-batch's tokens; they are weighed by its share of the step's
tokens.

N tokens, D width, V vocabulary.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.base_model import LMBase, LMOutput
from ..base.fusion import fused_head
from ..data.rows import IGNORE
from ..device import is_out_of_memory
from ..errors import ExperimentError
from ..modules.attention import DocumentMask
from ..modules.matmul import matmul
from ..tokenizers import as_tokenizer

log = logging.getLogger(__name__)
RECOMPILES = 64  # of one function, after which it runs uncompiled


class LinearCrossEntropy(torch.autograd.Function):
    """scale * summed cross-entropy of features_ND @ weight_VD.T + bias_V; the same of the targets where
    `real` (N,) holds, without a gradient; and how many of those are predicted right.

    Works through a chunk of tokens at a time: the gradient of the logits is formed in the forward pass and
    used at once, so that N x V numbers are never in memory together (the idea of Wijmans et al. 2024, "Cut
    your losses", in plain torch).
    """

    @staticmethod
    def forward(ctx, features, weight, bias, targets, real, scale: float, chunk: int | None):
        needs = ctx.needs_input_grad
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        # fp16 holds neither 1 / tokens well nor the scale of the loss at all; it holds their product
        ctx.late_scale, row_scale = (scale, 1.0) if dtype is torch.float16 else (1.0, scale)
        chunk = chunk or (256 if device == 'cpu' and dtype is torch.float32 else 1024)
        with torch.autocast(device, enabled=False):
            features = features.to(dtype)
            w = weight.detach().to(dtype)
            wide = torch.promote_types(dtype, torch.float32)
            grad_features = torch.empty_like(features) if needs[0] else None
            grad_weight_DV = (
                torch.zeros(weight.shape[::-1], dtype=wide, device=weight.device) if needs[1] else None
            )
            grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
            loss = torch.zeros((), dtype=wide, device=features.device)
            real_loss, correct = torch.zeros_like(loss), torch.zeros_like(loss)
            for x, t, r, start in zip(
                features.split(chunk),
                targets.split(chunk),
                real.split(chunk),
                range(0, len(targets), chunk),
            ):
                logits = matmul(x, w)
                scored = t != IGNORE
                row_loss, right = (compiled_softmax() if device == 'cuda' else softmax_minus_target_)(
                    logits, bias, t
                )
                grad = logits  # d row_loss / d logits; the rows' scale is applied to the small factors below
                loss += torch.where(scored, row_loss, 0.0).sum()
                real_loss += torch.where(scored & r, row_loss, 0.0).sum()
                correct += torch.where(scored & r, right, 0.0).sum()
                if grad_features is not None:
                    grad_features[start : start + len(x)] = (
                        matmul(grad, w.t()) * (scored.to(dtype) * row_scale)[:, None]
                    )
                if grad_weight_DV is not None:
                    # this way around, the product is up to 1.4 times as fast on a CPU
                    grad_weight_DV.add_(
                        matmul(torch.where(scored[:, None], x, 0.0).t(), grad.t()), alpha=scale
                    )
                if grad_bias is not None:
                    grad_bias.add_((scored.to(dtype)[None] @ grad)[0], alpha=scale)
            grad_weight = grad_weight_DV.t().contiguous() if grad_weight_DV is not None else None
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, bias.dtype if bias is not None else None)
        ctx.mark_non_differentiable(real_loss, correct)
        return loss * scale, real_loss * scale, correct

    @staticmethod
    def backward(ctx, grad_loss, *_):
        grad_features, *weights = ctx.saved_tensors
        # elsewhere reading it would wait for the device
        one = grad_loss.device.type == 'cpu' and grad_loss.item() == 1.0
        grads: list[Tensor | None] = [
            g if g is None or one else g.mul_(grad_loss.to(g.dtype)) for g in weights
        ]
        if grad_features is not None and grad_features.dtype is torch.float16:
            grad_features = (grad_features.float() * (grad_loss * ctx.late_scale)).to(grad_features.dtype)
        elif grad_features is not None and not one:
            grad_features = grad_features.mul_(grad_loss.to(grad_features.dtype))
        grads.insert(0, grad_features)
        for i, dtype in enumerate(ctx.dtypes, start=1):
            grad = grads[i]
            grads[i] = None if grad is None else grad.to(dtype)
        return (*grads, None, None, None, None)


def softmax_minus_target_(
    logits_NV: Tensor, bias_V: Tensor | None, targets_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Turns logits, in place, into the gradient of each row's cross-entropy: softmax of logits + bias, less
    one at the target.

    Returns (cross-entropy (N,), whether the target was the most probable (N,), see `share_right`). A target
    of IGNORE counts as 0; the caller drops such rows. On a CPU it goes by few rows, which stay in its cache
    from one operation to the next.
    """
    rows = 8 if logits_NV.device.type == 'cpu' else len(logits_NV)
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    losses, rights = [], []
    for block, targets in zip(logits_NV.split(rows), targets_N.clamp(min=0)[:, None].split(rows)):
        logits = block.to(wide) if bias_V is None else block + bias_V.to(wide)
        largest, picked = logits.amax(-1, keepdim=True), logits.gather(1, targets)
        p = torch.softmax(logits, -1)
        # log of the largest probability never underflows, the target's may
        losses.append((largest - picked - p.amax(-1, keepdim=True).log())[:, 0])
        rights.append(_share_right(logits, picked, largest)[:, 0])
        p.scatter_add_(1, targets, torch.full_like(picked, -1.0))
        block.copy_(p)
    return torch.cat(losses), torch.cat(rights)


def share_right(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """(N,) 1 where the target is the most probable, 1/k where it is one of k that are, else 0.

    So a uniform model is right in 1/V of all cases. A target of IGNORE counts as 0.
    """
    picked = logits_NV.gather(1, targets_N.clamp(min=0)[:, None])
    return _share_right(logits_NV, picked, logits_NV.amax(-1, keepdim=True))[:, 0]


def _share_right(logits_NV: Tensor, picked_N1: Tensor, largest_N1: Tensor) -> Tensor:
    right = (picked_N1 == largest_N1).to(logits_NV.dtype)
    if logits_NV.device.type != 'cpu':
        return right / (logits_NV == largest_N1).sum(-1, keepdim=True).clamp(min=1)
    # counting ties in every row would take a tenth of the time of the head
    hits = right[:, 0].nonzero()[:, 0]
    right[hits] /= (logits_NV[hits] == largest_N1[hits]).sum(-1, keepdim=True)
    return right


class Compiled:
    """A function through torch.compile; as it stands, from a warning on, where that fails.

    It fails without a C compiler or Python's headers, and for a function that more than RECOMPILES kinds of
    input would have compiled again and again.
    """

    def __init__(self, function: Callable, what: str, **options: Any):
        from torch._dynamo import config  # a second's worth of modules, which only compiling needs

        config.recompile_limit = RECOMPILES
        config.fail_on_recompile_limit_hit = True
        self.function, self.what = function, what
        self.run = torch.compile(function, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 the compiler raises many kinds; training goes on without it
            if self.run is self.function or is_out_of_memory(error):
                raise
            reason = ' '.join(' '.join(str(error).splitlines()[:2]).split())
            log.warning(
                '%s runs uncompiled, slower, from here on (%s: %s).',
                self.what,
                type(error).__name__,
                reason,
            )
            self.run = self.function
            return self.function(*args, **kwargs)


@functools.cache
def compiled_softmax() -> Compiled:
    """softmax_minus_target_ as one kernel; on a GPU its separate operations cost as much as the products
    around them."""
    return Compiled(softmax_minus_target_, 'The loss')


class MicroLoss(NamedTuple):
    """What one micro-batch adds to a step.

    objective  what to call backward on; nothing else here has a gradient
    loss       cross-entropy of its real targets, summed and divided by the step's scored tokens
    correct    how many real targets were predicted right; see `share_right`
    reported   the model's own losses, unweighted, and metrics
    padding    cross-entropy of its padding, where that is scored, divided like `loss`

    All are on the device.
    """

    objective: Tensor
    loss: Tensor
    correct: Tensor
    reported: dict[str, Tensor]
    padding: Tensor | float = 0.0


class Objective(nn.Module):
    """From a micro-batch to its loss. Training and evaluation take the logits from the same place:
    head(features).

    Head and loss are fused where `fused_head` allows it; a model with its own forward, or a head whose call
    does more than a product, is trained through its forward.

    document_mask: no position sees another document of its sequence.
    """

    def __init__(self, model: LMBase, *, document_mask: bool = False):
        super().__init__()
        self.model = model
        self._apart = DocumentMask(model, as_tokenizer(model.tokenizer).eot_token) if document_mask else None
        self.fused = fused_head(model) is not None
        # in a dict, so that the model is not registered as a part three times
        eager: Callable = model.features if self.fused else model
        self._passes = {'eager': eager, 'training': eager}
        self._takes_mask = 'mask' in (model.features_takes if self.fused else model.forward_takes)

    def compile_pass(self, *, dynamic: bool | None, backend: str | Callable = 'inductor') -> None:
        """Trains through torch.compile from now on; evaluation stays eager.

        Begins with a clean slate: the limit on recompilations would else count those of earlier stages.
        """
        torch.compiler.reset()
        compiled = Compiled(self._passes['eager'], 'The model', dynamic=dynamic, backend=backend)
        self._passes['training'] = compiled

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor,
        *,
        scored: int,
        tokens_share: float,
        chunk: int | None = None,
    ) -> MicroLoss:
        """The part of a step's objective that a micro-batch gives.

        x, y, mask (B, T); mask: the real tokens, behind which targets are padding; scored: scored tokens of
        the WHOLE step; tokens_share: this micro-batch's share of its real tokens. Raises ExperimentError
        where the model returns no logits of the right shape.
        """
        output = self._run(self._passes['training'], x, mask)
        targets, real = y.reshape(-1), mask.reshape(-1)
        if self.fused:
            assert output.features is not None
            features = output.features.reshape(len(targets), -1)
            loss, real_loss, correct = LinearCrossEntropy.apply(
                features, *self._head_weights(), targets, real, 1.0 / max(1, scored), chunk
            )
        else:
            logits = self._logits(output, x).reshape(len(targets), -1)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction='none')
            loss = losses.sum() / max(1, scored)
            with torch.no_grad():
                real_loss = torch.where(real, losses, 0.0).sum() / max(1, scored)
                right = share_right(logits, targets)
                correct = torch.where(real & (targets != IGNORE), right, 0.0).sum()
        objective = loss
        for value, weight in output.losses.values():
            if weight:
                objective = objective + value * (weight * tokens_share)
        reported = {name: value.detach() for name, value in output.reported().items()}
        return MicroLoss(objective, real_loss, correct, reported, padding=loss.detach() - real_loss)

    def output(self, x: Tensor, mask: Tensor) -> LMOutput:
        """One eager pass: features where head and loss are fused, else logits."""
        return self._run(self._passes['eager'], x, mask)

    @torch.no_grad()
    def preview(self, x: Tensor, mask: Tensor) -> None:
        """Shows the model a micro-batch of the step that is about to be trained on; see `LMBase.preview`."""
        with self._apart.over(x) if self._apart else contextlib.nullcontext():
            self.model.preview(x, mask)

    @torch.no_grad()
    def token_losses(self, x: Tensor, y: Tensor, mask: Tensor, *, chunk: int = 1024):
        """(loss (B, T) in nats, right (B, T) as in `share_right`, prediction (B, T), output);
        0 where nothing is scored."""
        output = self.output(x, mask)
        targets = y.reshape(-1)
        inputs = output.features if self.fused else self._logits(output, x)
        assert inputs is not None
        losses, rights, predictions = [], [], []
        for part, t in zip(inputs.reshape(len(targets), -1).split(chunk), targets.split(chunk)):
            logits = self.model.fc(part)[:, : self.n_vocab] if self.fused else part
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(F.cross_entropy(logits, t, ignore_index=IGNORE, reduction='none'))
            rights.append(torch.where(t != IGNORE, share_right(logits, t), 0.0))
            predictions.append(logits.argmax(-1))
        found = (torch.cat(parts).view_as(y) for parts in (losses, rights, predictions))
        return *found, output

    @property
    def n_vocab(self) -> int:
        return self.model.tokenizer.n_vocab

    def _head_weights(self) -> tuple[Tensor, Tensor | None]:
        """Of the part of the head that the tokenizer has entries for."""
        head: nn.Linear = self.model.fc
        if len(head.weight) <= self.n_vocab:  # out_features may be stale: tying replaces the weight alone
            return head.weight, head.bias
        return head.weight[: self.n_vocab], None if head.bias is None else head.bias[: self.n_vocab]

    def _run(self, forward: Callable, x: Tensor, mask: Tensor) -> LMOutput:
        """One pass as an LMOutput; `mask` is handed to models that ask for it."""
        with self._apart.over(x) if self._apart else contextlib.nullcontext():
            out = forward(x, mask=mask) if self._takes_mask else forward(x)
        if isinstance(out, LMOutput):
            return out
        return LMOutput(features=out) if self.fused else LMOutput(logits=out)

    def _logits(self, output: LMOutput, x: Tensor) -> Tensor:
        logits = output.logits
        if isinstance(logits, Tensor) and logits.shape[:-1] == x.shape and logits.is_floating_point():
            return logits
        given = (
            f'{logits.dtype} {tuple(logits.shape)}' if isinstance(logits, Tensor) else type(logits).__name__
        )
        raise ExperimentError(
            f'forward of {type(self.model).__name__} must return logits (B, T, V), floating point, for x '
            f'{tuple(x.shape)}, or an LMOutput with them; given: {given}.'
        )
