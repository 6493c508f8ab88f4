"""fp32 matrix products on AMD CPUs, through oneDNN instead of MKL.

MKL takes a slow path on processors that are not Intel's: about half of oneDNN's speed on the same product,
and one thread for a single row, as in generation, where oneDNN uses all. Which library computes a product
depends on processor and shape alone, never on a measurement, so that a resumed run computes the same numbers.

N rows, I inputs, O outputs.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below these sizes the overhead of calling oneDNN shows.
MIN_WEIGHT, MIN_ROWS, MIN_FLOPS = 1 << 18, 16, 1 << 22


@functools.cache
def available() -> bool:
    """Whether MKL is slow on this processor and this torch has both libraries."""
    if not (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, '_linear_pointwise')
    ):
        return False
    cpuinfo = Path('/proc/cpuinfo')
    return cpuinfo.is_file() and 'AuthenticAMD' in cpuinfo.read_text()


def _large(x: Tensor, weight: Tensor) -> bool:
    many = x.numel() >= MIN_ROWS * x.shape[-1] and 2 * x.numel() * weight.shape[0] >= MIN_FLOPS
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == 'cpu'
        and x.numel() > 0
        and (many or weight.numel() >= MIN_WEIGHT)
    )


def matmul(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, (N, O), by the faster library. Not differentiable."""
    if _large(x_NI, weight_OI) and available():
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, 'none', [], '')
    return F.linear(x_NI, weight_OI, bias_O)


def _linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """F.linear for x (..., I)."""
    return matmul(x.reshape(-1, x.shape[-1]), weight_OI, bias_O).view(*x.shape[:-1], weight_OI.shape[0])


# differentiable, and a single opaque operation to torch.compile
linear = torch.library.custom_op('lmplay::linear', _linear, mutates_args=(), device_types='cpu')


@linear.register_fake
def _(x, weight_OI, bias_O):
    return x.new_empty(*x.shape[:-1], weight_OI.shape[0])


@torch.library.custom_op('lmplay::linear_backward', mutates_args=(), device_types='cpu')
def linear_backward(grad: Tensor, x: Tensor, weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    return matmul(grad_NO, weight_OI.t()).view(x.shape), matmul(grad_NO.t(), x_NI.t()), grad_NO.sum(0)


@linear_backward.register_fake
def _(grad, x, weight_OI):
    return x.new_empty(x.shape), weight_OI.new_empty(weight_OI.shape), weight_OI.new_empty(weight_OI.shape[0])


def _setup_context(ctx, inputs, output):
    x, weight_OI, bias_O = inputs
    ctx.save_for_backward(x, weight_OI)
    ctx.has_bias = bias_O is not None


def _backward(ctx, grad):
    grad_x, grad_weight, grad_bias = linear_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None


linear.register_autograd(_backward, setup_context=_setup_context)


class _Forward:
    """The forward of an nn.Linear, through oneDNN where that is faster."""

    def __init__(self, module: nn.Linear):
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        m = self.module
        if not torch.is_autocast_enabled('cpu') and _large(x, m.weight):
            return (linear if torch.is_grad_enabled() else _linear)(x, m.weight, m.bias)
        return F.linear(x, m.weight, m.bias)


def is_faster_linear(forward: object) -> bool:
    """Whether `speed_up_linears` put a module's forward there."""
    return isinstance(forward, _Forward)


def speed_up_linears(model: nn.Module) -> None:
    """Sends every plain nn.Linear of a model through oneDNN where that is faster; changes nothing else."""
    if not available():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            object.__setattr__(module, 'forward', _Forward(module))
