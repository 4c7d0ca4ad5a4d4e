"""Whether an adapter fits a model, and where its memories go."""

import warnings

import mlx.core as mx
import mlx.nn as nn

from ..model.fingerprint import is_off
from ..model.parameters import adapter_shapes
from ..model.patch import prefix_of
from ..model.sites import Choice, choose
from ..problems import first_few, shortened
from .files import AdapterFiles
from .ports import with_gates


def fitting(model: nn.Module, adapter: AdapterFiles) -> tuple[Choice, dict[str, mx.array]]:
    """Where the adapter's memories go, and its tensors, if they are just what the model needs.

    Raises:
        ValueError: If they are not; of every kind of misfit the first few are listed.
    """
    try:
        choice = choose(model, adapter.config)
    except ValueError as error:
        raise ValueError(_misfit(adapter, [str(error)])) from error
    expected = {
        prefix_of(site.layer) + name: shape
        for site in choice.sites
        for name, shape in adapter_shapes(site.projections.whole, adapter.config).items()
    }
    tensors = with_gates(adapter.tensors, choice.sites)
    given = {n: list(t.shape) for n, t in tensors.items()}
    shapes = [
        f"{name}: adapter {given[name]}, model {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    needed = {n for n in expected if not is_off(n, adapter.config)}
    missing = [f"{name}: missing in the adapter" for name in sorted(needed - given.keys())]
    surplus = []
    layers = choice.spread.layers
    for name in sorted(given.keys() - expected.keys()):
        parts = name.split(".")
        beyond = len(parts) > 2 and parts[2].isdigit() and int(parts[2]) >= layers
        reason = f"the model has {layers} layers" if beyond else "not used by this model and config"
        surplus.append(f"{shortened(name, 120)[1:-1]}: {reason}")
    if shapes or missing or surplus:
        problems = [line for kind in (shapes, missing, surplus) for line in first_few(kind)]
        raise ValueError(_misfit(adapter, problems))
    if choice.note:
        warnings.warn(choice.note, stacklevel=4)
    return choice, tensors


def _misfit(adapter: AdapterFiles, problems: list[str]) -> str:
    named = f": {shortened(adapter.base_name)[1:-1]}" if adapter.base_name else ""
    lines = "\n  ".join(problems)
    return (
        f"Adapter '{adapter.folder}' does not fit this model:\n  {lines}\n"
        f"Load the model it was trained on{named}."
    )
