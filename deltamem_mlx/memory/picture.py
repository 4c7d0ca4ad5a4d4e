"""The states of a memory as a small picture in HTML, for notebooks; no plotting is needed."""

import base64
import struct
import zlib
from collections.abc import Mapping

import numpy as np

_LAYERS, _SIDE = 6, 96
_POSITIVE, _NEGATIVE = np.array([178, 24, 43]), np.array([33, 102, 172])


def states_html(states: Mapping[int, np.ndarray]) -> str:
    """Up to six layers side by side: red entries are positive, blue ones negative, white is 0.

    Args:
        states (Mapping[int, np.ndarray]): Layer index → [B, H, r, r]; the first conversation is
          drawn, its state heads beside each other.
    """
    layers = sorted(states)
    places = np.linspace(0, len(layers) - 1, min(_LAYERS, len(layers))).round().astype(int)
    chosen = {layers[i]: np.concatenate(list(states[layers[i]][0]), axis=1) for i in places}
    entries = np.abs(np.concatenate([tile.ravel() for tile in chosen.values()]))
    limit = float(np.quantile(entries, 0.995)) or 1.0
    return "".join(_layer(layer, tile / limit) for layer, tile in chosen.items())


def _layer(layer: int, tile: np.ndarray) -> str:
    width = _SIDE * tile.shape[1] // tile.shape[0]
    data = base64.b64encode(_png(_colors(tile))).decode()
    return (
        f'<figure style="display:inline-block;margin:4px">'
        f'<img alt="The state of layer {layer}" width="{width}" height="{_SIDE}" '
        f'style="image-rendering:pixelated" src="data:image/png;base64,{data}">'
        f'<figcaption style="font-size:smaller">layer {layer}</figcaption></figure>'
    )


def _colors(tile: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3]"""
    strength = np.clip(np.abs(tile), 0, 1)[..., None]
    full = np.where(tile[..., None] > 0, _POSITIVE, _NEGATIVE)
    return np.asarray(255 + strength * (full - 255)).round().astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
