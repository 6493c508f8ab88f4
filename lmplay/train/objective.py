"""The objective: cross-entropy summed over scored tokens, divided by the scored tokens of the whole step.

Micro-batches add up to the same gradient however a batch is cut, because the divisor is the step's, not theirs. Auxiliary
losses are means over a micro-batch's tokens; they are weighed by its share of the step's tokens.

N tokens, D width, V vocabulary.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.base_model import LMBase, LMOutput
from ..data.rows import IGNORE


class LinearCrossEntropy(torch.autograd.Function):
    """scale * summed cross-entropy of features_ND @ weight_VD.T + bias_V, and the number of right predictions.

    Works through `chunk` tokens at a time: the gradient of the logits is formed in the forward pass and used at once, so
    that N x V numbers are never in memory together (the idea of Wijmans et al. 2024, "Cut your losses", in plain torch).
    """

    @staticmethod
    def forward(ctx, features, weight, bias, targets, scale: float, chunk: int):
        needs = ctx.needs_input_grad
        dtype = torch.get_autocast_dtype(features.device.type) if torch.is_autocast_enabled(features.device.type) else features.dtype
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(dtype)
            w = weight.detach().to(dtype)
            b = bias.detach().to(dtype) if bias is not None else None
            wide = torch.promote_types(dtype, torch.float32)
            grad_features = torch.empty_like(features) if needs[0] else None
            grad_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
            grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
            loss = torch.zeros((), dtype=wide, device=features.device)
            correct = torch.zeros((), dtype=torch.int64, device=features.device)
            for x, t, start in zip(features.split(chunk), targets.split(chunk), range(0, len(targets), chunk)):
                logits = F.linear(x, w, b)
                scored = (t != IGNORE)[:, None]
                t = t.clamp(min=0)[:, None]
                log_p = torch.log_softmax(logits, -1, dtype=wide)
                picked = log_p.gather(1, t)
                loss -= (picked * scored).sum()
                correct += ((picked == log_p.amax(-1, keepdim=True)) & scored).sum()
                if not any(needs[:3]):
                    continue
                grad = log_p.exp_().mul_(scored.to(wide) * scale)   # d loss / d logits: softmax - one-hot, scaled
                grad.scatter_add_(1, t, scored.to(wide) * -scale)
                grad = grad.to(dtype)
                if grad_features is not None:
                    torch.mm(grad, w, out=grad_features[start:start + len(x)])
                if grad_weight is not None:
                    if dtype == wide:
                        grad_weight.addmm_(grad.t(), x)
                    else:
                        grad_weight += grad.t() @ x
                if grad_bias is not None:
                    grad_bias += grad.sum(0, dtype=wide)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, bias.dtype if bias is not None else None)
        ctx.mark_non_differentiable(correct)
        return loss * scale, correct

    @staticmethod
    def backward(ctx, grad_loss, _):
        grads = [None if g is None else g.mul_(grad_loss.to(g.dtype)) if not _is_one(grad_loss) else g for g in ctx.saved_tensors]
        for i, dtype in enumerate(ctx.dtypes, start=1):
            grads[i] = None if grads[i] is None else grads[i].to(dtype)
        return (*grads, None, None, None)


def _is_one(scalar: Tensor) -> bool:
    return scalar.device.type == 'cpu' and scalar.item() == 1.0      # elsewhere reading it would wait for the device


@dataclass
class MicroLoss:
    """objective: what to call backward on. loss, correct: scaled cross-entropy and right predictions, on the device."""
    objective: Tensor
    loss: Tensor
    correct: Tensor
    output: LMOutput


def micro_loss(model: LMBase, forward, x: Tensor, y: Tensor, mask: Tensor, *, scored: int, tokens_share: float,
               chunk: int = 1024) -> MicroLoss:
    """The part of a step's objective that a micro-batch gives.

    forward: `model.features` or `model`, or its compiled form; x, y, mask (B, T); scored: scored tokens of the WHOLE step;
    tokens_share: this micro-batch's share of the step's real tokens.
    """
    output = call(model, forward, x, mask)
    targets = y.reshape(-1)
    if output.features is not None:
        features = output.features.reshape(len(targets), -1)
        loss, correct = LinearCrossEntropy.apply(features, model.fc.weight, model.fc.bias, targets, 1.0 / max(1, scored), chunk)
    else:
        logits = output.logits.reshape(len(targets), -1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction='sum') / max(1, scored)
        with torch.no_grad():
            correct = ((logits.argmax(-1) == targets) & (targets != IGNORE)).sum()
    objective = loss
    for value, weight in output.losses.values():
        if weight:
            objective = objective + value * (weight * tokens_share)
    return MicroLoss(objective, loss.detach(), correct, output)


def token_losses(model: LMBase, forward, x: Tensor, y: Tensor, mask: Tensor, *, chunk: int = 1024):
    """(loss (B, T) in nats, right (B, T) bool, prediction (B, T), output) without gradients; 0 and False where nothing is scored."""
    output = call(model, forward, x, mask)
    targets = y.reshape(-1)
    head = model.fc if output.features is not None else nn.Identity()
    inputs = (output.features if output.features is not None else output.logits).reshape(len(targets), -1)
    losses, predictions = [], []
    for part, t in zip(inputs.split(chunk), targets.split(chunk)):
        logits = head(part)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(F.cross_entropy(logits, t, ignore_index=IGNORE, reduction='none'))
        predictions.append(logits.argmax(-1))
    prediction = torch.cat(predictions)
    right = (prediction == targets) & (targets != IGNORE)
    return torch.cat(losses).view_as(y), right.view_as(y), prediction.view_as(y), output


def fuses_head(model: LMBase) -> bool:
    """Whether the model gives features and a plain linear head, so that head and loss can be one."""
    return callable(getattr(model, 'features', None)) and isinstance(getattr(model, 'fc', None), nn.Linear)


def call(model: LMBase, forward, x: Tensor, mask: Tensor) -> LMOutput:
    """One forward pass as an LMOutput; `mask` is handed to models that ask for it."""
    out = forward(x, mask=mask) if wants_mask(model) else forward(x)
    if isinstance(out, LMOutput):
        return out
    return LMOutput(features=out) if fuses_head(model) else LMOutput(logits=out)


def wants_mask(model: LMBase) -> bool:
    import inspect
    target = model.features if fuses_head(model) else model.forward
    return 'mask' in inspect.signature(target).parameters
