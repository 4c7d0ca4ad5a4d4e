"""Many conversations at once: each is written into a memory of its own, then asked."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import PromptProcessingBatch, batch_generate, generation_stream
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import memory_state, read_only, set_memory_state, write_spans
from ..model.patch import config_of, pack
from ..text.messages import Message
from ..text.spans import Spans, message_spans
from ..text.thinking import at_once

State = Mapping[int, mx.array]  # layer index -> float32 [1, H, r, r]: one conversation's memory


@dataclass
class Runner:
    """A model with an adapter, and how it is asked: greedily, in batches.

    Each answer is what a ``MemorySession`` of its own would give: the conversation is remembered,
    its context dropped, the question asked.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): mlx-lm's or transformers' tokenizer, with a chat template.
        batch_size (int): Conversations at once.
        max_tokens (int): Length of an answer at most.
        write_questions (bool): Write questions and answers into the memory while answering, as
          chatting does. Default: they only read, as in training.
        template_kwargs (Mapping): For the chat template. A model that can think answers at once,
          unless ``enable_thinking`` is among them.

    Raises:
        ValueError: If the model has no adapter.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    batch_size: int = 32
    max_tokens: int = 32
    write_questions: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._granularity = config_of(self.model).memory_write_granularity
        if not isinstance(self.tokenizer, TokenizerWrapper):
            self.tokenizer = TokenizerWrapper(self.tokenizer)
        self.template_kwargs = at_once(self.tokenizer, self.template_kwargs)
        pack(self.model)

    def remember(self, conversations: Sequence[Sequence[Message]]) -> list[State]:
        """The memory that each conversation leaves, written into an empty one."""
        states: list[State] = []
        for chunk in self._chunks(conversations):
            states += self._remember([self._spans(messages) for messages in chunk])
        return states

    def ask(
        self,
        conversations: Sequence[Sequence[Message]],
        states: Sequence[State | None] | None = None,
    ) -> list[str]:
        """The answer to the last message of each conversation.

        Args:
            conversations (Sequence[Sequence[Message]]): All that is in the context.
            states (Sequence[State]): The memory of each, unchanged by this; None: an empty one,
              under which the model answers as it would without the adapter (unless
              ``write_questions``).
        """
        states = [None] * len(conversations) if states is None else list(states)
        answers: list[str] = []
        for chunk in self._chunks(list(zip(conversations, states, strict=True))):
            prompts = [self._spans(messages, add_generation_prompt=True) for messages, _ in chunk]
            answers += self._answers(prompts, [self.cache(state) for _, state in chunk])
        return answers

    def tokens(self, text: str) -> list[int]:
        """The ids of a text on its own, without those that a context begins with."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _remember(self, tellings: list[Spans]) -> list[State]:
        caches = [self.cache() for _ in tellings]
        with ExitStack() as stack, mx.stream(generation_stream):
            for cache, spans in zip(caches, tellings, strict=True):
                self._write(stack, cache, spans)
            batch = PromptProcessingBatch(self.model, list(range(len(caches))), caches)
            batch.prompt([list(spans.token_ids) for spans in tellings])
        states = memory_state(batch.prompt_cache)
        mx.eval(states)
        return [{i: x[row : row + 1] for i, x in states.items()} for row in range(len(caches))]

    def _answers(self, prompts: list[Spans], caches: list[list]) -> list[str]:
        with ExitStack() as stack:
            for cache, spans in zip(caches, prompts, strict=True):
                if self.write_questions:
                    self._write(stack, cache, spans)
                else:
                    stack.enter_context(read_only(cache))
            response = batch_generate(
                self.model,
                self.tokenizer,
                [list(spans.token_ids) for spans in prompts],
                prompt_caches=caches,
                max_tokens=self.max_tokens,
                completion_batch_size=len(prompts),
                prefill_batch_size=len(prompts),
            )
        return [text.strip() for text in response.texts]

    def _write(self, stack: ExitStack, cache: list, spans: Spans) -> None:
        """Give a prompt cache the ids of its coming tokens, if the adapter writes by them."""
        if self._granularity != "token":
            sentence_ids = None if spans.sentence_ids is None else [spans.sentence_ids]
            writing: AbstractContextManager = write_spans(cache, [spans.message_ids], sentence_ids)
            stack.enter_context(writing)

    def _spans(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Spans:
        return message_spans(
            self.tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            sentences=self._granularity == "sentence_mean",
            template_kwargs=self.template_kwargs,
        )

    def cache(self, state: State | None = None) -> list:
        """A fresh prompt cache with this memory; None: an empty one."""
        cache = make_prompt_cache(self.model)
        if state is not None:
            set_memory_state(cache, state)
        return cache

    def _chunks(self, items: Sequence) -> list[Sequence]:
        return [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
