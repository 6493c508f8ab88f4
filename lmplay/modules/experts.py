"""Dispatch of tokens to experts: tokens sorted by expert, then a product per projection over stacked expert weights.

N tokens (B * T), K choices per token, M = N * K assignments, E experts, D width of the model, F inner width of an expert.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import onednn

grouped_mm = getattr(F, 'grouped_mm', None) or getattr(torch, '_grouped_mm', None)     # public since torch 2.10


class Dispatch(NamedTuple):
    """Assignments in the order of their experts.

    order_M    int64: the assignment (token * K + choice) at each sorted row
    inverse_M  int64: the sorted row of each assignment
    experts_M  int64: the expert of each sorted row
    offsets_E  int32: where each expert's rows end; those of an expert without tokens end where they begin
    """
    order_M: Tensor
    inverse_M: Tensor
    experts_M: Tensor
    offsets_E: Tensor


def sort_by_expert(expert_ids_NK: Tensor, num_experts: int) -> Dispatch:
    """Sorts the assignments `expert_ids_NK` (int64) by expert, stably, without a synchronisation with the host."""
    experts_M, order_M = expert_ids_NK.flatten().sort(stable=True)
    inverse_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
    every_E = torch.arange(num_experts, device=experts_M.device)
    offsets_E = torch.searchsorted(experts_M, every_E, right=True, out_int32=True)
    return Dispatch(order_M, inverse_M, experts_M, offsets_E)


def grouped_serves(x: Tensor, *widths: int) -> bool:
    """Whether torch's grouped product is there for x's device and dtype, with rows of `widths` elements, and is the faster way.

    On a CPU it is itself a loop over the experts; taking them one after another is never slower there, and up to twice as
    fast where memory comes fresh from the system: what lies between the products of one expert stays in the cache.
    """
    return (grouped_mm is not None and x.dtype == torch.bfloat16 and all(width % 8 == 0 for width in widths)     # 16 bytes
            and (x.device.type == 'meta' or x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0)))


def experts_mlp(x_ND: Tensor, *, expert_ids_NK: Tensor, weights_NK: Tensor, w1_EDF: Tensor, b1_EF: Tensor | None,
                w2_EFD: Tensor, b2_ED: Tensor | None, gelu: str = 'none') -> Tensor:
    """Sum over each token's choices of weight * expert(x), where expert(x) = GELU(x w1 + b1) w2 + b2: (N, D).

    expert_ids_NK  int64 in [0, E)
    weights_NK     gate weights, float
    gelu           'none' for the exact GELU, 'tanh' for GPT-2's approximation

    No token is dropped. Frozen experts (parameters that require no gradient) cost none in the backward pass. Under
    autocast the products run in its dtype. Where `grouped_serves`, one grouped product per projection serves all experts,
    and nothing synchronises with the host.
    """
    device, dtype = x_ND.device.type, x_ND.dtype
    if dtype != torch.float64 and device != 'meta' and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    x_ND = x_ND.to(dtype)
    parameters = (w1_EDF, b1_EF, w2_EFD, b2_ED)
    dispatch = sort_by_expert(expert_ids_NK, len(w1_EDF))
    if grouped_serves(x_ND, *w1_EDF.shape[1:]):
        return _GroupedExperts.apply(x_ND, weights_NK, *(p if p is None else p.to(dtype) for p in parameters), *dispatch, gelu)
    return _SegmentedExperts.apply(x_ND, weights_NK, *parameters, *dispatch, gelu)


# Both forms keep for the backward pass the hidden values before the activation and nothing else of size M; x only where
# an expert trains. The gradient of a gate weight, <dy, expert(x)> = <dy w2^T, GELU(h)> + <dy, b2>, needs no expert(x).

class _GroupedExperts(torch.autograd.Function):
    """One grouped product per projection."""

    @staticmethod
    def forward(ctx, x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, inverse_M, experts_M, offsets_E, gelu):
        (N, D), K = x_ND.shape, weights_NK.shape[1]
        h_MF = grouped_mm(x_ND.index_select(0, order_M // K), w1_EDF, offs=offsets_E)
        if b1_EF is not None:
            h_MF = h_MF + b1_EF.index_select(0, experts_M)
        y_MD = grouped_mm(F.gelu(h_MF, approximate=gelu), w2_EFD, offs=offsets_E)
        if b2_ED is not None:
            y_MD = y_MD + b2_ED.index_select(0, experts_M)
        ctx.gelu = gelu
        ctx.save_for_backward(x_ND if ctx.needs_input_grad[2] else None, weights_NK, w1_EDF, w2_EFD, b2_ED,
                              order_M, inverse_M, experts_M, offsets_E, h_MF)
        y_NKD = y_MD.index_select(0, inverse_M).view(N, K, D)
        return (y_NKD * weights_NK.to(y_NKD.dtype)[:, :, None]).sum(1)

    @staticmethod
    def backward(ctx, dy_ND):
        x_ND, weights_NK, w1_EDF, w2_EFD, b2_ED, order_M, inverse_M, experts_M, offsets_E, h_MF = ctx.saved_tensors
        needs = ctx.needs_input_grad
        (N, D), K = dy_ND.shape, weights_NK.shape[1]
        dx = dweights = dw1 = db1 = dw2 = db2 = None
        token_M = order_M // K
        gate_M1 = weights_NK.to(dy_ND.dtype).flatten().index_select(0, order_M)[:, None]
        dy_MD = dy_ND.index_select(0, token_M)
        gated_MD = dy_MD * gate_M1
        da_MF = grouped_mm(dy_MD, w2_EFD.transpose(1, 2), offs=offsets_E)      # before the gate weight
        a_MF = F.gelu(h_MF, approximate=ctx.gelu)
        if needs[1]:
            dgate_M = (da_MF * a_MF).sum(1, dtype=weights_NK.dtype)
            if b2_ED is not None:
                dgate_M = dgate_M + (dy_MD * b2_ED.index_select(0, experts_M)).sum(1, dtype=weights_NK.dtype)
            dweights = dgate_M.index_select(0, inverse_M).view(N, K)
        if needs[4]:
            dw2 = grouped_mm(a_MF.t(), gated_MD, offs=offsets_E)
        if needs[5]:
            db2 = _sum_by_expert(gated_MD, offsets_E)
        dh_MF = torch.ops.aten.gelu_backward(da_MF * gate_M1, h_MF, approximate=ctx.gelu)
        if needs[2]:
            dw1 = grouped_mm(x_ND.index_select(0, token_M).t(), dh_MF, offs=offsets_E)
        if needs[3]:
            db1 = _sum_by_expert(dh_MF, offsets_E)
        if needs[0]:
            dx_MD = grouped_mm(dh_MF, w1_EDF.transpose(1, 2), offs=offsets_E)
            dx = dx_MD.index_select(0, inverse_M).view(N, K, D).sum(1)
        return dx, dweights, dw1, db1, dw2, db2, None, None, None, None, None


def _sum_by_expert(grad_MO: Tensor, offsets_E: Tensor) -> Tensor:
    """Sum of each expert's rows, (E, O), as a product with ones: deterministic, where a scatter into few rows is not."""
    ones_MI = grad_MO.new_ones(len(grad_MO), 16 // grad_MO.element_size())      # the narrowest rows a grouped product takes
    return grouped_mm(ones_MI.t(), grad_MO, offs=offsets_E)[:, 0]


class _SegmentedExperts(torch.autograd.Function):
    """Expert after expert over its rows. Reads the offsets on the host, so its loops are operators of their own, which
    compilation takes as they are. Weights of another dtype are cast expert by expert: a copy of one stays in the cache, a
    copy of all would go through memory, as would their gradients once more."""

    @staticmethod
    def forward(ctx, x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, inverse_M, experts_M, offsets_E, gelu):
        y_MD, h_MF = _segments_forward(x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, offsets_E, gelu,
                                       any(ctx.needs_input_grad))
        ctx.gelu = gelu
        ctx.save_for_backward(x_ND if ctx.needs_input_grad[2] else None, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED,
                              order_M, inverse_M, offsets_E, h_MF)
        return y_MD.index_select(0, inverse_M).view(*weights_NK.shape, x_ND.shape[1]).sum(1)

    @staticmethod
    def backward(ctx, dy_ND):
        x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, inverse_M, offsets_E, h_MF = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx_MD, dgate_M, *gradients = _segments_backward(dy_ND, x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, offsets_E,
                                                        h_MF, ctx.gelu, needs[:6])
        dx = dx_MD.index_select(0, inverse_M).view(*weights_NK.shape, dy_ND.shape[1]).sum(1) if needs[0] else None
        dweights = dgate_M.index_select(0, inverse_M).view_as(weights_NK) if needs[1] else None
        gradients = [gradient if need else None for gradient, need in zip(gradients, needs[2:])]
        return dx, dweights, *gradients, None, None, None, None, None


@torch.library.custom_op('lmplay::experts_forward', mutates_args=())
def _segments_forward(x_ND: Tensor, weights_NK: Tensor, w1_EDF: Tensor, b1_EF: Tensor | None, w2_EFD: Tensor, b2_ED: Tensor | None,
                      order_M: Tensor, offsets_E: Tensor, gelu: str, keep: bool) -> tuple[Tensor, Tensor]:
    """(weighted outputs (M, D) in the order of experts, hidden values (M, F), or (0, F) where not kept)."""
    y_MD, h_MF = _empty_outputs(x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, offsets_E, gelu, keep)
    token_M, gate_M1 = order_M // weights_NK.shape[1], weights_NK.to(x_ND.dtype).flatten()[order_M, None]
    for e, rows in _segments(offsets_E):
        if rows.start < rows.stop:
            w1, b1, w2, b2 = (None if p is None else p[e].to(x_ND.dtype) for p in (w1_EDF, b1_EF, w2_EFD, b2_ED))
            h_mF = _product(x_ND.index_select(0, token_M[rows]), w1, b1, out=h_MF[rows] if keep else None)
            _product(F.gelu(h_mF, approximate=gelu), w2, b2, out=y_MD[rows]).mul_(gate_M1[rows])
    return y_MD, h_MF


@_segments_forward.register_fake
def _empty_outputs(x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, offsets_E, gelu, keep):
    M = order_M.shape[0]
    return x_ND.new_empty(M, x_ND.shape[1]), x_ND.new_empty(M if keep else 0, w1_EDF.shape[2])


@torch.library.custom_op('lmplay::experts_backward', mutates_args=())
def _segments_backward(dy_ND: Tensor, x_ND: Tensor | None, weights_NK: Tensor, w1_EDF: Tensor, b1_EF: Tensor | None, w2_EFD: Tensor,
                       b2_ED: Tensor | None, order_M: Tensor, offsets_E: Tensor, h_MF: Tensor, gelu: str,
                       needs: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (M, D) and gate weights (M,), both in the order of experts, and of w1, b1, w2, b2; empty where not
    among `needs`."""
    gradients = _empty_gradients(dy_ND, x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, offsets_E, h_MF, gelu, needs)
    dx_MD, dgate_M, dw1_EDF, db1_EF, dw2_EFD, db2_ED = gradients
    token_M, gate_M1 = order_M // weights_NK.shape[1], weights_NK.to(dy_ND.dtype).flatten()[order_M, None]
    for e, rows in _segments(offsets_E):
        if rows.start == rows.stop:
            for gradient, need in zip(gradients[2:], needs[2:]):
                if need:
                    gradient[e].zero_()
            continue
        h_mF, dy_mD, gate_m1 = h_MF[rows], dy_ND.index_select(0, token_M[rows]), gate_M1[rows]
        da_mF = _product(dy_mD, w2_EFD[e].to(dy_ND.dtype).t())      # before the gate weight
        if needs[1] or needs[4]:
            a_mF = F.gelu(h_mF, approximate=gelu)
        if needs[1]:
            torch.sum(da_mF * a_mF, 1, dtype=dgate_M.dtype, out=dgate_M[rows])
            if b2_ED is not None:
                dgate_M[rows] += dy_mD @ b2_ED[e].to(dy_ND.dtype)
        gated_mD = dy_mD.mul_(gate_m1)
        if needs[4]:
            _product(a_mF.t(), gated_mD, out=dw2_EFD[e])
        if needs[5]:
            torch.sum(gated_mD, 0, dtype=db2_ED.dtype, out=db2_ED[e])
        dh_mF = torch.ops.aten.gelu_backward(da_mF.mul_(gate_m1), h_mF, approximate=gelu)
        if needs[2]:
            _product(x_ND.index_select(0, token_M[rows]).t(), dh_mF, out=dw1_EDF[e])
        if needs[3]:
            torch.sum(dh_mF, 0, dtype=db1_EF.dtype, out=db1_EF[e])
        if needs[0]:
            _product(dh_mF, w1_EDF[e].to(dy_ND.dtype).t(), out=dx_MD[rows])
    return gradients


@_segments_backward.register_fake
def _empty_gradients(dy_ND, x_ND, weights_NK, w1_EDF, b1_EF, w2_EFD, b2_ED, order_M, offsets_E, h_MF, gelu, needs):
    M, D = order_M.shape[0], dy_ND.shape[1]
    parameters = (torch.empty_like(p) if need else dy_ND.new_empty(0)
                  for p, need in zip((w1_EDF, b1_EF, w2_EFD, b2_ED), needs[2:]))
    return (dy_ND.new_empty(M if needs[0] else 0, D), weights_NK.new_empty(M if needs[1] else 0), *parameters)


def _segments(offsets_E: Tensor) -> list[tuple[int, slice]]:
    """(expert, its rows) of every expert."""
    ends = offsets_E.tolist()
    return [(e, slice(start, end)) for e, (start, end) in enumerate(zip([0, *ends], ends))]


def _product(x: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """x @ weight + bias by the library that is faster here, into `out` (of any dtype) where given."""
    through_onednn = x.dtype == torch.float32 and x.device.type == 'cpu' and onednn.available()
    if through_onednn or out is not None and out.dtype != x.dtype:
        y = onednn.product(x, weight_IO.t(), bias_O) if through_onednn else _product(x, weight_IO, bias_O)
        return y if out is None else out.copy_(y)
    return torch.mm(x, weight_IO, out=out) if bias_O is None else torch.addmm(bias_O, x, weight_IO, out=out)
