"""The model that a command works on, from `--model` and `--adapter`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame import launched
from deltamem_mlx.cli.frame.errors import UsageError

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.adapters.files import AdapterFiles


def load_pair(
    model: str | None,
    adapter: str | None,
    *,
    trust_remote_code: bool = False,
    pipeline: bool = False,
) -> tuple["nn.Module", "TokenizerWrapper"]:
    """The model with its adapter, and the tokenizer.

    Without both, the built-in pair. An adapter that names its base model needs no `--model`; a
    model without `--adapter` has no memory.

    Under mlx.launch, each process has a part of the model: of each layer, or with ``pipeline``
    some of the layers.
    """
    from deltamem_mlx import builtin
    from deltamem_mlx.adapters.dealing import read_by_first
    from deltamem_mlx.adapters.loading import read
    from deltamem_mlx.model.names import BUILTIN

    if adapter == BUILTIN:
        if model not in (None, BUILTIN):
            raise UsageError(
                f"--adapter {BUILTIN} is for the built-in model; {model!r} is another."
            )
        model = adapter = None
    groups = _groups(pipeline)
    if groups and model in (None, "builtin") and adapter is None:
        raise UsageError(
            "The built-in pair is for one process: mlx-lm has no way to spread it. Give --model "
            "and --adapter."
        )
    if model is None and adapter is None:
        model, adapter = str(builtin.base_folder()), str(builtin.adapter_folder())
    files = None
    if adapter is not None:
        files = read_by_first(launched.world(), lambda: read(adapter))
    name = model or _base_of(str(adapter), files.base_name if files else None)
    return _loaded(name, files, trust_remote_code, groups)


def _loaded(
    model: str, adapter: "AdapterFiles | None", trust_remote_code: bool, groups: dict[str, Any]
) -> tuple["nn.Module", "TokenizerWrapper"]:
    from deltamem_mlx.adapters.loading import load

    return load(
        model,
        adapter,
        tokenizer_config={"trust_remote_code": trust_remote_code},
        trust_remote_code=trust_remote_code,
        **groups,
    )


def load_plain(
    model: str, *, trust_remote_code: bool, tensor_parallel: bool = False
) -> tuple["nn.Module", "TokenizerWrapper"]:
    """The model without a memory, and the tokenizer; of the built-in pair, the base.

    It is whole in this process, unless ``tensor_parallel`` under mlx.launch.
    """
    from deltamem_mlx import builtin

    if tensor_parallel and launched.world().alone:
        raise UsageError("--tensor-parallel: there is one process. Start several by mlx.launch.")
    name = str(builtin.base_folder()) if model == "builtin" else model
    groups = {"tensor_group": launched.world().group} if tensor_parallel else {}
    return _loaded(name, None, trust_remote_code, groups)


def _groups(pipeline: bool) -> dict[str, Any]:
    """Over which processes a model is spread, and how; nothing: it lies in this one.

    Raises:
        UsageError: If that cannot be here.
    """
    ranks = launched.world()
    if ranks.alone:
        if pipeline:
            raise UsageError(
                "--pipeline: there is one process. Start several: mlx.launch -n 2 -- deltamem-mlx …"
            )
        return {}
    launched.end_with_the_others()
    return {"pipeline_group" if pipeline else "tensor_group": ranks.group}


def load_draft_model(
    draft: str | None,
    model: "nn.Module",
    tokenizer: "TokenizerWrapper",
    *,
    trust_remote_code: bool = False,
) -> "nn.Module | None":
    """The model of `--draft-model`; None: there is none."""
    if draft is None:
        return None
    from deltamem_mlx.adapters.drafts import load_draft

    try:
        return load_draft(
            draft,
            model,
            tokenizer,
            tokenizer_config={"trust_remote_code": trust_remote_code},
            trust_remote_code=trust_remote_code,
        )
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--draft-model: {error}") from error


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
    from deltamem_mlx.model.names import BUILTIN

    if name is None:
        raise UsageError(
            f"The adapter {adapter!r} does not say which model it is for. Give --model."
        )
    return str(builtin.base_folder()) if name == BUILTIN else name
