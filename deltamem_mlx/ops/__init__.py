"""What the memory computes: the scan in three forms, the decode step, and which one serves a call.

Nothing here knows of models, caches or adapters.
"""

import os
from collections.abc import Callable

import mlx.core as mx

from .chunk import chunk_scan
from .metal import metal_scan, metal_short, metal_step, why_not_metal
from .recurrent import recurrent_scan
from .spec import Gates, ScanSpec, Tokens, activate
from .step import DecodeStep, compiled_step
from .triangular import Short, compiled_short, is_short

__all__ = [
    "FORMS",
    "DecodeStep",
    "Gates",
    "ScanSpec",
    "Short",
    "Tokens",
    "activate",
    "delta_scan",
    "is_short",
    "short_for",
    "step_for",
]

FORMS = ("recurrent", "chunk", "metal")
VARIABLE = "DELTAMEM_SCAN"

FEW_TOKENS = 6

Pair = tuple[mx.array, mx.array]


def delta_scan(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
    *,
    form: str | None = None,
) -> Pair:
    """Return what T tokens read from the memory, and the state they leave (arXiv 2605.12357).

    Each token reads first, ``S q``, then writes ``S <- keep S - erase (S k) k^T + write v k^T``
    with the gates scaling rows of S. All forms are exact and differentiable.

    Args:
        state (mx.array): [B, H, r, r], rows value, columns key.
        q, k, v, keep, erase, write (mx.array): [B, T, H, r].
        mask (mx.array, optional): bool [B, T]; a False token reads 0 and writes nothing.
        form (str, optional): "recurrent", "chunk" or "metal". By default what the environment
          variable ``DELTAMEM_SCAN`` says, else the fastest form for the device and the sizes.

    Returns:
        tuple[mx.array, mx.array]: float32 reads [B, T, H, r] and state [B, H, r, r], whatever the
        dtypes of the inputs.

    Raises:
        ValueError: If shapes do not fit each other, or a form is unknown.
        RuntimeError: If the metal form is asked for and cannot run here.
    """
    inputs = {"q": q, "k": k, "v": v, "keep": keep, "erase": erase, "write": write}
    _check_shapes(state, inputs, mask)
    scans: dict[str, Callable[..., Pair]] = {
        "recurrent": recurrent_scan,
        "chunk": chunk_scan,
        "metal": metal_scan,
    }
    scan = scans[_pick(form, *q.shape[1::2])]
    tokens = Tokens(*(x.astype(mx.float32) for x in inputs.values()))
    mask = None if mask is None else mask.astype(mx.bool_)
    return scan(state.astype(mx.float32), *tokens, mask=mask)


def step_for(spec: ScanSpec, dtype: mx.Dtype = mx.float32) -> DecodeStep:
    """The decode step in the form that serves this device, without checks: for many calls.

    Args:
        spec (ScanSpec): The settings.
        dtype (mx.Dtype): What the reads are wanted in: the metal form gives them so.

    Returns:
        DecodeStep: Of the states, float32 [B, H, r, r], one projected token of each conversation,
        [1, B, packed_width] of any float dtype, biases added, and bool [B, 1] that is false where
        it only reads (None: all write): the reads [1, B, r·H], float32 or ``dtype``, and the
        states that follow.

    Raises:
        ValueError: If ``DELTAMEM_SCAN`` names an unknown form.
        RuntimeError: If ``DELTAMEM_SCAN`` asks for the metal form and it cannot run here.
    """
    if _pick(None, 1, spec.rank) == "metal":
        return metal_step(spec, dtype)
    return compiled_step(spec)


def short_for(spec: ScanSpec, dtype: mx.Dtype = mx.float32) -> Short | None:
    """Calls that ``is_short`` says are short, in few operations and without checks.

    Args:
        spec (ScanSpec): The settings.
        dtype (mx.Dtype): What the reads are wanted in: the metal form gives them so.

    Returns:
        Short: As ``compiled_short`` returns it. ``None``: another form serves this device, or
        ``DELTAMEM_SCAN`` asks for one.

    Raises:
        ValueError, RuntimeError: As ``step_for``.
    """
    if _pick(None, 1, spec.rank) == "metal":
        return metal_short(spec, dtype)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return compiled_short(spec) if on_cpu and not os.environ.get(VARIABLE) else None


def _check_shapes(state: mx.array, inputs: dict[str, mx.array], mask: mx.array | None) -> None:
    if state.ndim != 4 or state.shape[2] != state.shape[3]:
        raise ValueError(f"delta_scan: state is {list(state.shape)}, expected [B, H, r, r].")
    B, H, r, _ = state.shape
    T = inputs["q"].shape[1] if inputs["q"].ndim == 4 else "T"
    given = {name: list(x.shape) for name, x in inputs.items()}
    expected = {name: [B, T, H, r] for name in inputs}
    if mask is not None:
        given["mask"], expected["mask"] = list(mask.shape), [B, T]
    wrong = [name for name in given if given[name] != expected[name]]
    if wrong:
        lines = "\n".join(f"  {x}: {given[x]}, expected {expected[x]}" for x in wrong)
        raise ValueError(f"delta_scan: shapes do not fit a state {list(state.shape)}:\n{lines}")


def _pick(form: str | None, T: int, r: int) -> str:
    asked = form or os.environ.get(VARIABLE)
    source = "form=" if form else f"{VARIABLE}="
    if asked and asked not in FORMS:
        raise ValueError(f"{source}{asked} is not a form of the scan; use {', '.join(FORMS)}.")
    if asked == "metal" and (reason := why_not_metal()):
        raise RuntimeError(f"{source}metal cannot run here: {reason}. Use chunk or recurrent.")
    if asked:
        return asked
    if T and not why_not_metal():
        return "metal"
    # The maps of the chunks cost r^3 a token: up to so many tokens they do not pay.
    return "recurrent" if max(FEW_TOKENS, r**3 // 256) >= T else "chunk"
