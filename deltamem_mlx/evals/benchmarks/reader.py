"""A model that reads a material once and answers many questions about it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.generate import (
    GenerationBatch,
    PromptProcessingBatch,
    StopSequences,
    generation_stream,
)
from mlx_lm.sample_utils import greedy_sampler

from ...memory.actions import memory_state, read_only
from ...session.context import Context
from ...text.messages import Message
from ...text.spans import Spans
from ..runner import Runner, State
from .task import first_line

# Over a long context a CPU is fastest in small steps, and a GPU has to be kept busy.
CPU_STEP, GPU_STEP = 128, 1024


class Asked(NamedTuple):
    """A question to a prompt cache that may be shared with other questions.

    Attributes:
        cache (list): Prompt cache of what comes before; it stays as it is.
        tokens (list[int]): What is left of the prompt, at least one token.
        max_tokens (int): Length of the answer at most.
    """

    cache: list
    tokens: list[int]
    max_tokens: int


@dataclass
class Reader(Runner):
    """A runner whose questions share what they are about.

    Questions and answers never write into the memory (``write_questions`` has no effect).
    """

    def prompt(self, messages: Sequence[Message]) -> Spans:
        """A conversation with the header of the answer."""
        return self._spans(messages, add_generation_prompt=True)

    def count(self, text: str) -> int:
        """How many tokens a text has by itself."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def tell(self, conversations: Sequence[Sequence[Message]]) -> State:
        """The memory that conversations leave one after the other, each in a fresh context."""
        context = self._context(None)
        for messages in conversations:
            context.feed(self._spans(messages), step_size=_step_size())
            context.forget()
        return memory_of(context.cache)

    def read(self, prefix: Spans, state: State | None = None, *, write: bool) -> list:
        """A prompt cache that holds the start of a prompt.

        Args:
            prefix (Spans): The tokens and their ids.
            state (State): The memory to begin with. None: an empty one.
            write (bool): Whether what is read is written into the memory.
        """
        context = self._context(state)
        context.feed(prefix, step_size=_step_size(), write=write)
        return context.cache

    def answers(self, asked: Sequence[Asked], *, one_line: bool) -> list[str]:
        """Greedy answers, all questions at once.

        Args:
            asked (Sequence[Asked]): Questions, of which several may have the same prompt cache.
            one_line (bool): Stop after the first line that is not empty.
        """
        with mx.stream(generation_stream):
            batch = self._batch(asked)
            tokens: list[list[int]] = [[] for _ in asked]
            while len(batch):
                for response in batch.next():
                    if response.finish_reason != "stop":
                        tokens[response.uid].append(response.token)
                if one_line:
                    keep = [i for i, n in enumerate(batch.uids) if not self._has_line(tokens[n])]
                    if len(keep) < len(batch):
                        batch.filter(keep)
        texts = [self.tokenizer.decode(own).strip() for own in tokens]
        return [first_line(text) for text in texts] if one_line else texts

    def _batch(self, asked: Sequence[Asked]) -> GenerationBatch:
        """The questions with their prompts fed."""
        stop = StopSequences([[token] for token in self.tokenizer.eos_token_ids])
        with ExitStack() as stack:
            for cache in {id(a.cache): a.cache for a in asked}.values():
                stack.enter_context(read_only(cache))
            prompts = PromptProcessingBatch(
                self.model,
                list(range(len(asked))),
                [a.cache for a in asked],
                samplers=[greedy_sampler] * len(asked),
                logits_processors=[[]] * len(asked),
                stop_sequences=[stop] * len(asked),
                max_tokens=[a.max_tokens for a in asked],
            )
        return prompts.generate([list(a.tokens) for a in asked])

    def _has_line(self, tokens: list[int]) -> bool:
        return "\n" in self.tokenizer.decode(tokens).lstrip()

    def _context(self, state: State | None) -> Context:
        return Context(self.model, self.cache(state), self._granularity)


def _step_size() -> int:
    return CPU_STEP if mx.default_device() == mx.Device(mx.cpu) else GPU_STEP


def memory_of(cache: list) -> State:
    """The memory in a prompt cache of one conversation, computed."""
    state = memory_state(cache)
    mx.eval(state)
    return state
