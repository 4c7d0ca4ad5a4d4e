"""Attach a memory to a loaded mlx-lm model, and take it away again."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast
from weakref import ref

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import DeltaMemConfig
from ..problems import as_whole
from .arguments import expect
from .attention import DeltaMemAttention, memory_class
from .fingerprint import AdapterMark
from .found import CachePath
from .mixins import DeltaMemModel, SelfCachingModel, StandInModel
from .names import base_model_name
from .sites import Choice, choose
from .spread import Spread

Paths = dict[CachePath, tuple[DeltaMemAttention, ...]]


@dataclass(frozen=True)
class Attached:
    """What ``detach`` needs to give the original model back, and where the memories lie.

    Args:
        paths (Paths): For each part of the prompt cache that has memories, the attentions that use
          it: several where layers share keys.
        frozen (list): The modules from before, the model first, and the names of their frozen
          parameters.
        mark (AdapterMark): Which adapter it is.
        dims (int): Width D of the hidden states that the memories are given.
        base_model (str): Which model this is.
    """

    paths: Paths
    frozen: list[tuple[ref[nn.Module], frozenset[str]]]
    mark: AdapterMark
    dims: int
    base_model: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attached":
        """Of a copy of the model: a weak reference would still be to the original."""
        alive = [(known(), names) for known, names in self.frozen]
        before = [(module, names) for module, names in alive if module is not None]
        paths: Paths = {}
        mark = _mark(copy.deepcopy(before[0][0], memo), self.mark.config, paths, self.mark.spread)
        memo[id(self.mark)] = mark  # the copied attentions take this one
        frozen = [(ref(copy.deepcopy(module, memo)), names) for module, names in before]
        paths |= copy.deepcopy(self.paths, memo)
        mark.go_on_as(self.mark, memo)
        return replace(self, paths=paths, frozen=frozen, mark=mark)


def attach(model: nn.Module, config: DeltaMemConfig, *, seed: int | None = None) -> nn.Module:
    """Patch a loaded mlx-lm model in place with a freshly initialised adapter.

    The base is frozen, the adapter trainable. Base parameters keep their names; the adapter's
    lie beside the projections of each attention.

    Args:
        model (nn.Module): A model from ``mlx_lm.load``, quantized or not.
        config (DeltaMemConfig): The adapter's settings.
        seed (int): Seed of the random initial weights; mlx's global generator stays as it is then.
          Default: they are drawn from that.

    Returns:
        nn.Module: The same model.

    Raises:
        ValueError: If the model has an adapter already, or no attention that can keep a memory, or
          the seed is negative or 2⁶⁴ or more.
    """
    expect("dm.attach(model, config)", model=model, config=config)
    if seed is not None and not 0 <= as_whole("seed", seed) < 1 << 64:
        raise ValueError(f"seed is {seed}, expected a number from 0 to 2⁶⁴ - 1.")
    refuse_attached(model)
    choice = choose(model, config)
    if choice.note:
        warnings.warn(choice.note, stacklevel=2)
    warn_of_frozen(model)
    with undo_on_failure(model), _seeded(seed):
        patch(model, config, choice)
        pack(model)
        settle(model)
    return model


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Within this context mlx's random numbers are those of a seed; afterwards as if none was."""
    if seed is None:
        yield
        return
    [key] = cast(list[mx.array], mx.random.state)
    high, low = np.array(key).tolist()  # halves of what seeds it
    mx.random.seed(seed)
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)


def patch(model: nn.Module, config: DeltaMemConfig, choice: Choice) -> None:
    """``attach`` as chosen; nothing is evaluated, and nothing undone if it fails."""
    before = _frozen(model)
    model.freeze()
    paths: Paths = {}
    mark = _mark(model, config, paths, choice.spread)
    for site in sorted(choice.sites, key=lambda site: (-site.rank, site.cache_path, site.layer)):
        if site.attention is None:
            DeltaMemAttention.draw_as_for(site.projections, config)
            continue
        attention = _patched(site.attention)
        attention.add_memory(site.layer, site.projections, config, mark)
        paths[site.cache_path] = (*paths.get(site.cache_path, ()), attention)
    _set_class(model, _model_class(type(model), _mixin(choice)))
    dims = choice.sites[0].projections.dims
    model._memory_attached = Attached(paths, [(ref(m), names) for m, names in before], mark, dims)


def _mark(model: nn.Module, config: DeltaMemConfig, paths: Paths, spread: Spread) -> AdapterMark:
    return AdapterMark(
        config,
        lambda: whole_tensors(model),
        lambda: [layer.adapter_parameters() for group in paths.values() for layer in group],
        spread,
    )


def _mixin(choice: Choice) -> type[DeltaMemModel]:
    if not choice.spread.mine:
        return StandInModel
    own_cache = any(site.own_cache for site in choice.sites)
    return SelfCachingModel if own_cache else DeltaMemModel


def detach(model: nn.Module) -> nn.Module:
    """Give the original model back: same classes, same parameters, bit-identical outputs.

    What was frozen before is frozen again, and what was trainable, trainable; layers that were put
    in since, a LoRA for one, stay as they are.

    Raises:
        ValueError: If the model has no adapter.
    """
    attached = attachment(model)
    attached.mark.keep()
    _unpatch(model)
    for module, names in attached.frozen:
        if (known := module()) is not None:
            known._no_grad = set(names)
    return model


@contextmanager
def undo_on_failure(model: nn.Module) -> Iterator[None]:
    """Whatever is raised within this context, the model is as before then, without a memory."""
    before = _frozen(model)
    try:
        yield
    except BaseException:
        _unpatch(model)
        for module, names in before:
            module._no_grad = set(names)
        raise


