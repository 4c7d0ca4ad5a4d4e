"""Models that guess ahead of another one."""

from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .. import builtin
from ..model.names import BUILTIN
from ..model.spread import spread_of
from .loading import load

NUM_DRAFT_TOKENS = 3  # mlx_lm.generate's


def load_draft(
    draft: str | Path, model: nn.Module, tokenizer: TokenizerWrapper, **mlx_lm_load_kwargs: Any
) -> nn.Module:
    """A model that can guess ahead of ``model``.

    Args:
        draft (str or Path): A local folder or a Hub repository; ``builtin``: the tiny model that
          the package carries, without its memory.
        model (nn.Module): What it is to guess for.
        tokenizer (TokenizerWrapper): Of ``model``.
        **mlx_lm_load_kwargs: Passed to ``mlx_lm.load``.

    Raises:
        FileNotFoundError: If ``draft`` is neither a folder nor a repository.
        ValueError: If it has another vocabulary, or mlx-lm cannot draft with these models.
    """
    folder = builtin.base_folder() if str(draft) == BUILTIN else draft
    guesser: nn.Module
    guesser, its_tokenizer = load(folder, **mlx_lm_load_kwargs)
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"The draft model {str(draft)!r} has another vocabulary than the model. Give a smaller "
            "model of the same family."
        )
    if why := cannot_draft(model, guesser):
        raise ValueError(why)
    return guesser


def cannot_draft(model: nn.Module, draft: nn.Module) -> str:
    """Why mlx-lm cannot draft for ``model`` with ``draft``, in a sentence; empty: it can."""
    cache, its_cache = make_prompt_cache(model), make_prompt_cache(draft)
    if len(cache) != len(model.layers):
        return (
            "mlx-lm drafts only for models with a cache for each layer, and this one shares some: "
            "leave out the draft model."
        )
    if spread_of(model).ranks.size > 1:
        return "mlx-lm does not draft for a model that lies in several processes."
    plain = [getattr(entry, "kv", entry) for entry in cache]
    if not can_trim_prompt_cache([kv for kv in plain if kv is not None]):
        return (
            "mlx-lm cannot take back tokens from this model's cache, and drafting needs that: "
            "leave out the draft model."
        )
    if not can_trim_prompt_cache(its_cache):
        return "mlx-lm cannot take back tokens from the draft model's cache: give another one."
    return ""
