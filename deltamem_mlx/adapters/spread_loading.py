"""mlx-lm's ``sharded_load``, by the names that ``load`` takes."""

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import sharded_load

from ..files import expanded
from ..hub import MODEL_FILES, REPO_ID, resolve

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
    try:
        loaded = sharded_load(repo, pipeline_group, tensor_group, return_config=True, **options)
    except ValueError as error:
        if "does not support" not in str(error):
            raise
        ways = "in a pipeline (--pipeline)", "by tensor parallelism (without --pipeline)"
        this, other = ways if tensor_group is None else ways[::-1]
        raise ValueError(f"mlx-lm cannot spread {model} {this}. Try it {other}.") from error
    return cast(tuple[nn.Module, TokenizerWrapper, dict[str, object]], loaded)