def _unpatch(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, DeltaMemAttention):
            module.remove_memory()
            _set_class(module, type(module).base_class)
    vars(model).pop("_memory_attached", None)
    if is_attached(model):
        _set_class(model, model.base_class)


def _frozen(model: nn.Module) -> list[tuple[nn.Module, frozenset[str]]]:
    """The modules of a model, and the names of their frozen parameters."""
    for module in model.modules():  # not every mlx-lm model calls the constructor that sets it
        vars(module).setdefault("_no_grad", set())
    return [(module, frozenset(module._no_grad)) for module in model.modules()]


def warn_of_frozen(model: nn.Module) -> None:
    """Say that a memory will freeze the model's LoRA, if it has one that is trainable."""
    if any("lora_a" in module and "lora_a" not in frozen for module, frozen in _frozen(model)):
        warnings.warn(
            "The model's LoRA layers are frozen while it has a memory: only the memory is "
            "trainable. dm.detach(model) gives them back as they were.",
            stacklevel=3,
        )


def settle(model: nn.Module) -> None:
    """Agree with all processes that have a part of the adapter on which it is, once that is in."""
    mark = attachment(model).mark
    if mark.apart:
        assert mark.fingerprint


def pack(model: nn.Module) -> None:
    """Pack the weights of all memories now, so that several threads may use the model.

    Arrays that the model keeps beside its parameters, frequencies for one, are evaluated as well:
    one that is still to be computed can be so in the thread that made it only.
    """
    mx.eval([x for m in model.modules() for name, x in m.items() if name.startswith("_")])
    for attention in memory_layers(model).values():
        attention.pack()


def is_attached(model: nn.Module) -> bool:
    """Whether the model has a δ-mem adapter."""
    return isinstance(model, DeltaMemModel)


def refuse_attached(model: nn.Module) -> None:
    """Raise ValueError if the model has an adapter already."""
    if is_attached(model):
        raise ValueError("The model has a δ-mem adapter already: call dm.detach(model) first.")


def attachment(model: nn.Module) -> Attached:
    """The patches of a model.

    Raises:
        ValueError: If the model has no adapter.
    """
    if not is_attached(model):
        raise ValueError("The model has no δ-mem adapter: call dm.load_adapter or dm.attach first.")
    attached: Attached = model._memory_attached
    return attached


def spread_of_memory(model: nn.Module) -> Spread:
    """Which processes have the model's memories: this one alone, as a rule.

    Raises:
        ValueError: If the model has no adapter.
    """
    return attachment(model).mark.spread


def set_base_model(model: nn.Module, source: str | None) -> None:
    """Keep which model this is, as mlx-lm would be given it, for what is saved from it."""
    attached = attachment(model)
    model._memory_attached = replace(attached, base_model=base_model_name(source))


def memory_layers(model: nn.Module) -> dict[int, DeltaMemAttention]:
    """Layer index → the attention that keeps a memory, in order of the layers; of those here."""
    attentions = [a for group in attachment(model).paths.values() for a in group]
    return {a.memory_layer: a for a in sorted(attentions, key=lambda a: a.memory_layer)}


def prefix_of(layer: int) -> str:
    """What the names of a layer's parameters begin with in every file, whatever the model's are."""
    return f"model.layers.{layer}.self_attn."


def tensors_of(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's parameters that act, by their names in a file, as far as they are here."""
    return {
        prefix_of(layer) + key: attention[key]
        for layer, attention in memory_layers(model).items()
        for key in attention.adapter_keys()
    }


def whole_tensors(model: nn.Module) -> dict[str, mx.array]:
    """All parameters that act, as float32.

    Where no process has all of them (``AdapterMark.apart``), all of them call it.
    """
    here = {name: x.astype(mx.float32) for name, x in tensors_of(model).items()}
    spread = spread_of_memory(model)
    if spread.pipelined:
        everyone = spread.ranks.gather(here)[::-1]  # the last process has the first layers
        return {name: x for part in everyone for name, x in part.items()}
    shares = {
        prefix_of(layer) + key: share
        for layer, attention in memory_layers(model).items()
        for key, share in attention.shared_rows().items()
    }
    if not shares:
        return here
    everyone = spread.ranks.gather({name: here[name] for name in shares})
    return here | {
        name: mx.concatenate([part[name] for part in everyone[:: share.copies]])
        for name, share in shares.items()
    }


def hold_whole(model: nn.Module) -> None:
    """Have all rows of the adapter in each process under tensor parallelism, as training needs it.

    All of them call it.
    """
    layers = memory_layers(model)
    if not any(attention.shared_rows() for attention in layers.values()):
        return
    tensors = whole_tensors(model)
    for layer, attention in layers.items():
        named = {key: tensors[prefix_of(layer) + key] for key in attention.adapter_keys()}
        attention.hold(named, rows_only=False)
    attachment(model).mark.apart = False
    pack(model)


def config_of(model: nn.Module) -> DeltaMemConfig:
    """The settings of the model's adapter."""
    return attachment(model).mark.config


@lru_cache
def _model_class(base: type[nn.Module], mixin: type[DeltaMemModel]) -> type[DeltaMemModel]:
    return type(f"DeltaMem{base.__name__}", (mixin, base), {"base_class": base})


def _patched(attention: nn.Module) -> DeltaMemAttention:
    _set_class(attention, memory_class(type(attention)))
    assert isinstance(attention, DeltaMemAttention)
    return attention


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__class__ = cls
