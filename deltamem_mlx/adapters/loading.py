"""Adapters and models: load, save, convert, and check that one fits the other."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .. import builtin
from ..files import expanded
from ..hub import ADAPTER_FILES, MODEL_FILES, resolve
from ..model.arguments import expect
from ..model.fingerprint import fingerprints_of, is_off
from ..model.names import BUILTIN, base_model_name
from ..model.patch import (
    attachment,
    config_of,
    pack,
    patch,
    refuse_attached,
    set_base_model,
    settle,
    spread_of_memory,
    undo_on_failure,
    warn_of_frozen,
    whole_tensors,
)
from ..model.spread import spread_of
from ..problems import shortened
from ..ranks import Ranks
from .dealing import deal_out, read_by_first
from .files import (
    AdapterFiles,
    read_adapter,
    refuse_adapter,
    refuse_to_replace,
    write_adapter,
)
from .fitting import fitting
from .spread_loading import load_spread

# What the names of quantized and converted models end with, and after it a date.
_QUANTIZED = re.compile(
    r"([-_.](mlx|\d+-?bit|(mx|nv)?fp\d+|bf16|f(loat)?(16|32)|q\d\w*|int\d|dwq|awq)(-\d{4,8})?)+$"
)
Pair = tuple[nn.Module, TokenizerWrapper]
Loaded = tuple[nn.Module, TokenizerWrapper, dict[str, object]]


class LoadOptions(TypedDict, total=False):
    """What ``load`` passes to ``mlx_lm.load``."""

    tokenizer_config: dict[str, Any] | None
    model_config: dict[str, Any] | None
    adapter_path: str | None
    lazy: bool
    revision: str | None
    trust_remote_code: bool


@overload
def load(
    model: str | Path = BUILTIN,
    adapter: str | Path | AdapterFiles | None = None,
    *,
    return_config: Literal[False] = False,
    tensor_group: mx.distributed.Group | None = None,
    pipeline_group: mx.distributed.Group | None = None,
    **mlx_lm_load_kwargs: Unpack[LoadOptions],
) -> Pair: ...


@overload
def load(
    model: str | Path = BUILTIN,
    adapter: str | Path | AdapterFiles | None = None,
    *,
    return_config: Literal[True],
    tensor_group: mx.distributed.Group | None = None,
    pipeline_group: mx.distributed.Group | None = None,
    **mlx_lm_load_kwargs: Unpack[LoadOptions],
) -> Loaded: ...


def load(
    model: str | Path = BUILTIN,
    adapter: str | Path | AdapterFiles | None = None,
    *,
    return_config: bool = False,
    tensor_group: mx.distributed.Group | None = None,
    pipeline_group: mx.distributed.Group | None = None,
    **mlx_lm_load_kwargs: Unpack[LoadOptions],
) -> Pair | Loaded:
    """``mlx_lm.load`` plus an adapter.

    Args:
        model (str or Path): A local folder or a Hub repository, ``user/repo`` or
          ``user/repo@revision``; ``builtin``: the tiny model that the package carries.
        adapter (str): The same for a δ-mem adapter, or one that was read before. Default: the plain
          model; of ``builtin``, its own adapter.
        return_config (bool): Give the model's config as well, as ``mlx_lm.load`` does.
        tensor_group, pipeline_group (mx.distributed.Group): Spread the model over the processes of
          this group, as mlx-lm's ``sharded_load`` does: a part of each layer, or some of the layers
          in each. All of them call it. Default: it lies in this process.
        **mlx_lm_load_kwargs: Passed to ``mlx_lm.load``. A LoRA given as ``adapter_path`` lies below
          the memory. A ``revision`` is the same as one in the name, which goes before.

    Returns:
        tuple[nn.Module, TokenizerWrapper]: The model and its tokenizer; with ``return_config`` its
          config as a third.

    Raises:
        FileNotFoundError: If a name is neither a folder nor a repository.
        ValueError: If the adapter is damaged or does not fit the model.
    """
    from mlx_lm import load as mlx_lm_load

    if str(model) == BUILTIN:
        model, adapter = str(builtin.base_folder()), adapter or builtin.adapter_folder()
    group = tensor_group or pipeline_group
    files = _read_or_given(adapter, Ranks(group))
    if group is not None:
        loaded = load_spread(str(model), tensor_group, pipeline_group, **mlx_lm_load_kwargs)
    else:
        name = _at(model, mlx_lm_load_kwargs.pop("revision", None))
        folder = refuse_adapter(resolve(name, allow_patterns=MODEL_FILES))
        # One call gives two or three values, by a flag: its stub says either.
        loaded = cast(Loaded, mlx_lm_load(str(folder), return_config=True, **mlx_lm_load_kwargs))
    plain, tokenizer, config = loaded
    if files is not None:
        attach_adapter(plain, files, base_model=str(model))
    return (plain, tokenizer, config) if return_config else (plain, tokenizer)


def _at(model: str | Path, revision: str | None) -> str | Path:
    """A repository's name with the revision, unless it has one; a folder is as it is."""
    if not revision or not isinstance(model, str) or "@" in model or expanded(model).is_dir():
        return model
    return f"{model}@{revision}"


