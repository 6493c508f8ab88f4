"""The limit: gpt2ish's training step as fast as plain torch could be made to do it, with no regard to being
general.

The same mathematics (pre-norm, exact GELU, learned positions, untied head with bias, fp32 master weights,
AdamW), but: trunk compiled, one product for queries, keys and values, SDPA, fused AdamW; head and loss in
chunks, the gradient of the logits made in the forward pass, so that no N x V numbers ever live; in bf16 the
weights are cast once a step instead of at each use; in fp32 on a CPU products go through oneDNN where that is
faster than what torch takes by itself (on AMD, where MKL has a slow path).
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .measure import VOCAB, shape_of
from .references import load_rows


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias of fp32 matrices by oneDNN itself."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


def onednn_is_faster() -> bool:
    """Measured, on a product of the size of a trunk's."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, w = torch.randn(1024, 512), torch.randn(1024, 512)
    took = {}
    for _ in range(4):
        for name, product in (('onednn', onednn), ('torch', F.linear)):
            began = time.perf_counter()
            product(x, w)
            took[name] = min(took.get(name, 1.0), time.perf_counter() - began)
    return took['onednn'] < 0.9 * took['torch']


# Operators of their own, so that compilation takes them as they are.
@torch.library.custom_op('limit::linear', mutates_args=())
def limit_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return onednn(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


@limit_linear.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op('limit::linear_backward', mutates_args=())
def limit_linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy_NO, x_NI = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return onednn(dy_NO, weight.t()).view(x.shape), onednn(dy_NO.t(), x_NI.t()), dy_NO.sum(0)


@limit_linear_backward.register_fake
def _(dy, x, weight):
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[0])


limit_linear.register_autograd(
    lambda ctx, dy: limit_linear_backward(dy, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]),
)


def loss_and_gradient(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Summed cross-entropy times scale; `logits` become its gradient."""
    wide = logits.float()
    top = wide.amax(1, keepdim=True)
    e = (wide - top).exp()
    total = e.sum(1, keepdim=True)
    loss = (total.log() + top - wide.gather(1, targets[:, None])).sum() * scale
    here = torch.arange(wide.shape[1], device=targets.device)[None] == targets[:, None]
    p = e * (scale / total)
    logits.copy_(torch.where(here, p - scale, p))
    return loss


class HeadAndLoss(torch.autograd.Function):
    """Mean cross-entropy of x_ND @ weight_VD.T + bias_V, `chunk` tokens at a time."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, chunk, dtype, through_onednn, gradient):
        w, b = weight.detach().to(dtype), bias.detach().to(dtype)
        dx, dw, db = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        loss = torch.zeros((), device=x.device)
        for start in range(0, len(x), chunk):
            x_c, t_c = x[start : start + chunk], targets[start : start + chunk]
            g = onednn(x_c, w, b) if through_onednn else F.linear(x_c, w, b)
            loss += gradient(g, t_c, 1.0 / len(x))
            if through_onednn:
                dx[start : start + chunk] = onednn(g, w.t())
                dw += onednn(g.t(), x_c.t())
            else:
                dx[start : start + chunk] = g @ w
                dw += g.t() @ x_c
            db += (g.new_ones(1, len(g)) @ g)[0]  # sum(0, dtype=float32) would copy all of g
        ctx.save_for_backward(dx, dw, db)
        return loss

    @staticmethod
    def backward(ctx, _):  # of the loss itself, so its gradient is 1
        return *ctx.saved_tensors, None, None, None, None, None


class Block(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc, self.out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)


class Limit(nn.Module):
    def __init__(
        self,
        *,
        layers: int,
        dim: int,
        heads: int,
        context: int,
        vocab: int,
        dtype: torch.dtype,
        through_onednn: bool,
    ):
        super().__init__()
        self.heads, self.dtype, self.through_onednn = heads, dtype, through_onednn
        self.tok = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(torch.zeros(context, dim))
        self.blocks = nn.ModuleList(Block(dim) for _ in range(layers))
        self.ln = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab)

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        if self.through_onednn:
            return limit_linear(x, layer.weight, layer.bias)
        return F.linear(x, layer.weight.to(self.dtype), layer.bias.to(self.dtype))

    def trunk(self, idx: Tensor) -> Tensor:
        B, T = idx.shape
        x = self.tok(idx) + self.pos[:T]
        for block in self.blocks:
            q, k, v = (
                self.linear(block.ln1(x).to(self.dtype), block.qkv)
                .view(B, T, 3, self.heads, -1)
                .permute(2, 0, 3, 1, 4)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, -1)
            x = x + self.linear(y, block.proj)
            x = x + self.linear(F.gelu(self.linear(block.ln2(x).to(self.dtype), block.fc)), block.out)
        return self.ln(x).to(self.dtype)


def make_step(
    *,
    layers: int,
    dim: int,
    heads: int,
    context: int,
    vocab: int,
    dtype: str = 'fp32',
    device: str = 'cpu',
    compiled: bool = True,
    chunk: int | None = None,
    lr: float = 6e-4,
):
    """(step(idx, targets) -> loss, model)."""
    precision = torch.bfloat16 if dtype == 'bf16' else torch.float32
    through_onednn = device == 'cpu' and dtype == 'fp32' and onednn_is_faster()
    chunk = chunk or (256 if dtype == 'fp32' else 1024)
    with torch.device(device):
        model = Limit(
            layers=layers,
            dim=dim,
            heads=heads,
            context=context,
            vocab=vocab,
            dtype=precision,
            through_onednn=through_onednn,
        )
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or n.startswith(('tok', 'pos'))]
    ids = {id(p) for p in plain}
    groups = [
        {'params': plain, 'weight_decay': 0.0},
        {'params': [p for p in model.parameters() if id(p) not in ids], 'weight_decay': 0.01},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
    trunk = torch.compile(model.trunk) if compiled else model.trunk
    gradient = torch.compile(loss_and_gradient) if compiled else loss_and_gradient

    def step(idx: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        x = trunk(idx)
        loss = HeadAndLoss.apply(
            x.view(-1, x.shape[-1]),
            model.head.weight,
            model.head.bias,
            targets.reshape(-1),
            chunk,
            precision,
            through_onednn,
            gradient,
        )
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, model


def run_limit(meter, *, shape, context, rows, dtype, device, folder, compiled=True, keep=False, **_) -> None:
    if keep:
        from lmplay.device import keep_freed_memory

        keep_freed_memory()
    batches = load_rows(folder, rows, device)
    step, _ = make_step(
        **shape_of(shape), context=context, vocab=VOCAB, dtype=dtype, device=device, compiled=compiled
    )

    def one():
        x, y = next(batches)
        step(x, y)
        return x.numel()

    meter.run(one)
