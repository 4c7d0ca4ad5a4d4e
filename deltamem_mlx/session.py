"""A conversation with a memory, turn by turn: only what is new is fed to the model."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import GenerationResponse, stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .context import Context, Mark
from .memory import memories, memory_state, read_only
from .messages import Message, check_messages
from .patch import config_of, memory_layers
from .turns import Turn, as_messages, end_of_turn, leading_system, newest_turns, turn_of

STEP_SIZE = 2048
_MAX_TOKENS = 256
_OWN = ("prompt_cache", "max_kv_size", "draft_model", "num_draft_tokens", "input_embeddings")


class MemorySession:
    """A conversation whose memory outlives its context.

    Each turn feeds the tokens that it adds, and writes each of them once. With sequence-state
    adapters the ids of messages and sentences follow the chat template (arXiv 2605.12357,
    section 3.3): the opening and a new message are one ingest, the reply is written token by
    token, the template's end of turn is an ingest of its own. (Where the KV cache is a full
    sliding window, an end token that the model generated itself stays the one-token write that
    decoding made it.)

    A session may be used by several threads, one turn at a time; any number of sessions share a
    model.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): mlx-lm's or transformers' tokenizer, with a chat template.
        system_prompt (str): Stays visible when the context is forgotten; written once, with the
          first turn.
        messages (Sequence[Message]): Messages to open with, fed with the first turn.
        max_context (int): Tokens that the context may hold, reply included. A turn that would
          exceed it forgets the context first; the newest turns are kept visible, in up to half
          of it.
        template_kwargs (Mapping): For the chat template: ``tools``, ``enable_thinking``, ...
        max_kv_size (int): Make the KV cache a sliding window of this many tokens.
        prompt_cache (list): Go on with the memory in this prompt cache.

    Raises:
        TypeError, ValueError: If the model has no adapter, or an argument cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        *,
        system_prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        max_context: int | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        max_kv_size: int | None = None,
        prompt_cache: list | None = None,
    ):
        self._granularity = config_of(model).memory_write_granularity
        for attention in memory_layers(model).values():
            attention.pack()
        wrapped = isinstance(tokenizer, TokenizerWrapper)
        self.model = model
        self.tokenizer = tokenizer if wrapped else TokenizerWrapper(tokenizer)
        self.max_context, self.max_kv_size = max_context, max_kv_size
        self.template_kwargs = dict(template_kwargs or {})
        self._opening = _opening(system_prompt, messages)
        _check_budget(max_context)
        self._lock = _TurnLock()
        self._read_only = 0
        self._begin(make_prompt_cache(model, max_kv_size) if prompt_cache is None else prompt_cache)

    def _begin(self, cache: list) -> None:
        self._context = Context(self.model, cache, self._granularity)
        self._messages: list[Message] = []  # all that was said
        self._pending = list(self._opening)  # to be fed with the next turn
        self._visible: list[Message] = []  # in the context, or to be fed again without writing
        self._turns = 0
        found = list(memories(cache).values())
        if not all(c.empty() for c in cache if not hasattr(c, "memory")) or any(
            c.size() for c in cache
        ):
            raise ValueError(
                "The prompt cache holds a context whose messages are unknown. Call "
                "dm.forget_context(cache) first: the session keeps the memory in it."
            )
        if any(memory.matrix is not None for memory in found):
            # It was written when this memory began.
            self._visible = leading_system(self._pending)
            self._messages = list(self._visible)
            self._pending = self._pending[len(self._visible) :]

    # Turns.

    def stream(
        self, text: str | Message | Sequence[Message], **generation: object
    ) -> Iterator[GenerationResponse]:
        """Answer, piece by piece.

        Closing the iterator early, or leaving the loop over it, ends the answer there: what was
        said so far stays said. After an error the session is as it was before the turn.

        Args:
            text (str): What the user says, or messages: results of tools, say.
            **generation: For ``mlx_lm.stream_generate``: ``max_tokens`` (256), ``sampler``,
              ``logits_processors``, ``prefill_step_size``, ``kv_bits``, ...

        Yields:
            GenerationResponse: mlx-lm's pieces of the answer.

        Raises:
            TypeError, ValueError: If the messages or arguments cannot be used.
        """
        new = as_messages(text)
        unusable = [name for name in _OWN if name in generation]
        if unusable:
            raise ValueError(
                f"A session has its own prompt cache and cannot take {', '.join(unusable)}; "
                "max_kv_size is an argument of MemorySession."
            )
        return self._lock.run(self._answer(new, generation))

    def ask(self, text: str | Message | Sequence[Message], **generation: object) -> str:
        """The whole answer. Arguments and errors as in ``stream``."""
        return "".join(response.text for response in self.stream(text, **generation))

    def remember(
        self, text: str | Message | Sequence[Message], *, prefill_step_size: int = STEP_SIZE
    ) -> int:
        """Write a text, as one message of the user's, or messages, without answering.

        They stay in the context until ``forget_context``.

        Returns:
            int: How many tokens were fed.

        Raises:
            TypeError, ValueError: If these are no messages.
        """
        new = as_messages(text)
        with self._lock, self._undone_on_error(), self._writing():
            turn = self._open_turn(new, reply=False, room=0, step_size=prefill_step_size)
            self._context.feed(
                turn.new, step_size=prefill_step_size, write=not self._read_only
            )
            self._commit(new)
            return len(turn.new.token_ids)

    def correct(self, old: str, new: str) -> int:
        """Tell that ``old`` no longer holds and ``new`` does. Returns the tokens fed."""
        return self.remember(f"That is no longer true: {old}\n{new}")

    def _answer(
        self, new: list[Message], generation: dict[str, object]
    ) -> Iterator[GenerationResponse]:
        step_size = int(generation.get("prefill_step_size", STEP_SIZE))
        room = max(0, int(generation.get("max_tokens", _MAX_TOKENS)))
        with self._undone_on_error(), self._writing():
            turn = self._open_turn(new, reply=True, room=room, step_size=step_size)
            reply = _Reply(self._context, turn, set(self.tokenizer.eos_token_ids))
            try:
                yield from reply.decode(self.model, self.tokenizer, generation)
            finally:
                # Interrupted: as GeneratorExit by the caller, or by a key in the middle of a step.
                if reply.resume():
                    self._close_turn(new, turn, reply, step_size)

    def _close_turn(
        self, new: list[Message], turn: Turn, reply: "_Reply", step_size: int
    ) -> None:
        said = {"role": "assistant", "content": reply.text}
        suffix = end_of_turn(
            self.tokenizer,
            turn,
            [*self._visible, *self._pending, *new, said],
            reply.tokens,
            self.tokenizer.eos_token_ids,
            sentences=self._sentences,
            template_kwargs=self.template_kwargs,
        )
        suffix = reply.without_end(suffix, self._granularity)
        self._context.feed(suffix, step_size=step_size, write=not self._read_only)
        self._context.settle()
        self._commit([*new, said])
        self._turns += 1
