"""Generation, batch 1, through the key/value cache, against Hugging Face `generate`; the same shape, prompt
and length.

Both in one process that keeps freed memory, as lmp_generator does.
"""

from .measure import rows_by_part, speeds

COLUMNS = [
    'name',
    'dtype',
    'shape',
    'setting',
    'threads',
    'tokens_per_second',
    'tokens_per_cpu_second',
    'matmul_gflops',
]


def run(args) -> list[dict]:
    table = []
    for shape in args.shape or (['1x64'] if args.quick else ['6x768']):
        for dtype in args.dtype:
            for threads in args.threads:
                options = {
                    'shape': shape,
                    'dtype': dtype,
                    'device': args.device,
                    'prompt': 8 if args.quick else 32,
                    'new': 8 if args.quick else 96,
                }
                rows = rows_by_part(
                    'generate',
                    options,
                    args,
                    lambda s: speeds(s, 'tokens_per_second'),
                    threads=threads,
                    dtype=dtype,
                    shape=shape,
                )
                for row in rows:
                    row['name'], row['setting'] = row['name'].split(':')
                table += rows
    return table


def run_generate(meter, *, shape, dtype, device, prompt, new) -> None:
    import torch

    from lmplay.base.runner_list import find_runner
    from lmplay.device import keep_freed_memory
    from lmplay.generate.generator import generate

    from .measure import shape_of
    from .references import autocast, gpt2

    keep_freed_memory()
    torch.manual_seed(0)
    s = shape_of(shape)
    ours = (
        find_runner('gpt2ish')
        .function(num_blocks=s['layers'], embed_dim=s['dim'], num_heads=s['heads'])
        .build(device)
        .eval()
    )
    hf = gpt2(shape, 1024, device).eval()
    tokens = list(range(100, 100 + prompt))
    x = torch.tensor([tokens], device=device)

    def our(**settings):
        def one():
            with autocast(device, dtype):
                return len(generate(ours, [tokens], max_new_tokens=new, **settings)[0])

        return one

    def theirs(**settings):
        def one():
            with autocast(device, dtype):
                y = hf.generate(
                    x,
                    attention_mask=torch.ones_like(x),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    pad_token_id=50256,
                    **settings,
                )
            return y.shape[1] - prompt

        return one

    meter.run(
        **{
            'ours:greedy': our(temperature=0),
            'hf:greedy': theirs(do_sample=False),
            'ours:top_k': our(temperature=0.8, top_k=50),
            'hf:top_k': theirs(do_sample=True, temperature=0.8, top_k=50),
        }
    )
