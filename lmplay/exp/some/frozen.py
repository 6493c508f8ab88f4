"""The frozen experts: random weights that follow from a seed, the same on every device and in every dtype.

All values are bfloat16 numbers made from random integers, one stream per expert, so they depend neither on
the device, nor on the number of threads, nor on whether training runs in fp32 or bf16.

E experts, D width of the model, F inner width of an expert.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from math import ceil, sqrt

import numpy as np
import torch
from torch import Tensor

from lmplay.errors import ExperimentError, unknown

SPARSITY = 0.5  # share of zeros in what each input feeds, as in the publication
PUBLISHED_STD = 0.01
CACHED = 1 << 16  # entries made at a time; with temporaries larger than the cache it takes 3 times as long
GELU_POWER = 0.42522  # E[gelu(z)^2] for z ~ N(0, 1)
INITS = {
    'sparse': "published: half zeros, the rest N(0, 0.01^2), which leaves a layer's output near zero",
    'sparse_scaled': 'half zeros, the rest scaled so that inputs of unit variance give outputs of unit '
    'variance when top_k experts are mixed in equal parts; not in the publication',
    'default': "torch.nn.Linear's uniform weights",
    'orthogonal': 'as torch.nn.init.orthogonal_',
}


def _bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, as uint16 with its bits (numpy lacks the type)."""
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


@lru_cache(maxsize=1)
def _normal_quantiles() -> np.ndarray:
    """65,536 equally likely values of N(0, 1): a random 16-bit integer picks one."""
    return torch.special.ndtri((torch.arange(65_536, dtype=torch.float64) + 0.5) / 65_536).numpy()


@lru_cache(maxsize=8)
def _normal_table(std: float) -> np.ndarray:
    return _bf16(_normal_quantiles() * std)


@lru_cache(maxsize=8)
def _uniform_table(bound: float) -> np.ndarray:
    return _bf16(((np.arange(65_536) + 0.5) / 32_768 - 1) * bound)


def _bits(stream: np.random.BitGenerator, *shape: int) -> np.ndarray:
    """Random uint16."""
    n = int(np.prod(shape))
    return stream.random_raw(ceil(n / 4)).astype('<u8', copy=False).view('<u2')[:n].reshape(shape)


def _sparse(stream, inputs: int, outputs: int, std: float) -> np.ndarray:
    """(inputs, outputs): exactly half of each row is 0, the rest N(0, std^2), as in torch.nn.init.sparse_."""
    weights, table = np.empty((inputs, outputs), np.uint16), _normal_table(std)
    zeros, place = ceil(SPARSITY * outputs), np.arange(outputs, dtype=np.uint32)
    rows = max(1, CACHED // outputs)
    for part in (weights[i : i + rows] for i in range(0, inputs, rows)):
        # the place makes random ranks distinct
        ranks = _bits(stream, *part.shape).astype(np.uint32) << 16 | place
        highest_zero = np.partition(ranks, zeros - 1, axis=1)[:, zeros - 1 : zeros]
        np.multiply(table.take(_bits(stream, *part.shape)), ranks > highest_zero, out=part)
    return weights


def _orthogonal(stream, inputs: int, outputs: int) -> np.ndarray:
    """Orthonormal rows or columns, uniformly (Saxe et al. 2013), as torch.nn.init.orthogonal_ does."""
    normal = _normal_quantiles().take(_bits(stream, max(inputs, outputs), min(inputs, outputs)))
    q, r = np.linalg.qr(normal)
    q *= np.sign(np.diag(r))
    return _bf16(np.ascontiguousarray(q if inputs >= outputs else q.T))


def _expert(stream, D: int, inner: int, init: str, top_k: int) -> tuple[np.ndarray, ...]:
    b1, b2 = np.zeros(inner, np.uint16), np.zeros(D, np.uint16)
    if init == 'sparse':
        return _sparse(stream, D, inner, PUBLISHED_STD), b1, _sparse(stream, inner, D, PUBLISHED_STD), b2
    if init == 'sparse_scaled':
        kept = 1 - SPARSITY
        return (
            _sparse(stream, D, inner, 1 / sqrt(kept * D)),
            b1,
            _sparse(stream, inner, D, sqrt(top_k / (kept * inner * GELU_POWER))),
            b2,
        )
    if init == 'orthogonal':
        return _orthogonal(stream, D, inner), b1, _orthogonal(stream, inner, D), b2
    # torch.nn.Linear's own weights
    w1 = _uniform_table(1 / sqrt(D)).take(_bits(stream, D, inner))
    return w1, b1, _uniform_table(1 / sqrt(inner)).take(_bits(stream, inner, D)), b2


def frozen_experts(
    *,
    num_experts: int,
    embed_dim: int,
    d_ffn: int,
    top_k: int,
    init: str,
    seed: int,
    layer: int,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """w1 (E, D, F), b1 (E, F), w2 (E, F, D), b2 (E, D), all bfloat16, and their SHA-256 as uint8 (32,).

    init: one of INITS. Biases are 0 for all of them, as in the published code. On the meta device nothing is
    generated and the digest means nothing. Raises ExperimentError for an unknown init.
    """
    if init not in INITS:
        raise ExperimentError(unknown('init', init, INITS, 'the experts of SoME'))
    E, D, inner = num_experts, embed_dim, d_ffn
    shapes = (E, D, inner), (E, inner), (E, inner, D), (E, D)
    if device.type == 'meta':
        return (
            *(torch.empty(s, dtype=torch.bfloat16, device=device) for s in shapes),
            torch.empty(32, dtype=torch.uint8, device=device),
        )
    stacked = [np.empty(s, np.uint16) for s in shapes]

    def make(expert: int) -> bytes:
        digest = hashlib.sha256()
        stream = np.random.SFC64(np.random.SeedSequence((seed, layer, expert)))
        for whole, part in zip(stacked, _expert(stream, D, inner, init, top_k)):
            whole[expert] = part
            digest.update(part.data)
        return digest.digest()

    with ThreadPoolExecutor() as pool:
        digest = hashlib.sha256(b''.join(pool.map(make, range(E)))).digest()
    tensors = (torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16).to(device) for whole in stacked)
    return *tensors, torch.tensor(list(digest), dtype=torch.uint8, device=device)
