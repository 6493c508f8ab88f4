"""The SoME layer against a loop over experts, and one step of the full model: python -m benchmarks.some_layer

N tokens, E experts, K choices, D width, F inner width.
"""

import argparse
import copy
import json
import statistics
import time
from functools import partial
from typing import Any

RULES = dict(
    alpha=0.015,
    beta=0.001,
    delta=0.001,
    theta_percentile=0.05,
    warmup_steps=400,
    ema_decay=0.995,
    decay_fix=False,
)


def loop_layer(layer):
    """`layer` as it is usually written, with its weights: a module per expert,
    and a loop that adds up what each gives."""
    from torch import nn

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList()
            for w1, w2 in zip(layer.w1, layer.w2):
                expert = nn.Sequential(
                    nn.Linear(*w1.shape, device='meta'), nn.GELU(), nn.Linear(*w2.shape, device='meta')
                )
                for linear, weight in ((expert[0], w1), (expert[2], w2)):
                    linear.weight = nn.Parameter(weight.t().contiguous(), requires_grad=False)
                    linear.bias = nn.Parameter(weight.new_zeros(weight.shape[1]), requires_grad=False)
                self.experts.append(expert)

        def forward(self, x_ND, expert_ids_NK, gates_NK):
            import torch

            y_ND = torch.zeros_like(x_ND)
            for e, expert in enumerate(self.experts):
                tokens, choices = (expert_ids_NK == e).nonzero(as_tuple=True)
                y = expert(x_ND.index_select(0, tokens)) * gates_NK[tokens, choices, None]
                y_ND = y_ND.index_add(0, tokens, y.to(y_ND.dtype))
            return y_ND

    return Loop()


def loop_update(vectors, usage, queries_ND, expert_ids_NK):
    """The published key update: ranks, then pairs of ranks, one after another over all tokens;
    usage is that of this step."""
    import torch.nn.functional as F

    keys = vectors.clone()
    for ids_N in expert_ids_NK.t():
        rate = (RULES['alpha'] / (1 + usage[ids_N]))[:, None]
        keys.index_add_(0, ids_N, rate * (queries_ND - keys[ids_N]))
    start = keys.clone()
    for a in range(expert_ids_NK.shape[1]):
        for b in range(a + 1, expert_ids_NK.shape[1]):
            i, m = expert_ids_NK[:, a], expert_ids_NK[:, b]
            rate = (RULES['beta'] / (1 + usage[i].minimum(usage[m])))[:, None]
            apart = start[m] - start[i]
            keys.index_add_(0, i, rate * apart)
            keys.index_add_(0, m, -rate * apart)
    return F.normalize(keys, dim=1)


def run(
    *,
    tokens: int = 2048,
    num_experts: int = 128,
    top_k: int = 8,
    embed_dim: int = 512,
    d_ffn: int = 1536,
    rounds: int = 5,
    device: str = 'cpu',
) -> list[dict]:
    """Milliseconds of forward, backward and key update, median and range over interleaved rounds, for each
    form and precision.

    The forms compute the same; an assertion holds them together. A fixed matrix product is timed beside every
    sample.
    """
    import torch

    from lmplay.device import keep_freed_memory
    from lmplay.exp.some.layer import SoMELayer

    keep_freed_memory()
    torch.manual_seed(0)
    first = SoMELayer(
        embed_dim=embed_dim,
        num_experts=num_experts,
        d_ffn=d_ffn,
        top_k=top_k,
        init='sparse_scaled',
        expert_seed=0,
        layer=0,
        train_temperature=1.0,
        eval_temperature=0.5,
        include_padding=False,
        **RULES,
    ).to(device)
    layers = {
        torch.float32: first,
        torch.bfloat16: copy.deepcopy(first),
    }  # each holds its experts in its precision
    loops = {dtype: loop_layer(layer).to(device, dtype) for dtype, layer in layers.items()}
    x_ND = torch.randn(tokens, embed_dim, device=device)
    reference = torch.randn(1024, 1024, device=device)

    clock = partial(_clock, device)

    def route(x):
        queries = torch.nn.functional.normalize(first.query(x).float(), dim=1)
        top, ids = first.keys.scores(queries).topk(top_k, dim=1)
        return queries, ids, top.softmax(1)

    def loop(x, dtype):
        _, ids, gates = route(x)
        return loops[dtype](x, ids, gates)

    def our_update():
        first.keys.clear()
        first.keys.collect(queries, ids)
        first.keys.update()
        return first.keys.vectors.clone()

    queries, ids, _ = (t.detach() for t in route(x_ND))
    state = {k: v.clone() for k, v in first.keys.state_dict().items()}
    step_usage = (1 - RULES['ema_decay']) * torch.bincount(ids.flatten(), minlength=num_experts).float()
    samples: dict[tuple, list] = {}
    for _ in range(rounds + 1):
        for dtype in (torch.float32, torch.bfloat16):
            results = {}
            for name, form in (
                ('lmplay', lambda x, dtype: layers[dtype](x[None])[0][0]),
                ('loop over experts', loop),
            ):
                x = x_ND.clone().requires_grad_()
                with torch.autocast(
                    torch.device(device).type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16
                ):
                    forward, y = clock(form, x, dtype)
                backward, _ = clock(y.float().square().mean().backward)
                matmul, _ = clock(torch.mm, reference, reference)
                results[name] = x.grad
                samples.setdefault((name, str(dtype).removeprefix('torch.')), []).append(
                    (forward, backward, matmul)
                )
            torch.testing.assert_close(
                *results.values(), rtol=0.1, atol=1e-4 * (1 if dtype is torch.float32 else 20)
            )
        updates = {}
        for name, update in (
            ('lmplay', our_update),
            ('loop over experts', lambda: loop_update(state['vectors'], step_usage, queries, ids)),
        ):
            first.keys.load_state_dict(state)
            took, updates[name] = clock(update)
            samples.setdefault((name, 'key update'), []).append((took,))
        torch.testing.assert_close(*updates.values(), rtol=0, atol=1e-5)
    return _table(samples)


