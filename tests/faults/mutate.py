"""Damage to a file: bits, length, order, and JSON of another shape."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable

NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**30), 1e308, 1e-320, 0.5, True)
ODD_TEXTS = ('', '\0', '\ud800', '../../x', '/', 'x' * 5000, '9' * 5000, '\x1b[2J', '[/b]', '$x_$', 'nan')
ODD = (None, [], {}, [[]], {'': {}}, *NUMBERS, *ODD_TEXTS, float('nan'), float('inf'), [1, 'a'], {'a': None})


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to three bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] if data else b''


def empty(data: bytes, rng: random.Random) -> bytes:
    return b''


def zeros(data: bytes, rng: random.Random) -> bytes:
    """A block that was never written, as after a power failure."""
    start = rng.randrange(len(data)) if data else 0
    end = min(len(data), start + rng.choice((1, 16, 512, 4096)))
    return data[:start] + bytes(end - start) + data[end:]


def grow(data: bytes, rng: random.Random) -> bytes:
    more = rng.choice((b'\0', b'{}', b'\n', b'x' * 100, data))
    return data + more if rng.random() < 0.7 else more + data


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two blocks in each other's place."""
    size = rng.choice((1, 8, 64))
    if len(data) < 2 * size:
        return data[::-1]
    a, b = sorted(rng.sample(range(0, len(data) - size + 1), 2))
    b = max(b, a + size)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def deep(data: bytes, rng: random.Random) -> bytes:
    open_, close = rng.choice((('[', ']'), ('{"a":', '}')))
    return (open_ * 100_000 + '1' + close * 100_000).encode()


def latin(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((b'\xff', b'\xed\xa0\x80', b'\x00', b'\xef\xbb\xbf')) + data[at:]


def digits(data: bytes, rng: random.Random) -> bytes:
    """A digit becomes another one."""
    places = [i for i, b in enumerate(data) if 48 <= b <= 57]
    if not places:
        return flip(data, rng)
    at = rng.choice(places)
    other = rng.choice([d for d in b'0123456789' if d != data[at]])
    return data[:at] + bytes([other]) + data[at + 1 :]


BYTES: tuple[Callable, ...] = (flip, flip, truncate, empty, zeros, grow, swap)
TEXTS: tuple[Callable, ...] = (*BYTES, deep, latin, digits)


def reshape(content, rng: random.Random):
    """A JSON value with one part of it dropped, renamed, doubled or replaced by an odd one."""
    if isinstance(content, (dict, list)) and content and rng.random() < 0.8:
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        copy = content.copy()
        kind = rng.random()
        if kind < 0.2:
            del copy[key]
        elif kind < 0.3 and isinstance(copy, dict):
            copy[str(rng.choice(ODD_TEXTS))] = copy.pop(key)
        elif kind < 0.35 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = reshape(content[key], rng)
        return copy
    return rng.choice(ODD)


def to_bytes(content) -> bytes:
    return json.dumps(content).encode('utf-8', 'surrogatepass')


def json_shape(data: bytes, rng: random.Random) -> bytes:
    return to_bytes(reshape(json.loads(data), rng))


def line_shape(data: bytes, rng: random.Random) -> bytes:
    """A line of JSON lines reshaped, dropped, doubled, torn, or moved."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.random()
    if kind < 0.6:
        lines[at] = to_bytes(reshape(json.loads(lines[at]), rng)) + b'\n'
    elif kind < 0.7:
        del lines[at]
    elif kind < 0.8:
        lines.insert(at, lines[at])
    elif kind < 0.9:
        lines[at] = truncate(lines[at], rng)
    else:
        lines.reverse()
    return b''.join(lines)


def npz_shape(data: bytes, rng: random.Random) -> bytes:
    """An archive of arrays with one of them missing, of another kind, shape or length."""
    import numpy as np

    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    name = rng.choice(list(arrays))
    array = arrays[name]
    changes = (
        lambda: array[:-1],
        lambda: np.append(array, array[:1]),
        lambda: array.astype(str),
        lambda: array[:0],
        lambda: array.reshape(-1, 1),
        lambda: np.float64(1),
        lambda: np.full(array.shape, np.nan),
        lambda: np.zeros(array.shape, bool),
        lambda: np.zeros(array.shape, 'M8[s]'),
        lambda: None,
    )
    changed = rng.choice(changes)()
    arrays.pop(name)
    if changed is not None:
        arrays[name] = changed
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def zip_member(data: bytes, rng: random.Random) -> bytes:
    """A zip archive, whole by its own checksums, of which one member is damaged."""
    source, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    chosen = rng.choice(source.namelist())
    with zipfile.ZipFile(out, 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, rng.choice(BYTES)(content, rng) if name == chosen else content)
    return out.getvalue()


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """Weights whose header says something else."""
    (size,) = struct.unpack('<Q', data[:8])
    header = to_bytes(reshape(json.loads(data[8 : 8 + size]), rng))
    return struct.pack('<Q', len(header)) + header + data[8 + size :]


def damages_of(name: str) -> tuple[Callable, ...]:
    """What may happen to a file of this name."""
    if name.endswith('.jsonl'):
        return (*TEXTS, *[line_shape] * 6)
    if name.endswith('.json'):
        return (*TEXTS, *[json_shape] * 8)
    if name.endswith('.npz'):
        return (*BYTES, *[npz_shape] * 4, zip_member)
    if name.endswith('.pt'):
        return (*BYTES, zip_member)
    if name.endswith('.safetensors'):
        return (*BYTES, *[safetensors_header] * 2)
    return TEXTS if name.endswith('.csv') else BYTES
