"""MLX functions whose stubs say less than what they take and return, said once."""

from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar, cast

import mlx.core as mx

P = ParamSpec("P")
R = TypeVar("R")
Arrays = tuple[mx.array, ...]
Constant = tuple[str, int | bool | mx.Dtype]  # of a kernel: its name and value, or type


def split(x: mx.array, parts: int | Sequence[int], axis: int = 0) -> list[mx.array]:
    """``mx.split``, whose stub says that it returns one array."""
    return list(mx.split(x, parts, axis))


class Kernel(Protocol):
    """What ``mx.fast.metal_kernel`` makes; its stub says ``object``."""

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array | int],
        template: Sequence[Constant],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]: ...


def metal_kernel(
    name: str, inputs: list[str], outputs: list[str], source: str, header: str = ""
) -> Kernel:
    """``mx.fast.metal_kernel``, compiled at its first call."""
    return cast(Kernel, mx.fast.metal_kernel(name, inputs, outputs, source, header))


def with_gradient(
    function: Callable[P, R], gradient: Callable[..., mx.array | Arrays]
) -> Callable[P, R]:
    """``function`` with a gradient of its own, as ``mx.custom_function`` makes it.

    Args:
        function (Callable): Of arrays only.
        gradient (Callable): Of the primals, the cotangents and the outputs, each alone where there
          is one, a tuple where there are several; it returns the primals' gradients likewise.
    """
    custom = mx.custom_function(function)
    custom.vjp(gradient)
    return cast(Callable[P, R], custom)
