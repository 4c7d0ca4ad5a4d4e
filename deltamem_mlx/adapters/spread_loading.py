"""mlx-lm's ``sharded_load``, by the names that ``load`` takes."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.pipeline import PipelineMixin
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import MODEL_REMAPPING, sharded_load

from ..files import expanded, read_json
from ..hub import MODEL_FILES, REPO_ID, resolve

_INDEX = "model.safetensors.index.json"
TAKES = ("tokenizer_config", "trust_remote_code")


def load_spread(
    model: str,
    tensor_group: mx.distributed.Group | None,
    pipeline_group: mx.distributed.Group | None,
    **options: Any,
) -> tuple[nn.Module, TokenizerWrapper, dict[str, object]]:
    """A model, of which each process of a group has a part, its tokenizer and its config.

    Of a Hub repository, a process of a pipeline downloads the files that it needs.

    Raises:
        FileNotFoundError: If the name is neither a folder nor a repository.
        ValueError: If mlx-lm cannot spread the model so.
    """
    others = sorted(options.keys() - set(TAKES))
    if others:
        raise ValueError(f"A model in several processes is loaded without {', '.join(others)}.")
    repository = REPO_ID.fullmatch(model) and "@" not in model and not expanded(model).is_dir()
    repo = model if repository else str(resolve(model, allow_patterns=MODEL_FILES))
    if tensor_group is not None:
        config = read_json(resolve(model, allow_patterns=["*.json"]) / "config.json")
        check_heads(model, config, tensor_group.size())
    elif (folder := expanded(model)).is_dir() and not (folder / _INDEX).is_file():
        raise ValueError(
            f"{model} has no {_INDEX}, by which mlx-lm finds the weights of a pipeline's layers. "
            "Write the model anew with mlx_lm.convert."
        )
    try:
        loaded = sharded_load(repo, pipeline_group, tensor_group, return_config=True, **options)
    except ValueError as error:
        if "does not support" not in str(error):
            raise
        ways = "in a pipeline (--pipeline)", "by tensor parallelism (without --pipeline)"
        this, other = ways if tensor_group is None else ways[::-1]
        raise ValueError(f"mlx-lm cannot spread {model} {this}. Try it {other}.") from error
    return cast(tuple[nn.Module, TokenizerWrapper, dict[str, object]], loaded)


def check_heads(model: str, config: Mapping[str, Any], size: int) -> None:
    """Whether so many processes can have as many heads of each layer.

    Fewer KV heads than processes may do: some of mlx-lm's models have several hold the same one.

    Args:
        model (str): Its name.
        config (Mapping): Of the model.
        size (int): How many processes there are.

    Raises:
        ValueError: If they cannot; says how many could.
    """
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    heads = text.get("num_attention_heads")
    kv = text.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(kv, int) or heads < 1 or kv < 1:
        return
    kv = heads if text.get("kv_lora_rank") else kv  # latent attention has none to share out
    if heads % size == 0 and max(kv, size) % min(kv, size) == 0:
        return
    fitting = [n for n in range(2, heads + 1) if heads % n == 0 and kv % n == 0]
    numbers = " or ".join(map(str, fitting)) if fitting else "no number of"
    kind = str(config.get("model_type"))
    out = (
        "Or give --pipeline, which shares out the layers among any number."
        if has_pipeline(kind)
        else f"(--pipeline is no way out: mlx-lm has none for {kind}.)"
    )
    raise ValueError(
        f"{size} processes cannot share the heads of {model} evenly: each layer has {heads} for "
        f"queries and {kv} for keys and values. Start {numbers} processes. {out}"
    )


def has_pipeline(model_type: str) -> bool:
    """Whether mlx-lm can spread an architecture by its layers."""
    name = MODEL_REMAPPING.get(model_type, model_type)
    try:
        found = vars(import_module(f"mlx_lm.models.{name}")).values()
    except ImportError:
        return False
    return any(
        isinstance(cls, type) and issubclass(cls, PipelineMixin) and cls is not PipelineMixin
        for cls in found
    )
