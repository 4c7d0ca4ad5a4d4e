"""The scan alone: each form of it, forward and with gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..ops import FORMS, delta_scan
from .timing import Effort, Samples, alternate

RANK = 8
REFERENCE = "recurrent"


@dataclass(frozen=True)
class ScanRow:
    """One form of the scan over T tokens of one conversation.

    Args:
        form (str): recurrent, chunk or metal.
        heads (int): State heads H.
        length (int): Tokens T.
        forward, backward (Samples): Seconds of the scan, and of the scan with all gradients.
        speedup (tuple[Samples, Samples]): The recurrent form's seconds over these.
    """

    form: str
    heads: int
    length: int
    forward: Samples
    backward: Samples
    speedup: tuple[Samples, Samples]

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"form": self.form, "heads": self.heads, "length": self.length}
        for i, (name, seconds) in enumerate(
            [("forward", self.forward), ("forward_backward", self.backward)]
        ):
            speedup = self.speedup[i].to_dict()
            row[name] = {"seconds": seconds.to_dict(), "speedup_over_recurrent": speedup}
        return row


def scan_rows(heads: int, length: int, effort: Effort) -> list[ScanRow]:
    """All forms that run on this machine, in turn."""
    inputs = random_inputs(heads, length)
    forms = usable_forms()
    forward = alternate({f: _forward(f, inputs, effort) for f in forms}, effort)
    backward = alternate({f: _backward(f, inputs, effort) for f in forms}, effort)
    return [
        ScanRow(
            *(form, heads, length, forward[form], backward[form]),
            (forward[REFERENCE].over(forward[form]), backward[REFERENCE].over(backward[form])),
        )
        for form in forms
    ]


def usable_forms() -> list[str]:
    """The forms of the scan that run on this machine."""
    return [form for form in FORMS if _runs(form)]


def _runs(form: str) -> bool:
    try:
        delta_scan(*random_inputs(1, 1), form=form)
    except RuntimeError:
        return False
    return True


def random_inputs(heads: int, length: int) -> list[mx.array]:
    """State, q, k, v, keep, erase, write as an adapter would make them: unit q and k, coupled."""
    shape = (1, length, heads, RANK)
    state = 0.1 * mx.random.normal((1, heads, RANK, RANK))
    q, k, v = (mx.random.normal(shape) for _ in range(3))
    q, k = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    write = mx.sigmoid(mx.random.normal(shape) - 1.5)
    inputs = [state, q, k, v, 1 - write, write, mx.array(write)]
    mx.eval(inputs)
    return inputs


def _forward(form: str, inputs: list[mx.array], effort: Effort) -> Callable[[], float]:
    return lambda: effort.time(lambda: mx.eval(delta_scan(*inputs, form=form)))


def _backward(form: str, inputs: list[mx.array], effort: Effort) -> Callable[[], float]:
    def loss(*inputs: mx.array) -> mx.array:
        reads, state = delta_scan(*inputs, form=form)
        return reads.square().sum() + state.square().sum()

    gradients = mx.grad(loss, argnums=tuple(range(len(inputs))))
    return lambda: effort.time(lambda: mx.eval(gradients(*inputs)))
