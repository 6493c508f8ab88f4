"""Dispatch of tokens to experts: tokens are sorted by expert, then multiplied by the stacked expert weights.

N tokens (B * T), K choices per token, M = N * K assignments, E experts, D width of the model, F inner width
of an expert; m assignments of one expert. What is called h is as wide as w1: F, and 2 F in gated experts.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import matmul as mm

SWIGLU = 'swiglu'
# public since torch 2.10; None where this torch has neither
grouped_mm: Any = getattr(F, 'grouped_mm', None) or getattr(torch, '_grouped_mm', None)


class Dispatch(NamedTuple):
    """Assignments in the order of their experts.

    order_M    int64: the assignment (token * K + choice) at each sorted row
    inverse_M  int64: the sorted row of each assignment
    experts_M  int64: the expert of each sorted row
    offsets_E  int32: where each expert's rows end, which is where they begin if it has none
    """

    order_M: Tensor
    inverse_M: Tensor
    experts_M: Tensor
    offsets_E: Tensor


def sort_by_expert(expert_ids_NK: Tensor, num_experts: int) -> Dispatch:
    """Sorts the assignments `expert_ids_NK` (int64) by expert, stably and without waiting for the device."""
    experts_M, order_M = expert_ids_NK.flatten().sort(stable=True)
    inverse_M = torch.empty_like(order_M).scatter_(
        0, order_M, torch.arange(len(order_M), device=order_M.device)
    )
    every_E = torch.arange(num_experts, device=experts_M.device)
    offsets_E = torch.searchsorted(experts_M, every_E, right=True, out_int32=True)
    return Dispatch(order_M, inverse_M, experts_M, offsets_E)


def grouped_serves(x: Tensor, *widths: int) -> bool:
    """Whether torch's grouped product serves x's device and dtype with rows of `widths` elements, and pays.

    On a CPU it loops over the experts itself. Running them one by one is never slower there, and up to twice
    as fast where memory is fresh from the system, since what lies between the products of one expert stays in
    the cache. Of CUDA devices those of capability 9 and 10 have a kernel for it; others fall back to a loop
    that waits for the device at each call.
    """
    return (
        grouped_mm is not None
        and x.dtype == torch.bfloat16
        and all(width % 8 == 0 for width in widths)  # 16 bytes
        and (
            x.device.type == 'meta' or x.is_cuda and torch.cuda.get_device_capability(x.device)[0] in (9, 10)
        )
    )


def experts_mlp(
    x_ND: Tensor,
    *,
    expert_ids_NK: Tensor,
    weights_NK: Tensor,
    w1_EDF: Tensor,
    b1_EF: Tensor | None,
    w2_EFD: Tensor,
    b2_ED: Tensor | None,
    gelu: str = 'none',
) -> Tensor:
    """Sum over each token's choices of weight * expert(x), where expert(x) = act(x w1 + b1) w2 + b2: (N, D).

    expert_ids_NK  int64 in [0, E)
    weights_NK     gate weights, float
    gelu           act: 'none' for the exact GELU, 'tanh' for GPT-2's approximation; SWIGLU for silu(a) * b
                   (Shazeer 2020), where a and b are the halves of x w1 + b1: w1 is then (E, D, 2 F)

    No token is dropped. Frozen experts (parameters that require no gradient) cost no weight gradients. Under
    autocast the products run in its dtype. Where `grouped_serves`, one grouped product per projection serves
    all experts, and nothing synchronises with the host.
    """
    device, dtype = x_ND.device.type, x_ND.dtype
    if dtype != torch.float64 and device != 'meta' and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    x_ND = x_ND.to(dtype)
    parameters = (w1_EDF, b1_EF, w2_EFD, b2_ED)
    dispatch = sort_by_expert(expert_ids_NK, len(w1_EDF))
    if grouped_serves(x_ND, *w1_EDF.shape[1:], *w2_EFD.shape[1:]):
        return _GroupedExperts.apply(
            x_ND, weights_NK, *(p if p is None else p.to(dtype) for p in parameters), *dispatch, gelu
        )
    return _SegmentedExperts.apply(x_ND, weights_NK, *parameters, *dispatch, gelu)


# For the backward pass both forms keep the pre-activations h (M, F); the outputs of the experts (M, D), for
# the gradient of the gate weights, <dy, expert(x)>; and x where an expert trains. act(h) is computed again
# where w2 trains.


def _activate(h: Tensor, gelu: str) -> Tensor:
    if gelu != SWIGLU:
        return F.gelu(h, approximate=gelu)
    a, b = h.chunk(2, dim=-1)
    return F.silu(a) * b


def _activate_backward(grad: Tensor, h: Tensor, gelu: str) -> Tensor:
    if gelu != SWIGLU:
        return torch.ops.aten.gelu_backward(grad, h, approximate=gelu)
    a, b = h.chunk(2, dim=-1)
    return torch.cat((torch.ops.aten.silu_backward(grad * b, a), grad * F.silu(a)), dim=-1)


class _GroupedExperts(torch.autograd.Function):
    """One grouped product per projection."""

    @staticmethod
    def forward(
        ctx, x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, inverse_M, experts_M, offsets_E, gelu
    ):
        K = weights_NK.shape[1]
        h_MF = grouped_mm(x_ND.index_select(0, order_M // K), w1_EDF, offs=offsets_E)
        if b1_EF is not None:
            h_MF = h_MF + b1_EF.index_select(0, experts_M)
        y_MD = grouped_mm(_activate(h_MF, gelu), w2_EFD, offs=offsets_E)
        if b2_ED is not None:
            y_MD = y_MD + b2_ED.index_select(0, experts_M)
        ctx.gelu = gelu
        needs = ctx.needs_input_grad
        ctx.save_for_backward(
            x_ND if needs[2] else None,
            weights_NK,
            w1_EDF,
            w2_EFD,
            order_M,
            inverse_M,
            offsets_E,
            h_MF,
            y_MD if needs[1] else None,
        )
        return _combine(y_MD, inverse_M, weights_NK)

    @staticmethod
    def backward(ctx, dy_ND):
        x_ND, weights_NK, w1_EDF, w2_EFD, order_M, inverse_M, offsets_E, h_MF, y_MD = ctx.saved_tensors
        needs = ctx.needs_input_grad
        (N, D), K = dy_ND.shape, weights_NK.shape[1]
        dx = dweights = dw1 = db1 = dw2 = db2 = None
        token_M = order_M // K
        dy_MD = dy_ND.index_select(0, token_M)
        if needs[1]:
            dweights = (dy_MD * y_MD).sum(1, dtype=weights_NK.dtype).index_select(0, inverse_M).view(N, K)
        gated_MD = dy_MD * weights_NK.to(dy_ND.dtype).flatten().index_select(0, order_M)[:, None]
        if needs[4]:
            dw2 = _by_expert(_activate(h_MF, ctx.gelu).t(), gated_MD, offsets_E)
        if needs[5]:
            db2 = _sum_by_expert(gated_MD, offsets_E)
        da_MF = grouped_mm(gated_MD, w2_EFD.transpose(1, 2), offs=offsets_E)
        dh_MF = _activate_backward(da_MF, h_MF, ctx.gelu)
        if needs[2]:
            dw1 = _by_expert(x_ND.index_select(0, token_M).t(), dh_MF, offsets_E)
        if needs[3]:
            db1 = _sum_by_expert(dh_MF, offsets_E)
        if needs[0]:
            dx_MD = grouped_mm(dh_MF, w1_EDF.transpose(1, 2), offs=offsets_E)
            dx = dx_MD.index_select(0, inverse_M).view(N, K, D).sum(1)
        return dx, dweights, dw1, db1, dw2, db2, None, None, None, None, None


def _combine(y_MD: Tensor, inverse_M: Tensor, weights_NK: Tensor) -> Tensor:
    """(N, D): the weighted sum of the outputs of each token's experts."""
    y_NKD = y_MD.index_select(0, inverse_M).view(*weights_NK.shape, y_MD.shape[1])
    return (y_NKD * weights_NK.to(y_NKD.dtype)[:, :, None]).sum(1)


