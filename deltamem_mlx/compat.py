"""Every private or fragile seam with mlx-lm in one place: what is used, and why.

Read in mlx-lm 0.32.2; ``pyproject.toml`` allows no later minor version, because these may change in
one. ``tests/root/test_compat.py`` fails with a sentence where one of them moved.
"""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as mlx_cache

# What all of mlx-lm's caches inherit: its ``from_state`` and defaults make a cache savable. There
# is no public base class.
from mlx_lm.models.cache import _BaseCache as BaseCache
from mlx_lm.models.cache import make_prompt_cache

if TYPE_CHECKING:
    from mlx_lm.server import GenerationArguments
    from mlx_lm.tokenizer_utils import TokenizerWrapper

__all__ = [
    "BaseCache",
    "format_top_logprobs",
    "load_adapters_with",
    "make_logits_processors",
    "make_sampler",
    "make_savable",
    "original_load_adapters",
    "trains_layers",
    "wanted_max_kv_size",
    "writes_model",
]

LoadAdapters = Callable[[nn.Module, str], nn.Module]
_ORIGINAL = "before_deltamem"


def make_savable(cls: type[BaseCache]) -> type[BaseCache]:
    """Let ``load_prompt_cache`` find a cache class: it looks names up in mlx-lm's own module."""
    setattr(mlx_cache, cls.__name__, cls)
    return cls


def wanted_max_kv_size(caller: FrameType) -> int | None:
    """The ``max_kv_size`` that ``make_prompt_cache`` was called with, if that is the caller.

    It asks a model that has a ``make_cache`` of its own without passing ``max_kv_size`` on.
    """
    if caller.f_code is not make_prompt_cache.__code__:
        return None
    return caller.f_locals.get("max_kv_size")


def writes_model(caller: FrameType) -> bool:
    """Whether mlx-lm asks for a model's parameters to write them as a model of its own.

    What is in such a file has to be what its own class of the model has.
    """
    return _is_one_of(caller, (("mlx_lm.utils", "save_model"), ("mlx_lm.fuse", "main")))


def trains_layers(caller: FrameType) -> bool:
    """Whether mlx-lm asks for trainable parameters to train, or to save, layers of its own.

    Its trainer writes all that is trainable into one file of an adapter.
    """
    trainers = (("mlx_lm.tuner.trainer", "train"), ("mlx_lm.quant.dwq", "dwq_quantize"))
    return _is_one_of(caller, trainers)


def _is_one_of(caller: FrameType, functions: Sequence[tuple[str, str]]) -> bool:
    found = (getattr(sys.modules.get(module), name, None) for module, name in functions)
    return any(caller.f_code is getattr(function, "__code__", None) for function in found)


def load_adapters_with(wrap: Callable[[LoadAdapters], LoadAdapters] | None) -> None:
    """Replace what ``mlx_lm.load(adapter_path=…)`` calls by ``wrap`` of it; None: undo that.

    mlx-lm has no registry of adapter types. Commands that imported the function by name
    before, ``mlx_lm.lora`` for one, are told as well.
    """
    original = original_load_adapters()
    new = original
    if wrap is not None:
        new = wraps(original)(wrap(original))
        setattr(new, _ORIGINAL, original)
    old = sys.modules["mlx_lm.tuner.utils"].load_adapters
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.") and getattr(module, "load_adapters", None) is old:
            module.load_adapters = new  # type: ignore[attr-defined]  # a module's own global


def original_load_adapters() -> LoadAdapters:
    """mlx-lm's own function, whether or not it was replaced."""
    from mlx_lm.tuner import utils

    found: LoadAdapters = utils.load_adapters
    return getattr(found, _ORIGINAL, found)


# mlx-lm's server makes samplers of a request's arguments by functions that are private, and whose
# behaviour its clients rely on.


def make_sampler(
    args: "GenerationArguments", tokenizer: "TokenizerWrapper"
) -> Callable[[mx.array], mx.array]:
    """The sampler that mlx-lm's server makes of a request's arguments."""
    from mlx_lm.server import _make_sampler

    sampler: Callable[[mx.array], mx.array] = _make_sampler(args, tokenizer)
    return sampler


def make_logits_processors(
    args: "GenerationArguments",
) -> list[Callable[[mx.array, mx.array], mx.array]]:
    """The penalties and biases that mlx-lm's server makes of a request's arguments."""
    from mlx_lm.server import _make_logits_processors

    processors: list[Callable[[mx.array, mx.array], mx.array]] = _make_logits_processors(args)
    return processors


def format_top_logprobs(
    logprobs: mx.array, top: int, tokenizer: "TokenizerWrapper"
) -> tuple[dict[str, object], ...]:
    """The most likely tokens of a step, as mlx-lm's server lists them."""
    from mlx_lm.server import _format_top_logprobs

    return _format_top_logprobs(logprobs, top, tokenizer)
