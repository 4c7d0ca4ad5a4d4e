"""The model that a server runs, and mlx-lm's model provider for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
from mlx_lm.server import ModelProvider
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..adapters.loading import fingerprint
from ..memory.actions import memories, spread_in
from ..memory.saving import described
from ..model.dry_run import unchanged
from ..model.patch import config_of, pack
from ..text.turns import end_of_turn, spans_with, turn_of
from .errors import ApiError
from .settings import ServeSettings

DEFAULT = "default_model"


@dataclass(frozen=True)
class ServedPair:
    """The model that a server runs, and what a memory file says of it.

    Attributes:
        adapter (str): Fingerprint of the adapter.
        described (dict): Name, type and shape of the model, for memory files.
        granularity (str): ``memory_write_granularity`` of the adapter.
        end (list[int]): What is fed after a reply while decoding; empty: by itself, as spans.
        vocabulary (int): How many tokens the model tells apart.
        window (int): Tokens that the model was made for; None: it does not say.
        shapes (dict[int, tuple]): Layer index → shape of the state of one conversation.
        draft (nn.Module): Guesses ahead of the model, one answer at a time; None: there is none.
        batches (bool): Whether mlx-lm can answer several requests at once.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    adapter: str
    described: dict[str, object]
    granularity: str
    end: list[int]
    vocabulary: int
    window: int | None
    shapes: dict[int, tuple[int, ...]]
    draft: nn.Module | None = None
    batches: bool = True

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        template_kwargs: Mapping[str, object],
        draft: nn.Module | None = None,
    ) -> "ServedPair":
        """A model with an adapter, made ready to be served.

        Raises:
            ValueError: If the model has no adapter.
        """
        pack(model)
        granularity = config_of(model).memory_write_granularity
        cache = make_prompt_cache(model)
        batches = draft is None and all(hasattr(c, "merge") for c in cache)
        # What follows a reply is decoded with it, token by token, in a batch only.
        by_itself = granularity != "token" or not batches
        m = next(iter(memories(cache).values()))
        with unchanged(model):
            vocabulary = model(mx.array([[0]]), cache=cache).shape[-1]  # never computed
        return cls(
            model=model,
            tokenizer=tokenizer,
            adapter=fingerprint(model),
            described=described(model),
            granularity=granularity,
            end=[] if by_itself else usual_end(tokenizer, template_kwargs),
            vocabulary=vocabulary,
            window=_window(model),
            shapes=dict.fromkeys(spread_in(cache).all_memories, (1, m.heads, m.rank, m.rank)),
            draft=draft,
            batches=batches,
        )


def _window(model: nn.Module) -> int | None:
    args = getattr(model, "args", None)
    found = [vars(args)] if args is not None else []
    found += [inner for inner in found[0].values() if isinstance(inner, dict)] if found else []
    given = (values.get("max_position_embeddings") for values in found)
    return next((size for size in given if isinstance(size, int) and size > 0), None)


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
        self.is_batchable = all(hasattr(c, "merge") for c in make_prompt_cache(model))
        folder = Path(name)
        self.name = folder.resolve().name if folder.is_dir() else name
        # mlx-lm's annotations know of these only that they are none at first.
        vars(self).update(model=model, tokenizer=tokenizer, model_key=(self.name, None, None))
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


def usual_end(tokenizer: TokenizerWrapper, template_kwargs: Mapping[str, object]) -> list[int]:
    """What the template puts after a reply, if that begins with an end token; else nothing."""
    said = [{"role": "user", "content": "hi"}]
    reply = [{"role": "assistant", "content": "hi"}]
    kwargs = template_kwargs
    try:
        turn = turn_of(tokenizer, [], said, reply=True, sentences=False, template_kwargs=kwargs)
        spans = spans_with(tokenizer, [], [*said, *reply], sentences=False, template_kwargs=kwargs)
    except (ValueError, TypeError):
        return []
    fed = tokenizer.encode("hi", add_special_tokens=False)
    end = end_of_turn(turn, spans, fed, tokenizer.eos_token_ids).token_ids
    return end if end and end[0] in tokenizer.eos_token_ids else []
