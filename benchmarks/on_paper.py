"""Memory and communication of a training step from 1 to 1,024 GPUs, by the formulas of docs/scaling.md.

    python -m benchmarks.on_paper [--tokens-per-gpu 32768] [--micro-batches 1]

W ranks, P trained parameters (of them P_b in blocks, P_r in the root: embedding, head, last norm), F frozen
numbers, bytes of a number: 4 in fp32, 2 in bf16.
"""

import argparse
from dataclasses import dataclass

from lmplay.base.runner_list import find_runner
from lmplay.train.parallel import blocks

EXPERIMENTS = ('gpt2ish', 'gpt2_moe', 'some')
RANKS = (1, 8, 64, 256, 1024)
# One H100 or H200: dense bf16, half of which a good step reaches; NVLink and 400 Gbit/s InfiniBand for each
# GPU, one way; of eight GPUs of a machine, whose ring leaves the machine twice.
FLOPS, REACHED, WITHIN, BETWEEN = 989e12, 0.4, 450e9, 50e9
GPUS_OF_A_MACHINE = 8
LATENCY = 20e-6  # seconds of a message between two hosts


@dataclass(frozen=True)
class Sizes:
    """Of a model: trained numbers in blocks (and in the largest), in the root; frozen ones; what experts sum
    over ranks in a step; FLOPs of training on a token."""

    name: str
    blocks: int
    largest: int
    root: int
    frozen: int
    summed: int
    flops: float

    @property
    def trained(self) -> int:
        return self.blocks + self.root


def sizes(name: str, context: int = 1024) -> Sizes:
    model = find_runner(name).function().build('meta')
    of_block = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
    trained = sum(p.numel() for p in model.parameters())
    frozen = model.total_parameters() - trained
    summed = sum(
        b.numel() for n, b in model.named_buffers() if n.endswith(('query_sums_KED', 'counts_KE', 'pairs_EE'))
    )
    length = min(context, model.max_len)
    flops = model.training_flops_per_token(length)
    return Sizes(name, sum(of_block), max(of_block), trained - sum(of_block), frozen, summed, flops)


def memory(m: Sizes, ranks: int, kind: str) -> float:
    """Bytes of weights, gradients, AdamW's moments and frozen numbers on a GPU; without activations."""
    if kind == 'ddp':
        return 16 * m.trained + 2 * m.trained + 2 * m.frozen
    gathered = 2 * 2 * m.largest + 8 * m.root  # two blocks in bf16, the root and its gradients in fp32
    return 16 * m.trained / ranks + gathered + 2 * m.frozen


def sent(m: Sizes, ranks: int, kind: str, micro_batches: int = 1) -> float:
    """Bytes that a GPU sends in a step, by ring algorithms."""
    ring, sums = (ranks - 1) / ranks, 2 * 4 * m.summed
    if kind == 'ddp':
        return ring * (2 * 4 * m.trained + sums)
    passes = micro_batches * (2 * 2 * m.blocks + 4 * m.root)
    return ring * (passes + 4 * m.trained + sums)


def bandwidth(ranks: int) -> float:
    return WITHIN if ranks <= GPUS_OF_A_MACHINE else BETWEEN


def table(tokens: int, micro_batches: int) -> list[str]:
    lines = [
        '| experiment | GPUs | memory DDP, GB | memory FSDP, GB | sent DDP, GB | sent FSDP, GB | computing, '
        'ms | sending DDP, ms | sending FSDP, ms | host ring, ms |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for m in map(sizes, EXPERIMENTS):
        compute = m.flops * tokens / (FLOPS * REACHED) * 1e3
        for ranks in RANKS:
            volume = {kind: sent(m, ranks, kind, micro_batches) for kind in ('ddp', 'fsdp')}
            times = [v / bandwidth(ranks) * 1e3 for v in volume.values()]
            numbers = [memory(m, ranks, 'ddp') / 1e9, memory(m, ranks, 'fsdp') / 1e9]
            numbers += [v / 1e9 for v in volume.values()]
            cells = [f'{n:.2f}' for n in numbers] + [
                f'{n:.1f}' for n in (compute, *times, 2 * (ranks - 1) * LATENCY * 1e3)
            ]
            lines.append(f'| {m.name} | {ranks:,} | {" | ".join(cells)} |')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tokens-per-gpu', type=int, default=32_768, help='of a step (default: %(default)s)')
    parser.add_argument(
        '--micro-batches', type=int, default=1, help='of a step on each GPU (default: %(default)s)'
    )
    args = parser.parse_args()
    for name in EXPERIMENTS:
        m = sizes(name)
        print(
            f'{name}: {m.blocks / 1e6:.1f} M trained in blocks (the largest {m.largest / 1e6:.1f} M), '
            f'{m.root / 1e6:.1f} M in the root, {m.frozen / 1e6:.1f} M frozen, '
            f'{m.summed / 1e6:.2f} M summed over ranks, {m.flops / 1e9:.2f} GFLOPs a token'
        )
    print('\n'.join(['', *table(args.tokens_per_gpu, args.micro_batches)]))


if __name__ == '__main__':
    main()
