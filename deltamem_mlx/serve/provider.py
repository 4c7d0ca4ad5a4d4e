"""mlx-lm's model provider for one model that is loaded already."""

from pathlib import Path

import mlx.nn as nn
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
from mlx_lm.server import ModelProvider
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .errors import ApiError
from .settings import ServeSettings

DEFAULT = "default_model"


class PairProvider(ModelProvider):
    """Answers for one model, by its name; never loads another.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): Its tokenizer.
        name (str): How it was named: a folder or a repository.
        settings (ServeSettings): Of the server.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, name: str, settings: ServeSettings
    ):
        super().__init__(settings.for_mlx_lm(name))
        self.model, self.tokenizer = model, tokenizer
        self.is_batchable = all(hasattr(c, "merge") for c in make_prompt_cache(model))
        folder = Path(name)
        self.name = folder.resolve().name if folder.is_dir() else name
        self.model_key = (self.name, None, None)
        self._names = {DEFAULT, name, self.name}
        if folder.is_dir():
            self._names.add(str(folder.resolve()))

    def check(self, name: str) -> None:
        """Raises ApiError unless ``name`` is this model."""
        if name not in self._names:
            raise ApiError(
                404,
                f"There is no such model here. This server has {self.name!r}; GET /v1/models "
                "names it.",
                code="model_not_found",
                param="model",
            )

    def load_default(self) -> None:
        """It is loaded."""


class ExactPromptCache(LRUPromptCache):
    """mlx-lm's cache of prompts, with at least one token left to feed.

    A prompt cache with a memory cannot be trimmed, so one that holds all of a prompt is of no use
    for it: the model has to be fed something to answer.
    """

    def fetch_nearest_cache(self, model: object, tokens: list[int]) -> tuple[list | None, list]:
        cache, rest = super().fetch_nearest_cache(model, tokens[:-1])
        return cache, rest + tokens[-1:]
