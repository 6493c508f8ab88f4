"""gpt2_moe's layer, forward and backward, against a dense MLP of equal active FLOPs and the loop over
experts.

N tokens, E experts, K choices, D width, F inner width. All forms in one process that keeps freed memory, as
lmp_trainer does.
"""

from .measure import milliseconds, rows_by_part

COLUMNS = ['name', 'dtype', 'tokens', 'top_k', 'threads', 'ms', 'cpu_ms', 'of_dense', 'matmul_gflops']
EXPERTS, D, F = 8, 768, 3072
BUSIEST = 0.33  # share of the tokens that the busiest expert gets


def run(args) -> list[dict]:
    table = []
    for tokens in [64] if args.quick else [1024, 4096]:
        for top_k in [2] if args.quick else [1, 2]:
            for dtype in args.dtype:
                for threads in args.threads:
                    options = {
                        'tokens': tokens,
                        'top_k': top_k,
                        'dtype': dtype,
                        'device': args.device,
                        'shrink': 16 if args.quick else 1,
                    }
                    rows = rows_by_part(
                        'moe',
                        options,
                        args,
                        milliseconds,
                        threads=threads,
                        dtype=dtype,
                        tokens=tokens,
                        top_k=top_k,
                    )
                    dense = next((row['ms'] for row in rows if row['name'] == 'dense'), None)
                    table += [
                        row | ({'of_dense': round(dense / row['ms'], 3)} if dense else {}) for row in rows
                    ]
    return table


def layers(*, tokens: int, top_k: int, device: str = 'cpu', shrink: int = 1):
    """(inputs (1, N, D), the forms as name -> module); ours and the loop have the same weights."""
    import torch
    from torch import nn

    from lmplay.exp.gpt2_moe.moe_layer import MoELayer

    torch.manual_seed(0)
    dim, inner = D // shrink, F // shrink

    def mlp(width):
        return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))

    with torch.device(device):
        ours = MoELayer(
            embed_dim=dim,
            ff_dim=inner,
            num_experts=EXPERTS,
            top_k=top_k,
            noise_std=0.0,
            gelu='none',
            dropout=0.0,
            out_std=0.02,
        )
        dense = mlp(inner * top_k)
        x = torch.randn(1, tokens, dim)

        class Loop(nn.Module):
            def __init__(self):
                super().__init__()
                self.experts = nn.ModuleList(mlp(inner) for _ in range(EXPERTS))

            def forward(self, x):
                x_ND = x.flatten(0, 1)
                routing = ours.route(x_ND, noisy=False)
                y_ND = torch.zeros_like(x_ND)
                for e, expert in enumerate(self.experts):
                    rows, choices = (routing.expert_ids_NK == e).nonzero(as_tuple=True)
                    y = expert(x_ND[rows]) * routing.weights_NK[rows, choices, None]
                    y_ND = y_ND.index_add(0, rows, y.to(y_ND.dtype))
                return y_ND.view_as(x)

        loop = Loop()
    with torch.no_grad():
        nn.init.orthogonal_(ours.router.weight)
        for e, expert in enumerate(loop.experts):
            for own, given in ((expert[0], (ours.w1, ours.b1)), (expert[2], (ours.w2, ours.b2))):
                own.weight.copy_(given[0][e].t())
                own.bias.copy_(given[1][e])
        rest = torch.linspace(1.5, 0.5, EXPERTS - 1) / (EXPERTS - 1) * (1 - BUSIEST)
        counts = (torch.cat([torch.tensor([BUSIEST]), rest]) * tokens).round().long()
        favourite = torch.repeat_interleave(torch.arange(EXPERTS), counts)[torch.randperm(int(counts.sum()))][
            :tokens
        ].to(device)
        favourite = nn.functional.pad(favourite, (0, tokens - len(favourite)))
        x += 10 * ours.router.weight[favourite]  # of unit length and at right angles
    return x, {'ours': ours, 'dense': dense, 'loop': loop}


def run_moe(meter, *, tokens, top_k, dtype, device, shrink) -> None:
    from lmplay.device import keep_freed_memory

    from .references import autocast

    keep_freed_memory()
    x, forms = layers(tokens=tokens, top_k=top_k, device=device, shrink=shrink)
    import torch

    dy = torch.randn_like(x)

    def step(layer):
        def one():
            given = x.detach().requires_grad_()
            layer.zero_grad(set_to_none=True)
            with autocast(device, dtype):
                y = layer(given)
            y.backward(dy.to(y.dtype))
            return tokens

        return one

    meter.run(**{name: step(layer) for name, layer in forms.items()})