def _clock(device: str, work, *given) -> tuple[float, Any]:
    """(milliseconds, result) of a call."""
    import torch

    if device != 'cpu':
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = work(*given)
    if device != 'cpu':
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3, result


def _table(samples: dict[tuple, list]) -> list[dict]:
    rows = []
    for (name, what), taken in samples.items():
        columns = [[s[c] for s in taken[1:]] for c in range(len(taken[0]))]  # the first round warms up
        names = ('forward', 'backward', 'matmul_1024') if len(columns) > 1 else ('key_update',)
        rows.append(
            {'form': name, 'precision': what if len(columns) > 1 else 'float32'}
            | {
                n: {'median': statistics.median(c), 'min': min(c), 'max': max(c)}
                for n, c in zip(names, columns)
            }
        )
    return rows


def full_step(*, rows: int = 1, device: str = 'cpu', amp: bool = False) -> dict:
    """One training step of `some` at full size: seconds of each part, peak memory in GB, gradient norm."""
    import resource

    import torch

    from lmplay.base.base_model import StepContext
    from lmplay.base.runner_list import find_runner
    from lmplay.tokenizers import BytesTokenizer

    class Vocabulary(BytesTokenizer):
        n_vocab = 8192

    took, began = {}, time.perf_counter()

    def lap(name):
        nonlocal began
        if device != 'cpu':
            torch.cuda.synchronize()
        took[name] = round(time.perf_counter() - began, 3)
        began = time.perf_counter()

    model = find_runner('some').function(tokenizer=Vocabulary()).build(device)
    optimizer = torch.optim.AdamW(model.param_groups(0.1), lr=4e-4, betas=(0.9, 0.95))
    lap('build')
    x = torch.randint(0, 8192, (rows, 513), device=device)
    for number in ('first', 'second'):  # the first brings the experts to its precision
        model.before_step(StepContext('benchmark', 0, 2, 0))
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=amp):
            logits = model(x[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten())
        lap(f'{number} forward')
        optimizer.zero_grad()
        loss.backward()
        lap(f'{number} backward')
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        lap(f'{number} optimizer')
        model.after_step(StepContext('benchmark', 0, 2, 0))
        lap(f'{number} key update')
    peak = (
        torch.cuda.max_memory_allocated()
        if device != 'cpu'
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        'rows': rows,
        'seconds': took,
        'peak_GB': round(peak / 1e9, 2),
        'loss': loss.item(),
        'gradient_norm': norm.item(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser('benchmarks.some_layer', description=__doc__.split('\n')[0])
    parser.add_argument('--tokens', type=int, default=2048)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--full-step',
        type=int,
        metavar='ROWS',
        help='one step of the full model on this many rows of 512 instead',
    )
    parser.add_argument('--amp', action='store_true', help='of --full-step: bf16')
    args = parser.parse_args(argv)
    if args.full_step:
        print(json.dumps(full_step(rows=args.full_step, device=args.device, amp=args.amp), indent=1))
        return 0
    print(
        f'{"form":20}{"precision":12}'
        + ''.join(f'{n:>26}' for n in ('forward ms', 'backward ms', 'key update ms', '1024^3 matmul ms'))
    )
    for row in run(tokens=args.tokens, rounds=args.rounds, device=args.device):
        cells = (row.get(n) for n in ('forward', 'backward', 'key_update', 'matmul_1024'))
        print(
            f'{row["form"]:20}{row["precision"]:12}'
            + ''.join(
                f'{c["median"]:10.1f} ({c["min"]:.1f}-{c["max"]:.1f})'.rjust(26) if c else ' ' * 26
                for c in cells
            )
        )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