def _read_or_given(adapter: str | Path | AdapterFiles | None, ranks: Ranks) -> AdapterFiles | None:
    if adapter is None or isinstance(adapter, AdapterFiles):
        return adapter
    return read_by_first(ranks, lambda: read(adapter))


def read(adapter: str | Path) -> AdapterFiles:
    """The adapter in a local folder or Hub repository, in any of its forms.

    Raises:
        FileNotFoundError, ValueError, ImportError: As for ``load_adapter``.
    """
    return read_adapter(resolve(adapter, allow_patterns=ADAPTER_FILES))


def load_adapter(model: nn.Module, adapter: str | Path) -> nn.Module:
    """Attach the adapter in a local folder or Hub repository to a loaded mlx-lm model.

    Every tensor's presence, name and shape is checked before the model is touched. Of a model that
    mlx-lm has spread over several processes all of them call it, the first alone reads, and each
    keeps its part.

    Args:
        model (nn.Module): A model from ``mlx_lm.load``.
        adapter (str): A folder or repository in any of the three forms.

    Returns:
        nn.Module: The same model, with a memory.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or a file is missing.
        ValueError: If the adapter is damaged or does not fit the model; of every kind of misfit the
          first few are listed.
    """
    expect("dm.load_adapter(model, adapter)", model=model, adapter=adapter)
    spread = spread_of(model)
    files = read_by_first(spread.ranks, lambda: read(adapter))
    warn_of_frozen(model)
    return attach_adapter(model, files)


def attach_adapter(
    model: nn.Module, adapter: AdapterFiles, base_model: str | None = None
) -> nn.Module:
    """Attach an adapter that was read to a loaded mlx-lm model, or leave the model as it was.

    Args:
        model (nn.Module): A model without a memory.
        adapter (AdapterFiles): The adapter.
        base_model (str): Which model this is. Default: the one that the adapter names.

    Raises:
        ValueError: If the adapter does not fit the model.
    """
    refuse_attached(model)
    choice, tensors = fitting(model, adapter)
    _note_other_base(model, adapter, base_model)
    with undo_on_failure(model):
        patch(model, adapter.config, choice)
        deal_out(model, choice, tensors)
        set_base_model(model, base_model or adapter.base_name)
        pack(model)
        settle(model)
    return model


def _note_other_base(model: nn.Module, adapter: AdapterFiles, base_model: str | None) -> None:
    """Warn where an adapter says that it was trained on another model of the same shape."""
    known, kind = adapter.base_model, getattr(model, "model_type", None)
    trained_on, used = adapter.base_name, base_model_name(base_model)
    if trained_on and used and _short(trained_on) != _short(used):
        warnings.warn(
            f"The adapter was trained on {trained_on}, and is used with {used}: answers may be "
            "worse there.",
            stacklevel=4,
        )
    elif known.get("model_type") and kind and known["model_type"] != kind:
        warnings.warn(
            f"The adapter was trained on {trained_on or 'a model'} of type "
            f"{known['model_type']}, and is used with one of type {kind}.",
            stacklevel=4,
        )


