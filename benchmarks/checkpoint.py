"""Saving and loading a checkpoint (weights, AdamW's moments, state), against torch.save and torch.load of the
same tensors.

A save counts once it is on the disk (fsync), for both. Both in one process that keeps freed memory, as
lmp_trainer does. `checksums` is what of a load goes into comparing the files with theirs.
"""

import tempfile

from .measure import milliseconds, rows_by_part

COLUMNS = ['name', 'part', 'shape', 'megabytes', 'threads', 'ms', 'mb_per_second']


def run(args) -> list[dict]:
    table = []
    for shape in args.shape or (['1x64'] if args.quick else ['4x256']):
        for threads in args.threads:
            with tempfile.TemporaryDirectory(prefix='lmplay-benchmark-') as folder:

                def figures(samples):
                    megabytes = samples[0]['units'] / samples[0]['steps']
                    found = milliseconds(samples)
                    return found | {
                        'megabytes': round(megabytes, 1),
                        'mb_per_second': round(megabytes / found['ms'] * 1e3, 1),
                    }

                options = {'shape': shape, 'folder': folder, 'device': args.device}
                rows = rows_by_part('checkpoint', options, args, figures, threads=threads, shape=shape)
            for row in rows:
                row['name'], row['part'] = row['name'].split(':')
            table += rows
    return table


def run_checkpoint(meter, *, shape, folder, device) -> None:
    import os
    import shutil
    from pathlib import Path

    import torch

    from lmplay.base.runner_list import find_runner
    from lmplay.device import keep_freed_memory
    from lmplay.files import checksum
    from lmplay.runs.checkpoint import load_optimizer, load_weights, save_checkpoint

    from .measure import shape_of

    keep_freed_memory()
    s = shape_of(shape)
    model = (
        find_runner('gpt2ish')
        .function(num_blocks=s['layers'], embed_dim=s['dim'], num_heads=s['heads'], max_len=256)
        .build(device)
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    megabytes = sum(p.numel() for p in model.parameters()) * 4 * 3 / 1e6
    ours, torchs = Path(folder) / 'ours', Path(folder) / 'torch.pt'

    def save():
        shutil.rmtree(ours, ignore_errors=True)
        save_checkpoint(ours, model, {'optimizer': optimizer.state_dict()}, {})
        return megabytes

    def load():
        load_weights(model, ours)
        optimizer.load_state_dict(load_optimizer(ours)['optimizer'])
        return megabytes

    def torch_save():
        with open(torchs, 'wb') as file:
            torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        return megabytes

    def torch_load():
        state = torch.load(torchs, map_location=device, weights_only=True)
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        return megabytes

    def checksums():
        for file in ours.iterdir():
            checksum(file)
        return megabytes

    parts = {'ours:save': save, 'torch:save': torch_save, 'ours:load': load, 'torch:load': torch_load}
    meter.run(**parts, **{'ours:checksums': checksums})
