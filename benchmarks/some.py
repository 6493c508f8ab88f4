"""The SoME layer, forward and backward, and its key update, against the published form and a dense MLP of
equal FLOPs.

The published form loops over expert modules, and over tokens and pairs of ranks in the key update. All in one
process that keeps freed memory, as lmp_trainer does. `python -m benchmarks.some_layer --full-step ROWS`
measures the whole model.
"""

from .measure import milliseconds, rows_by_part
from .some_layer import RULES, loop_layer, loop_update

COLUMNS = [
    'name',
    'dtype',
    'part',
    'threads',
    'ms',
    'cpu_ms',
    'of_published_fp32',
    'of_dense',
    'of_layer',
    'matmul_gflops',
]
SIZE = {'tokens': 2048, 'num_experts': 128, 'top_k': 8, 'embed_dim': 512, 'd_ffn': 1536}
QUICK = {'tokens': 64, 'num_experts': 8, 'top_k': 2, 'embed_dim': 32, 'd_ffn': 64}


def run(args) -> list[dict]:
    table = []
    for threads in args.threads:
        rows = []
        for dtype in args.dtype:
            options = (QUICK if args.quick else SIZE) | {'dtype': dtype, 'device': args.device}
            rows += rows_by_part('some', options, args, milliseconds, threads=threads, dtype=dtype)
        for row in rows:
            row['name'], row['part'] = row['name'].split(':')
        times = {(row['name'], row['dtype'], row['part']): row['ms'] for row in rows}
        for row in rows:
            if row['part'] == 'layer' and ('published', 'fp32', 'layer') in times:
                row['of_published_fp32'] = round(times['published', 'fp32', 'layer'] / row['ms'], 3)
            if row['part'] == 'layer':
                row['of_dense'] = round(times['dense', row['dtype'], 'layer'] / row['ms'], 3)
            if row['part'] == 'key_update':
                row['of_layer'] = round(row['ms'] / times[row['name'], row['dtype'], 'layer'], 3)
        table += rows
    return table


def run_some(meter, *, tokens, num_experts, top_k, embed_dim, d_ffn, dtype, device) -> None:
    import torch
    from torch import nn

    from lmplay.device import keep_freed_memory
    from lmplay.exp.some.layer import SoMELayer

    from .references import autocast

    keep_freed_memory()
    torch.manual_seed(0)
    ours = SoMELayer(
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
    loop = loop_layer(ours).to(device, torch.float32)  # as published, also under autocast
    inner = top_k * d_ffn
    dense = (
        nn.Sequential(nn.Linear(embed_dim, inner), nn.GELU(), nn.Linear(inner, embed_dim))
        .to(device)
        .requires_grad_(False)
    )
    x = torch.randn(1, tokens, embed_dim, device=device)
    dy = torch.randn_like(x)

    def published(x):
        queries = nn.functional.normalize(ours.query(x).float(), dim=2)
        top, ids = ours.keys.scores(queries[0]).topk(top_k, dim=1)
        return loop(x[0], ids, top.softmax(1))[None]

    def step(layer):
        def one():
            given = x.detach().requires_grad_()
            ours.query.zero_grad(set_to_none=True)
            with autocast(device, dtype):
                y = layer(given)
            y.backward(dy.to(y.dtype))
            return tokens

        return one

    with torch.no_grad():
        queries, _, ids, _ = ours.route(x[0])
    usage = (1 - RULES['ema_decay']) * torch.bincount(ids.flatten(), minlength=num_experts).float()

    def update():
        ours.keys.clear()
        ours.keys.collect(queries, ids)
        ours.keys.update()
        return tokens

    def published_update():
        loop_update(ours.keys.vectors, usage, queries, ids)
        return tokens

    meter.run(
        **{
            'ours:layer': step(lambda x: ours(x)[0]),
            'published:layer': step(published),
            'dense:layer': step(dense),
            'ours:key_update': update,
            'published:key_update': published_update,
        }
    )
