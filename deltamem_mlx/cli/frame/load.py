"""The model that a command works on, from `--model` and `--adapter`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame.errors import UsageError

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper


def load_pair(
    model: str | None, adapter: str | None, *, trust_remote_code: bool = False
) -> tuple["nn.Module", "TokenizerWrapper"]:
    """The model with its adapter, and the tokenizer.

    Without both, the built-in pair. An adapter that names its base model needs no `--model`; a
    model without `--adapter` has no memory.
    """
    from deltamem_mlx import builtin
    from deltamem_mlx.adapters.loading import load, read

    if model is None and adapter is None:
        model, adapter = str(builtin.base_folder()), str(builtin.adapter_folder())
    files = None if adapter is None else read(adapter)
    return load(
        model if model is not None else _base_of(str(adapter), files.base_name if files else None),
        files,
        tokenizer_config={"trust_remote_code": trust_remote_code},
        trust_remote_code=trust_remote_code,
    )


def load_plain(model: str, *, trust_remote_code: bool) -> tuple["nn.Module", "TokenizerWrapper"]:
    """The model without a memory, and the tokenizer; of the built-in pair, the base."""
    from deltamem_mlx import builtin

    name = str(builtin.base_folder()) if model == "builtin" else model
    return load_pair(name, None, trust_remote_code=trust_remote_code)


def has_memory(model: str | None, adapter: str | None) -> bool:
    """Whether these flags ask for a model with a memory; told without loading anything."""
    return adapter is not None or model in (None, "builtin")


def refuse_without_memory(flags: Mapping[str, Any]) -> None:
    """Raises UsageError if one of these flags was given: the model has no memory."""
    given = [flag for flag, value in flags.items() if value]
    if given:
        raise UsageError(
            f"{', '.join(given)}: a model without an adapter has no memory. Give --adapter."
        )


def _base_of(adapter: str, name: str | None) -> str:
    from deltamem_mlx import builtin
    from deltamem_mlx.model.patch import BUILTIN

    if name is None:
        raise UsageError(
            f"The adapter {adapter!r} does not say which model it is for. Give --model."
        )
    return str(builtin.base_folder()) if name == BUILTIN else name
