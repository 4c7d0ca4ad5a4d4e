"""What the figures were measured on."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

FAST_BLAS = ("libopenblas", "libmkl", "libblis")

BLAS_HINT = (
    "Matrix products run on MLX's built-in BLAS, several times slower than OpenBLAS, so these "
    "figures say little. Install OpenBLAS (Debian: apt install libopenblas0) and run again with "
    "LD_PRELOAD=libopenblas.so.0."
)


def machine_facts() -> dict[str, Any]:
    """Device, versions, and on a CPU the BLAS that multiplies matrices."""
    info = mx.device_info()
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return {
        "device": f"{mx.default_device().type.name} ({info.get('device_name', 'unnamed')})",
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "blas": blas() if on_cpu else None,
    }


def blas(maps: Path = Path("/proc/self/maps")) -> str:
    """The BLAS library that MLX's CPU build calls: accelerate, built-in, or one preloaded."""
    if sys.platform == "darwin":
        return "accelerate"
    try:
        names = [line.rpartition("/")[2] for line in maps.read_text().splitlines()]
    except OSError:
        return "unknown"
    # numpy brings an OpenBLAS of its own, under another name, that MLX never calls.
    found = [fast for fast in FAST_BLAS if any(name.startswith(fast) for name in names)]
    return found[0].removeprefix("lib") if found else "built-in"


def blas_hint() -> str | None:
    """What to do about a slow BLAS, if MLX computes on a CPU with one."""
    return BLAS_HINT if machine_facts()["blas"] == "built-in" else None
