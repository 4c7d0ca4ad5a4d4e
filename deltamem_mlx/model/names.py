"""What a base model is called where something is saved from it."""

from pathlib import Path

from .. import builtin
from ..files import expanded
from ..hub import looks_like_path

BUILTIN = "builtin"


def base_model_name(source: str | None) -> str | None:
    """A model's name as it is kept: the built-in one's is the same wherever it lies."""
    if source is not None and Path(source).resolve() == Path(builtin.__file__).parent / "base":
        return BUILTIN
    return source


def public_name(base: str | None) -> str | None:
    """A base model's name without the folders of this machine."""
    if base is None or base == BUILTIN:
        return base
    local = looks_like_path(base) or expanded(base).is_dir()
    return expanded(base).resolve().name if local else base
