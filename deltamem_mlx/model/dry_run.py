"""What a model's attentions are called with: one token is run through it, and never evaluated."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, make_prompt_cache

from .layer_cache import NoKeys
from .layout import counts, find_gate, find_layout
from .projections import Projections, view_of


@dataclass
class WhatRan:
    """What one attention was seen to do with one token.

    Args:
        width (int): Width D of what it was given.
        caches (list[object]): The caches it was called with, ``None`` left out.
        own_cache (bool): Whether the model hands it one when called without a prompt cache.
        called (set[str]): Which of the attributes with its projections it called itself.
        layout (Projections): Its projections, with the layout of packed rows; ``None``: that is
          not one of the known.
    """

    width: int = 0
    caches: list[object] = field(default_factory=list)
    own_cache: bool = False
    called: set[str] = field(default_factory=set)
    layout: Projections | None = None


class Noting:
    """A projection that notes that it was called."""

    def __init__(self, projection: nn.Module, name: str, called: set[str]):
        self.projection, self.name, self.called = projection, name, called

    def __call__(self, x: mx.array) -> mx.array:
        self.called.add(self.name)
        y: mx.array = self.projection(x)
        return y

    def __getattr__(self, name: str) -> object:
        return getattr(self.projection, name)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Within this context the model can be run without being computed.

    Some clip their weights in the forward: what is not computed would stay in their place, and can
    be computed later by the same thread only.
    """
    before = [(module, dict(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, items in before:
            dict.update(module, items)


class DryRun:
    """Runs a token through a model and notes what its attentions do.

    Args:
        model (nn.Module): A model without a memory.
        attentions (list[tuple[nn.Module, Projections]]): Those to watch.

    Attributes:
        caches (list[object]): The prompt cache that the token was run with. Where the model made
          one with fewer entries than it has layers and hands further ones on to the layers, a
          ``NoKeys`` stands at each of those.
        entries (int): Those that the plain model's prompt cache has.
        seen (dict[int, WhatRan]): By the attention's ``id``.

    Raises:
        ValueError: If the token could not be run through the model.
    """

    def __init__(self, model: nn.Module, attentions: list[tuple[nn.Module, Projections]]):
        self._attentions = attentions
        self._layouts: dict[object, Projections | None] = {}
        plain = make_prompt_cache(model)
        padded = [*plain, *(NoKeys() for _ in range(len(model.layers) - len(plain)))]
        self.entries = len(plain)
        self.seen: dict[int, WhatRan] = {}
        self.caches: list[object] = []
        # A model may go by its prompt cache's last entry, and none of its own may be added then.
        for self.caches in (padded, plain) if len(padded) > len(plain) else (plain,):
            if (error := self._run(model, copy.copy(self.caches))) is None:
                break
        else:
            name = getattr(model, "model_type", type(model).__name__)
            raise ValueError(
                f"Cannot attach a memory to {name!r}: one token could not be run through the plain "
                f"model on this device ({error})."
            ) from error
        seen = self.seen
        self._run(model, None)
        for key, without in self.seen.items():
            if key in seen:
                seen[key].own_cache = bool(without.caches)
        self.seen = seen

    def _run(self, model: nn.Module, caches: list[object] | None) -> Exception | None:
        """Run the token; returns what went wrong."""
        self.seen = {}
        classes = [type(attention) for attention, _ in self._attentions]
        try:
            for (attention, projections), base in zip(self._attentions, classes, strict=True):
                attention.__class__ = self._watching(base, projections)
            with unchanged(model):
                model(mx.array([[0]]), cache=caches)
            return None
        except Exception as error:
            return error
        finally:
            for (attention, _), base in zip(self._attentions, classes, strict=True):
                attention.__class__ = base

    def _watching(self, base: type[nn.Module], projections: Projections) -> type[nn.Module]:
        def call(attention: nn.Module, *args: object, **kwargs: object) -> object:
            signature = inspect.signature(base.__call__)
            first = list(signature.parameters)[1]
            given = signature.bind(attention, *args, **kwargs).arguments
            seen = self.seen.setdefault(id(attention), WhatRan())
            cache = given.get("cache")
            seen.width = given[first].shape[-1]
            if isinstance(cache, NoKeys):
                given["cache"] = None
            if cache is not None:
                seen.caches.append(cache)
                seen.layout = self._layout(attention, base, projections, given, first)
            view = view_of(attention)
            for name in {projections.attribute(head) for head in projections.heads}:
                vars(view)[name] = Noting(attention[name], name, seen.called)
            return _forward(base, signature, {**given, "self": view})

        return type(base.__name__, (base,), {"__call__": call})

    def _layout(
        self,
        attention: nn.Module,
        base: type[nn.Module],
        projections: Projections,
        given: Mapping[str, Any],
        first: str,
    ) -> Projections | None:
        """What the rows are, tried once for all attentions that are alike."""
        if isinstance(given["cache"], ArraysCache):
            return projections
        key = base, projections, counts(attention, projections)
        if key not in self._layouts:
            x = given[first]
            token = mx.random.normal(x.shape, x.dtype, key=mx.random.key(0))

            def run(view: nn.Module, cache: object) -> None:
                arguments = {**given, "self": view, first: token, "cache": cache}
                _forward(base, inspect.signature(base.__call__), arguments)

            find = find_gate if projections.packed is None else find_layout
            self._layouts[key] = find(attention, projections, given["cache"], run)
        return self._layouts[key]


def _forward(
    base: type[nn.Module], signature: inspect.Signature, arguments: dict[str, object]
) -> object:
    """The base class's own forward, called with arguments by name."""
    call = inspect.BoundArguments(signature, OrderedDict(arguments))
    return base.__call__(*call.args, **call.kwargs)