def _sum_by_expert(grad_MO: Tensor, offsets_E: Tensor) -> Tensor:
    """(E, O): sums of each expert's rows, by a product with ones: unlike a scatter, it is deterministic."""
    # the narrowest rows that a grouped product takes are 16 bytes wide
    ones_MI = grad_MO.new_ones(len(grad_MO), 16 // grad_MO.element_size())
    return _by_expert(ones_MI.t(), grad_MO, offsets_E)[:, 0]


def _by_expert(x_IM: Tensor, y_MO: Tensor, offsets_E: Tensor) -> Tensor:
    """(E, I, O): x y over each expert's rows; 0 for an expert without any, which some kernels leave as it
    was in memory."""
    empty_E = torch.diff(offsets_E, prepend=offsets_E.new_zeros(1)) == 0
    return grouped_mm(x_IM, y_MO, offs=offsets_E).masked_fill_(empty_E[:, None, None], 0.0)


class _SegmentedExperts(torch.autograd.Function):
    """One expert after another over its rows.

    Its loops read the offsets on the host, so they are operators of their own, opaque to compilation. Weights
    of another dtype are cast expert by expert, while they are in the cache, and the casts are kept for the
    backward pass, as autocast does.
    """

    @staticmethod
    def forward(
        ctx, x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, inverse_M, experts_M, offsets_E, gelu
    ):
        needs = ctx.needs_input_grad
        y_MD, h_MF, cast1_EDF, cast2_EFD = _segments_forward(
            x_ND, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M // weights_NK.shape[1], offsets_E, gelu, any(needs)
        )
        ctx.gelu = gelu
        ctx.save_for_backward(
            weights_NK,
            order_M,
            inverse_M,
            # the rest as `_segments_backward` takes it
            x_ND if needs[2] else None,
            y_MD if needs[1] else None,
            w1_EDF,
            b1_EF,
            w2_EFD,
            b2_ED,
            cast1_EDF if len(cast1_EDF) else w1_EDF,
            cast2_EFD if len(cast2_EFD) else w2_EFD,
            offsets_E,
            h_MF,
        )
        return _combine(y_MD, inverse_M, weights_NK)

    @staticmethod
    def backward(ctx, dy_ND):
        weights_NK, order_M, inverse_M, *rest = ctx.saved_tensors
        needs = ctx.needs_input_grad
        gate_M = weights_NK.to(dy_ND.dtype).flatten().index_select(0, order_M)
        token_M = order_M // weights_NK.shape[1]
        dx_MD, dgate_M, *dparameters = _segments_backward(dy_ND, gate_M, token_M, *rest, ctx.gelu, needs[:6])
        dx_ND = dweights_NK = None
        if needs[0]:
            dx_ND = dx_MD.index_select(0, inverse_M).view(*weights_NK.shape, dy_ND.shape[1]).sum(1)
        if needs[1]:
            dweights_NK = dgate_M.index_select(0, inverse_M).view_as(weights_NK).to(weights_NK.dtype)
        dparameters = [gradient if need else None for gradient, need in zip(dparameters, needs[2:])]
        return dx_ND, dweights_NK, *dparameters, None, None, None, None, None


@torch.library.custom_op('lmplay::experts_forward', mutates_args=())
def _segments_forward(
    x_ND: Tensor,
    w1_EDF: Tensor,
    b1_EF: Tensor | None,
    w2_EFD: Tensor,
    b2_ED: Tensor | None,
    token_M: Tensor,
    offsets_E: Tensor,
    gelu: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs (M, D) in the order of experts; pre-activations (M, F), w1 and w2 in x's dtype.

    Of the last three, those that are not kept, or had that dtype already, are empty.
    """
    outputs = _empty_outputs(x_ND, w1_EDF, b1_EF, w2_EFD, b2_ED, token_M, offsets_E, gelu, keep)
    y_MD, h_MF, *casts = outputs
    for e, rows in _segments(offsets_E):
        if rows.start < rows.stop:
            w1, w2 = (
                cast[e].copy_(w[e]) if len(cast) else w[e].to(x_ND.dtype)
                for w, cast in zip((w1_EDF, w2_EFD), casts)
            )
            b1, b2 = (None if b is None else b[e].to(x_ND.dtype) for b in (b1_EF, b2_ED))
            h_mF = _matmul(x_ND.index_select(0, token_M[rows]), w1, b1, out=h_MF[rows] if keep else None)
            _matmul(_activate(h_mF, gelu), w2, b2, out=y_MD[rows])
    return outputs


@_segments_forward.register_fake
def _empty_outputs(x_ND, w1_EDF, b1_EF, w2_EFD, b2_ED, token_M, offsets_E, gelu, keep):
    M = token_M.shape[0]
    casts = (
        torch.empty_like(w, dtype=x_ND.dtype) if keep and w.dtype != x_ND.dtype else x_ND.new_empty(0)
        for w in (w1_EDF, w2_EFD)
    )
    return (x_ND.new_empty(M, x_ND.shape[1]), x_ND.new_empty(M if keep else 0, w1_EDF.shape[2]), *casts)


def _clear_expert(gradients: tuple[Tensor, ...], needs: list[bool], e: int) -> None:
    for gradient, need in zip(gradients, needs):
        if need:
            gradient[e].zero_()


@torch.library.custom_op('lmplay::experts_backward', mutates_args=())
def _segments_backward(
    dy_ND: Tensor,
    gate_M: Tensor,
    token_M: Tensor,
    x_ND: Tensor | None,
    y_MD: Tensor | None,
    w1_EDF: Tensor,
    b1_EF: Tensor | None,
    w2_EFD: Tensor,
    b2_ED: Tensor | None,
    cast1_EDF: Tensor,
    cast2_EFD: Tensor,
    offsets_E: Tensor,
    h_MF: Tensor,
    gelu: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (M, D) and gate weights (M,), in the order of experts, and of w1, b1, w2, b2.

    Those not needed are empty. cast1 and cast2 are w1 and w2 in the dtype of the products; x and y are given
    where w1 and the gate weights need one.
    """
    gradients = _empty_gradients(dy_ND, token_M, (w1_EDF, b1_EF, w2_EFD, b2_ED), needs)
    dx_MD, dgate_M, dw1_EDF, db1_EF, dw2_EFD, db2_ED = gradients
    for e, rows in _segments(offsets_E):
        if rows.start == rows.stop:
            _clear_expert(gradients[2:], needs[2:], e)
            continue
        h_mF, dy_mD = h_MF[rows], dy_ND.index_select(0, token_M[rows])
        if y_MD is not None:
            torch.sum(dy_mD * y_MD[rows], 1, out=dgate_M[rows])
        gated_mD = dy_mD.mul_(gate_M[rows, None])
        if needs[4]:
            _matmul(_activate(h_mF, gelu).t(), gated_mD, out=dw2_EFD[e])
        if needs[5]:
            db2_ED[e] = gated_mD.sum(0)  # with out= of a wider dtype it would copy its whole input first
        da_mF = _matmul(gated_mD, cast2_EFD[e].t())
        dh_mF = _activate_backward(da_mF, h_mF, gelu)
        if x_ND is not None:
            _matmul(x_ND.index_select(0, token_M[rows]).t(), dh_mF, out=dw1_EDF[e])
        if needs[3]:
            db1_EF[e] = dh_mF.sum(0)
        if needs[0]:
            _matmul(dh_mF, cast1_EDF[e].t(), out=dx_MD[rows])
    return gradients


@_segments_backward.register_fake
def _(dy_ND, gate_M, token_M, x_ND, y_MD, w1_EDF, b1_EF, w2_EFD, b2_ED, *rest):
    return _empty_gradients(dy_ND, token_M, (w1_EDF, b1_EF, w2_EFD, b2_ED), needs=rest[-1])


def _empty_gradients(
    dy_ND: Tensor, token_M: Tensor, parameters: tuple[Tensor | None, ...], needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    M, D = token_M.shape[0], dy_ND.shape[1]
    dw1, db1, dw2, db2 = (
        torch.empty_like(p) if need and p is not None else dy_ND.new_empty(0)
        for p, need in zip(parameters, needs[2:])
    )
    dx_MD, dgate_M = dy_ND.new_empty(M if needs[0] else 0, D), dy_ND.new_empty(M if needs[1] else 0)
    return dx_MD, dgate_M, dw1, db1, dw2, db2


def _segments(offsets_E: Tensor) -> list[tuple[int, slice]]:
    """(expert, its rows) of each expert."""
    ends = offsets_E.tolist()
    return [(e, slice(start, end)) for e, (start, end) in enumerate(zip([0, *ends], ends))]


def _matmul(
    x: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """x @ weight + bias by the faster library, into `out`, of any dtype, where given."""
    through_onednn = x.dtype == torch.float32 and x.device.type == 'cpu' and mm.available()
    if through_onednn or out is not None and out.dtype != x.dtype:
        y = mm.matmul(x, weight_IO.t(), bias_O) if through_onednn else _matmul(x, weight_IO, bias_O)
        return y if out is None else out.copy_(y)
    return torch.mm(x, weight_IO, out=out) if bias_O is None else torch.addmm(bias_O, x, weight_IO, out=out)