def _short(name: str) -> str:
    """What a model is called wherever it lies: ``qwen3-4b`` of ``mlx-community/Qwen3-4B-4bit``."""
    path = Path(name.partition("@")[0])
    if path.parent.name == "snapshots":  # in the Hub's cache: models--ORG--NAME/snapshots/COMMIT
        path = Path(path.parent.parent.name.rpartition("--")[2])
    return _QUANTIZED.sub("", path.name.lower())


def save_adapter(model: nn.Module, folder: str | Path, *, form: str = "mlx-lm") -> None:
    """Write the model's adapter to ``folder``, in place of a δ-mem adapter of the same form.

    Of a model that is spread over several processes all of them call it, and the first alone
    writes.

    Args:
        model (nn.Module): A model with an adapter.
        folder (Path): Made if it is missing.
        form (str): ``mlx-lm`` (``adapter_config.json``, ``adapters.safetensors``) or
          ``published`` (``delta_mem_config.json``, ``delta_mem_adapter_mlx.npz``).

    Raises:
        ValueError: If the model has no adapter, its weights hold NaN or infinite values, or the
          form is unknown.
        OSError: If the folder holds an adapter of another kind or form, or cannot be written.
    """
    expect("dm.save_adapter(model, folder)", model=model, folder=folder)
    adapter = adapter_of(model, expanded(folder))

    def write() -> None:
        refuse_to_replace(adapter.folder, form)
        write_adapter(adapter, adapter.folder, form)

    spread_of_memory(model).ranks.by_first(write)


def convert_adapter(
    source: str | Path,
    folder: str | Path,
    *,
    form: str = "mlx-lm",
    dtype: mx.Dtype | None = None,
    overwrite: bool = False,
) -> AdapterFiles:
    """Write the adapter in ``source``, of any form, to ``folder`` in another.

    Args:
        source (str or Path): A local folder or a Hub repository.
        folder (str or Path): Where to write it.
        form (str): ``mlx-lm`` or ``published``.
        dtype (mx.Dtype): ``mx.float32`` or ``mx.float16``, for all tensors. Default: as they are.
        overwrite (bool): Replace an adapter of any form in ``folder``. Default: one of the same
          form only.

    Returns:
        AdapterFiles: What was read. Its ``base_model`` has no place in the published form.

    Raises:
        FileNotFoundError, ValueError, ImportError: As for ``load_adapter``.
        ValueError: If ``dtype`` is another, or a weight is too large for it.
        OSError: As for ``save_adapter``.
    """
    if dtype is not None and dtype not in (mx.float32, mx.float16):
        raise ValueError(f"dtype is {shortened(dtype)}, expected mx.float32 or mx.float16.")
    folder = expanded(folder)
    refuse_to_replace(folder, form, overwrite=overwrite)
    adapter = read(source)
    used = {n: t for n, t in adapter.tensors.items() if not is_off(n, adapter.config)}
    if dtype is not None:
        used = {name: tensor.astype(dtype) for name, tensor in used.items()}
    write_adapter(replace(adapter, tensors=used), folder, form)
    return adapter


def adapter_of(model: nn.Module, folder: Path = Path()) -> AdapterFiles:
    """The model's adapter as its files would hold it, of all processes that have a part of it."""
    return AdapterFiles(folder, config_of(model), whole_tensors(model), base_model_of(model))


def base_model_of(model: nn.Module) -> dict[str, object]:
    """Name, type and shape of the model that the adapter is attached to."""
    attached = attachment(model)
    return {
        "name": attached.base_model,
        "model_type": getattr(model, "model_type", None),
        "num_layers": attached.mark.spread.layers,
        "hidden_size": attached.dims,
    }


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the settings that act and all tensors of the model's adapter, in hex."""
    return attachment(model).mark.fingerprint


def has_fingerprint(model: nn.Module, fingerprint: str) -> bool:
    """Whether it is that of the model's adapter, by this version or an earlier one.

    Every memory that is read is asked this.
    """
    return attachment(model).mark.wrote(fingerprint)


def fingerprint_of(adapter: AdapterFiles) -> str:
    """The same of an adapter on disk; tensors of heads that are off do not count."""
    return fingerprints_of(adapter.config, adapter.tensors).now
