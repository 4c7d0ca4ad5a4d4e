"""What a projected token means: the layout of its projections, and what is made of them."""

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from .seams import split
from .squash import sigmoid, tanh

NORM_FLOOR = 1e-6


@dataclass(frozen=True)
class ScanSpec:
    """The settings that decide what a projected token reads and writes.

    Projections are laid out as ``[H, r, J]`` with J = q, k, v, beta, (lambda,) k: all that one
    row of the state needs lies side by side, gates shared by a head are repeated, and the second
    k becomes the row vector of the write. ``pack`` puts the rows of a weight into that order,
    once, when an adapter is attached or loaded.
    """

    rank: int
    heads: int
    normalize_qk: bool = True
    state_update_mode: str = "standard"
    rankwise_gates: bool = True
    uses_lambda: bool = False

    @property
    def read_width(self) -> int:
        return self.rank * self.heads

    @property
    def entries(self) -> int:
        return 6 if self.uses_lambda else 5

    @property
    def packed_width(self) -> int:
        return self.read_width * self.entries

    @property
    def projected_width(self) -> int:
        gate_width = self.read_width if self.rankwise_gates else self.heads
        return 3 * self.read_width + (self.entries - 4) * gate_width

    def pack(self, weight: mx.array) -> mx.array:
        """Return the rows of a weight or bias in packed order.

        Args:
            weight (mx.array): [P, ...], rows q M, k M, v M, beta G and, if used, lambda G, each
              of them head-major.

        Returns:
            mx.array: [packed_width, ...], of the same dtype.
        """
        M = self.read_width
        rows = mx.arange(self.projected_width)
        qkv, gates = rows[: 3 * M].reshape(3, M), rows[3 * M :].reshape(self.entries - 4, -1)
        gates = mx.repeat(gates, M // gates.shape[1], axis=1)
        return weight[mx.concatenate([qkv, gates, qkv[1:2]]).T.flatten()]


class Gates(NamedTuple):
    """How much of each state row a token keeps, erases and writes, each float32 [B, T, H, r]."""

    keep: mx.array
    erase: mx.array
    write: mx.array


class Tokens(NamedTuple):
    """What the scan is given of each token, in the order in which ``delta_scan`` takes it.

    Args:
        q, k, v (mx.array): Queries, keys and values, float32 [B, T, H, r].
        keep, erase, write (mx.array): The gates, of the same shape.
    """

    q: mx.array
    k: mx.array
    v: mx.array
    keep: mx.array
    erase: mx.array
    write: mx.array

    @property
    def gates(self) -> Gates:
        """The last three."""
        return Gates(self.keep, self.erase, self.write)

    def held(self, writes: mx.array) -> "Tokens":
        """The same with gates under which tokens only read where ``writes`` is false.

        Args:
            writes (mx.array): bool [B, T], or [B, 1].
        """
        on = writes[..., None, None]
        return self._replace(
            keep=mx.where(on, self.keep, 1.0),
            erase=mx.where(on, self.erase, 0.0),
            write=mx.where(on, self.write, 0.0),
        )


def activate(projected: mx.array, spec: ScanSpec) -> Tokens:
    """Return queries, keys, values and gates of projected tokens (arXiv 2605.12357).

    Args:
        projected (mx.array): [B, T, packed_width], any float dtype, biases added.
        spec (ScanSpec): The settings.

    Returns:
        Tokens: Each part float32 [B, T, H, r].

    Raises:
        ValueError: If the last axis does not have the packed width.
    """
    B, T, width = projected.shape
    if width != spec.packed_width:
        raise ValueError(
            f"activate: projected has {width} columns, expected {spec.packed_width} for {spec}. "
            "Project with weights that ScanSpec.pack has ordered."
        )
    y = projected.astype(mx.float32).reshape(B, T, spec.heads, spec.rank, spec.entries)
    qk, v, gates, _ = split(y, [2, 3, spec.entries - 1], axis=-1)
    if spec.normalize_qk:
        qk = tanh(qk)
    q, k, v = qk[..., 0], qk[..., 1], v[..., 0]
    if spec.normalize_qk:
        q, k = _normalize(q), _normalize(k)
    gates = sigmoid(gates)
    keep, erase, write = coefficients([gates[..., i] for i in range(spec.entries - 4)], spec)
    return Tokens(q, k, v, mx.broadcast_to(keep, v.shape), erase, write)


def _normalize(x: mx.array) -> mx.array:
    # The floor comes first: the gradient of a root is infinite at zero.
    return x / mx.sqrt(mx.maximum(mx.square(x).sum(-1, keepdims=True), NORM_FLOOR**2))


def coefficients(gates: list[mx.array], spec: ScanSpec) -> Gates:
    """Return keep, erase and write from beta and, where it is a gate of its own, lambda."""
    beta = gates[0]
    if spec.state_update_mode == "no_lambda":
        return Gates(mx.array(1.0), beta, beta)
    keep = gates[1] if spec.uses_lambda else 1 - beta
    erase = keep * beta if spec.state_update_mode == "lambda_outside" else beta
    return Gates(keep, erase, beta)
