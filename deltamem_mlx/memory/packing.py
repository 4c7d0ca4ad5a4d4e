"""A row of states of one memory in few bytes, bit for bit.

What successive turns leave is alike in sign, exponent and first digits: differences as bits, equal
bytes of all numbers side by side, then zlib.
"""

import zlib
from collections.abc import Sequence

import numpy as np


def pack_states(states: Sequence[np.ndarray]) -> np.ndarray:
    """States of one shape, float32, as bytes: uint8 [N]."""
    if not states:
        return np.zeros(0, np.uint8)
    bits = np.stack([np.ascontiguousarray(s, np.float32).view(np.uint32).ravel() for s in states])
    bits[1:] ^= bits[:-1].copy()
    planes = bits.view(np.uint8).reshape(-1, 4).T
    return np.frombuffer(zlib.compress(planes.tobytes(), 6), np.uint8)


def unpack_states(packed: np.ndarray, count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The states that ``pack_states`` was given: ``count`` of ``shape``, float32.

    Raises:
        ValueError: If that is not what was packed.
    """
    size = 4 * count * int(np.prod(shape))
    try:
        reader = zlib.decompressobj()
        data = reader.decompress(packed.tobytes(), size + 1) if size else b""
    except zlib.error as error:
        raise ValueError(f"states cannot be unpacked: {error}") from None
    if len(data) != size:
        raise ValueError(f"states of another size: expected {size:,} bytes")
    if not count:
        return []
    bits = np.frombuffer(data, np.uint8).reshape(4, -1).T.copy().view(np.uint32)
    bits = bits.reshape(count, -1)
    for i in range(1, count):
        bits[i] ^= bits[i - 1]
    return [row.view(np.float32).reshape(shape) for row in bits]
