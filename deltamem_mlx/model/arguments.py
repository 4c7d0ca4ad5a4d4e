"""Arguments of public functions that stand in each other's place, named."""

import os
from collections.abc import Callable
from typing import NamedTuple

import mlx.nn as nn

from ..config import DeltaMemConfig
from ..problems import shortened


class Kind(NamedTuple):
    """What an argument has to be, and the same in words."""

    fits: Callable[[object], bool]
    what: str


def _is_tokenizer(value: object) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "decode")


_MODEL = Kind(lambda v: isinstance(v, nn.Module), "a model")
_TOKENIZER = Kind(_is_tokenizer, "a tokenizer")
_CACHE = Kind(lambda v: isinstance(v, list | tuple), "a prompt cache")
_PATH = Kind(lambda v: isinstance(v, str | os.PathLike), "a path")
_CONFIG = Kind(lambda v: isinstance(v, DeltaMemConfig), "a DeltaMemConfig")
_KINDS = {
    "model": _MODEL,
    "tokenizer": _TOKENIZER,
    "cache": _CACHE,
    "path": _PATH,
    "folder": _PATH,
    "adapter": _PATH,
    "config": _CONFIG,
}


def expect(usage: str, **given: object) -> None:
    """Raise TypeError unless every argument is what its name says.

    Args:
        usage (str): The call as it is meant: ``dm.attach(model, config)``.
        **given: Arguments named ``model``, ``tokenizer``, ``cache``, ``path``, ``folder``,
          ``adapter`` or ``config``.
    """
    for name, value in given.items():
        if not _KINDS[name].fits(value):
            raise TypeError(
                f"{name} is {_said(value)}, expected {_KINDS[name].what}: {usage}.{_hint(value)}"
            )


def _said(value: object) -> str:
    kinds = (_MODEL, _CONFIG, _CACHE, _TOKENIZER)
    known = next((kind.what for kind in kinds if kind.fits(value)), None)
    if known is not None:
        return known
    if _is_session(value):
        return "a session"
    return shortened(str(value)) if isinstance(value, str | os.PathLike) else shortened(value)


def _is_session(value: object) -> bool:
    return hasattr(value, "cache") and hasattr(value, "remember")


def _hint(value: object) -> str:
    return " A session's prompt cache is session.cache." if _is_session(value) else ""
