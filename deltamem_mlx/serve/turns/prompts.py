"""Requests without a memory of a name: one prompt each, from mlx-lm's cache of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_lm.models.cache import make_prompt_cache

from ...text.messages import Message
from ...text.spans import message_spans
from ..provider import ExactPromptCache, ServedPair
from .job import Answer, Steps
from .turn import mark
from .waypoints import POINT, Points, Waypoints, cut, memory_in


@dataclass(frozen=True)
class Prompt:
    """A prompt as mlx-lm tokenizes it.

    Attributes:
        token_ids (list[int]): All of it.
        segments (list[list[int]]): The same, cut where a copy of the cache is kept.
        segment_types (list[str]): What each of them is.
        initial_state (str): Of mlx-lm's text state machine.
    """

    token_ids: list[int]
    segments: list[list[int]]
    segment_types: list[str]
    initial_state: str


class ServedPrompts:
    """Prompts that were answered, and how one is answered that continues one of them.

    Args:
        pair (ServedPair): The model.
        cache (ExactPromptCache): What is kept.
        key (object): The model's, in the cache.
    """

    def __init__(self, pair: ServedPair, cache: ExactPromptCache, key: object):
        self.pair, self.cache, self._key = pair, cache, key
        self._waypoints = Waypoints(cache, key)

    def keep(self, cache: list, tokens: Sequence[int], kind: str, points: Points) -> None:
        """Keep a prompt cache that holds these tokens; at a point within a prompt, note that."""
        points[len(tokens)] = memory_in(cache)
        if kind != POINT:
            self.cache.insert_cache(self._key, list(tokens), cache, cache_type=kind)
            self._waypoints.note(tokens, dict(points))

    def steps(self, prompt: Prompt) -> Steps:
        """One answer, from an empty memory or from where a cached prompt left off."""
        tokens = prompt.token_ids
        cache, rest = self.cache.fetch_nearest_cache(self._key, tokens)
        begun = len(tokens) - len(rest)
        if (further := self._waypoints.fetch(tokens, begun)) is not None:
            cache, begun = further
        segments, kinds = _left_to_feed(prompt, begun)
        answer = Answer(
            cache or make_prompt_cache(self.pair.model),
            tokens[:begun],
            tokens[begun:],
            initial_state=prompt.initial_state,
            segments=segments,
            segment_types=kinds,
            points=self._waypoints.of(tokens[:begun]),
        )
        fed = yield answer
        self.keep(fed.cache, fed.tokens, "assistant", answer.points)
        return None

    def steps_by_spans(
        self, prompt: Prompt, messages: Sequence[Message], template_kwargs: dict[str, object]
    ) -> Steps:
        """One answer by an adapter that writes once a message or sentence.

        A cached reply was written otherwise than the message it is now, so nothing is reused.

        Args:
            prompt (Prompt): As it is fed if it is no conversation.
            messages (Sequence[Message]): The conversation; empty: none.
            template_kwargs (dict): For the chat template.
        """
        cache, token_ids = make_prompt_cache(self.pair.model), prompt.token_ids
        if messages:
            spans = message_spans(
                self.pair.tokenizer,
                messages,
                add_generation_prompt=True,
                sentences=self.pair.granularity == "sentence_mean",
                template_kwargs=template_kwargs,
            )
            token_ids = spans.token_ids
            mark(cache, spans, self.pair.granularity, write=True)
        yield Answer(cache, [], token_ids, initial_state=prompt.initial_state)
        return None


def _left_to_feed(prompt: Prompt, begun: int) -> tuple[list[list[int]], list[str]]:
    """The segments of a prompt after its first ``begun`` tokens, cut at points, and their kinds."""
    segments, kinds, place = [], [], 0
    for segment, kind in zip(prompt.segments, prompt.segment_types, strict=True):
        left = segment[max(0, begun - place) :]
        parts = cut(left, max(begun, place)) if left else []
        segments += parts
        kinds += [*[POINT] * (len(parts) - 1), kind] if parts else []
        place += len(segment)
    return segments, kinds
