"""The data pipeline, each part against the least that could do it.

tokenize  text to a token store on disk; against the tokenizer alone on the same text (tiktoken's own
          threads), nothing kept
batches   packed rows from the store; against nanoGPT's random crops of a memory map, which keep no order and
          no place
open      store, split and rows of prepared data, to the first batch; what a start waits for
"""

import tempfile

from .measure import milliseconds, rows_by_part, speeds
from .trainer import DATA, QUICK_DATA

COLUMNS = ['name', 'part', 'threads', 'tokens_per_second', 'tokens_per_cpu_second', 'ms']


def run(args) -> list[dict]:
    table = []
    for threads in args.threads:
        with tempfile.TemporaryDirectory(prefix='lmplay-benchmark-') as folder:
            options = {
                'folder': folder,
                'spec': QUICK_DATA if args.quick else DATA,
                'context': args.context or 256,
                'rows': args.rows or 8,
            }
            rows = rows_by_part(
                'data',
                options,
                args,
                lambda s: speeds(s, 'tokens_per_second', digits=0) | milliseconds(s),
                threads=threads,
            )
        for row in rows:
            row['name'], row['part'] = row['name'].split(':')
            if row['part'] == 'open':  # a time, not a rate
                del row['tokens_per_second'], row['tokens_per_cpu_second']
        table += rows
    return table


def run_data(meter, *, folder, spec, context, rows) -> None:
    import os
    import shutil
    from pathlib import Path

    import numpy as np
    import torch

    from lmplay.data.mixture import Mixture
    from lmplay.data.rows import PackedRows
    from lmplay.data.sources import open_source
    from lmplay.data.store import open_store
    from lmplay.tokenizers import get_tokenizer

    os.environ['LMP_DATASETS'] = folder
    tokenizer = get_tokenizer('gpt2')
    source = open_source('text', spec)
    tokenizer.fingerprint, source.fingerprint()  # once in a process
    texts = [row.prompt + row.text for row in source.rows()]

    def store():
        return open_store(source, tokenizer, progress=lambda text: None)

    def mixture():
        opened = store()
        return Mixture(
            [PackedRows(opened, opened.split(0.02)[0], length=context, tokenizer=tokenizer)],
            [1.0],
            seed=0,
            stage='benchmark',
        )

    def tokenize():
        shutil.rmtree(Path(folder) / 'stores', ignore_errors=True)
        return len(store().tokens)

    def tokenizer_alone():
        return sum(map(len, tokenizer.encoding.encode_ordinary_batch(texts)))

    def first_batch():
        mixture().batch(0, rows)
        return 1

    def batch():
        nonlocal at, mixed
        if mixed is None or not Path(mixed.sources[0].store.folder).exists():
            mixed = mixture()
        at += rows
        return mixed.batch(at, rows).tokens

    def crops():
        nonlocal memory
        if memory is None:
            memory = np.array(store().tokens)
        starts = np.random.randint(0, len(memory) - context - 1, rows)
        x = torch.stack([torch.from_numpy(memory[i : i + context].astype(np.int64)) for i in starts])
        torch.stack([torch.from_numpy(memory[i + 1 : i + 1 + context].astype(np.int64)) for i in starts])
        return x.numel()

    at, mixed, memory = 0, None, None
    meter.run(
        **{
            'ours:tokenize': tokenize,
            'tokenizer:tokenize': tokenizer_alone,
            'ours:batches': batch,
            'nanogpt:batches': crops,
            'ours:open': first_batch,
        }
    )
