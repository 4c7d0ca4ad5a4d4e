"""Whether an adapter is whole and its shapes agree, without the model it is for."""

import re
from collections.abc import Iterator

from ..config import HEADS, DeltaMemConfig
from ..model.fingerprint import is_off
from ..model.parameters import adapter_shapes
from ..model.projections import Projections
from ..problems import first_few
from .files import AdapterFiles

NAME = re.compile(r"model\.layers\.(\d+)\.self_attn\.(\w+)")
Shapes = dict[str, list[int]]


def check_tensors(adapter: AdapterFiles) -> None:
    """Check names and shapes of an adapter's tensors against its settings and each other.

    The widths of a model's projections are not known here: each layer's are taken from its own
    corrections, the width of the hidden states from the config's ``base_model`` or the first layer.

    Raises:
        ValueError: If tensors are missing, foreign, or of a wrong shape; the first few are listed.
    """
    layers: dict[int, Shapes] = {}
    foreign = []
    for name, tensor in adapter.tensors.items():
        found = NAME.fullmatch(name)
        if found:
            layers.setdefault(int(found[1]), {})[found[2]] = list(tensor.shape)
        else:
            foreign.append(f"{name}: expected names like model.layers.0.self_attn.memory_q_proj")
    wanted = adapter.config.target_layers
    absent = [f"layer {i}: no tensors" for i in wanted if i not in layers]
    absent += [] if layers or wanted else ["no layer has tensors"]
    foreign += [f"layer {i}: not among target_layers" for i in layers if wanted and i not in wanted]
    wrong = list(_wrong(layers, adapter))
    if foreign or absent or wrong:
        problems = [line for kind in (absent, foreign, wrong) for line in first_few(kind)]
        lines = "\n  ".join(problems)
        raise ValueError(f"The adapter in {adapter.folder} is not whole:\n  {lines}")


def _wrong(layers: dict[int, Shapes], adapter: AdapterFiles) -> Iterator[str]:
    dims = adapter.base_model.get("hidden_size")
    for layer, given in sorted(layers.items()):
        memory = given.get("memory_q_proj", [])
        if dims is None and len(memory) == 2:
            dims = memory[1]
        expected = _expected(given, dims if isinstance(dims, int) else 0, adapter.config)
        for name in sorted(expected.keys() | given.keys()):
            place = f"model.layers.{layer}.self_attn.{name}"
            if name not in expected:
                yield f"{place}: not used with these settings"
            elif name not in given:
                if not is_off(name, adapter.config):
                    yield f"{place}: missing"
            elif given[name] != expected[name]:
                yield f"{place}: {given[name]}, expected {expected[name]}"


def _expected(given: Shapes, dims: int, config: DeltaMemConfig) -> Shapes:
    widths = tuple((head, (given.get(f"delta_{head}_proj") or [0])[0]) for head in HEADS)
    return adapter_shapes(Projections((), None, 1, widths, dims), config)
