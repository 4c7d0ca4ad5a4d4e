"""A conversation with a memory as it goes on: told, asked, forgotten."""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import mlx.nn as nn
from mlx_lm.generate import GenerationResponse
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..adapters.drafts import cannot_draft
from ..files import Witness, expanded
from ..memory.actions import PromptCache
from ..memory.history import MOST_SOURCE
from ..model.arguments import expect
from ..model.patch import pack, spread_of_memory
from ..text.files import read_messages
from ..text.messages import Message, check_messages
from ..text.turns import as_messages, leading_system
from .conversation import PREFILL_STEP_SIZE, Conversation
from .draft import Draft
from .generation import Generation
from .lock import TurnLock
from .past import UNDO_BYTES, UNDO_TURNS, Before, Past
from .remembering import Written, short_step, written

# Arguments of mlx-lm's generation that would work on another cache than the session's.
_NOT_OURS = ("prompt_cache", "max_kv_size", "draft_model", "input_embeddings")


class Talk:
    """What a ``MemorySession`` does that goes forward; arguments and errors are its own."""

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
        prompt_cache: PromptCache | None = None,
        draft_model: nn.Module | None = None,
        undo_turns: int = UNDO_TURNS,
        undo_bytes: int = UNDO_BYTES,
    ):
        expect("MemorySession(model, tokenizer)", model=model, tokenizer=tokenizer)
        pack(model)
        if max_context is not None and max_context < 1:
            raise ValueError(f"max_context is {max_context}; expected 1 token or more, or None.")
        if min(undo_turns, undo_bytes) < 0:
            raise ValueError(
                f"undo_turns is {undo_turns}, undo_bytes {undo_bytes}; expected 0 or more."
            )
        if draft_model is not None and (why := cannot_draft(model, draft_model)):
            raise ValueError(why)
        wrapped = isinstance(tokenizer, TokenizerWrapper)
        self.model = model
        self.tokenizer = tokenizer if wrapped else TokenizerWrapper(tokenizer)
        self.max_context, self.max_kv_size = max_context, max_kv_size
        self.template_kwargs = dict(template_kwargs or {})
        self._opening = _opening(system_prompt, messages)
        self._lock, self._holds, self._witness = TurnLock(), 0, Witness()
        self._draft = None if draft_model is None else Draft(draft_model)
        spread = spread_of_memory(model)
        if spread.pipelined:  # all processes are to let go of the same turns
            undo_bytes = undo_bytes * len(spread.kept) // len(spread.all_memories)
        self._conversation = self._begin(self._opening, Past(undo_turns, undo_bytes), prompt_cache)

    def _begin(
        self, opening: Sequence[Message], past: Past, cache: PromptCache | None = None
    ) -> Conversation:
        return Conversation(
            self.model,
            self.tokenizer,
            make_prompt_cache(self.model, self.max_kv_size) if cache is None else cache,
            opening,
            max_context=self.max_context,
            template_kwargs=self.template_kwargs,
            past=past,
            draft=self._draft,
        )

    def _begin_anew(self, opening: Sequence[Message]) -> None:
        """Begin again in a way that can be undone."""
        talk = self._conversation
        talk.past.add(Before(talk.context.mark(), talk.said, [], answered=False, write=False))
        self._conversation = self._begin(opening, talk.past)

    @property
    def messages(self) -> list[Message]:
        """All that was said, and what is to be fed with the next turn; a copy."""
        said = self._conversation.said
        return copy.deepcopy([*said.messages, *said.pending])

    @property
    def context_tokens(self) -> list[int]:
        """The tokens in the context, in order; a copy."""
        return list(self._conversation.context.tokens)

    @property
    def cache(self) -> PromptCache:
        """The prompt cache. Between turns, what ``dm.memory_state`` and its like work on."""
        return self._conversation.context.cache

    def stream(
        self, text: str | Message | Sequence[Message], **generation: Unpack[Generation]
    ) -> Generator[GenerationResponse, None, None]:
        """Answer, piece by piece.

        Closing the iterator early, or leaving the loop over it, ends the answer there: what was
        said so far stays said. After an error the session is as it was before the turn; only what
        it had forgotten to make room is fed again.

        Args:
            text (str): What the user says; or messages, results of tools for instance.
            **generation: For ``mlx_lm.stream_generate``: ``max_tokens`` (256), ``sampler``,
              ``logits_processors``, ``prefill_step_size``, ``kv_bits``, ...

        Yields:
            GenerationResponse: mlx-lm's pieces of the answer.

        Raises:
            TypeError, ValueError: If the messages or arguments cannot be used.
        """
        new = as_messages(text)
        self._check(generation)
        return self._lock.run(self._answer(new, generation))

    def _check(self, generation: Mapping[str, Any]) -> None:
        unusable = [name for name in _NOT_OURS if name in generation]
        if unusable:
            raise ValueError(
                f"A session has a prompt cache of its own and takes no {', '.join(unusable)}. "
                "max_kv_size and draft_model are arguments of MemorySession."
            )
        if self._draft is not None and generation.get("kv_bits") is not None:
            raise ValueError("mlx-lm cannot draft with a quantized KV cache: leave out kv_bits.")

    def _answer(
        self, new: list[Message], generation: Generation, write: bool = True
    ) -> Generator[GenerationResponse, None, None]:
        yield from self._conversation.answer(new, generation, write=write and not self._holds)

    def ask(self, text: str | Message | Sequence[Message], **generation: Unpack[Generation]) -> str:
        """The whole answer. Arguments and errors as in ``stream``."""
        return "".join(response.text for response in self.stream(text, **generation))

    def remember(
        self,
        text: str | Path | Message | Sequence[Message],
        *,
        prefill_step_size: int = PREFILL_STEP_SIZE,
    ) -> int:
        """Write a text, as one message of the user's, or messages, without answering.

        They stay in the context until that is forgotten.

        Args:
            text (str): What is told; a ``Path`` is the file that holds it, as ``--remember`` reads
              it; or messages.
            prefill_step_size (int): Tokens a step.

        Returns:
            int: How many tokens were fed.

        Raises:
            TypeError, ValueError: If these are no messages.
        """
        new, source = as_messages(_told(text)), text.name if isinstance(text, Path) else ""
        with self._lock:
            return self._conversation.feed(
                new,
                write=not self._holds,
                step_size=prefill_step_size,
                source=source[:MOST_SOURCE],
            )

    def remembering(
        self,
        messages: str | Path | Message | Sequence[Message],
        *,
        prefill_step_size: int | None = None,
        source: str = "",
    ) -> Generator[Written, None, None]:
        """``remember`` step by step: to show how far it is, and to stop it.

        The messages are fed a few at a time, and are one turn to ``undo``. Closing the iterator
        early keeps those that were fed whole; so does an error.

        Args:
            messages: As in ``remember``.
            prefill_step_size (int): Tokens a step; None: 256 on a CPU, 1,024 on a GPU.
            source (str): What a memory file that keeps its last turns calls this one: the name of
              the file that it is from. Default: that of a ``Path``.

        Yields:
            Written: ``tokens`` fed so far, ``total`` that there are about, ``messages`` that stay
            if it ends here.

        Raises:
            TypeError, ValueError: If these are no messages.
        """
        new = as_messages(_told(messages))
        source = source or (messages.name if isinstance(messages, Path) else "")
        return self._lock.run(self._written(new, prefill_step_size or short_step(), source))

    def _written(
        self, new: list[Message], step_size: int, source: str
    ) -> Generator[Written, None, None]:
        write, source = not self._holds, source[:MOST_SOURCE]
        yield from written(self._conversation, new, write=write, step_size=step_size, source=source)

    def told_before(self, messages: Path | str | Message | Sequence[Message]) -> int:
        """How many of these messages the memory has been told already.

        What was told before the session is known where the memory file that it was restored from
        keeps the last turns, as those of the command line and of the server do.

        Args:
            messages: As for ``remember``.

        Raises:
            TypeError, ValueError: If these are no messages.
        """
        new = as_messages(_told(messages))
        said = self._conversation.said
        filed = said.filed.told if said.filed is not None else None
        told = filed or self._conversation.nothing_told
        known = {*told.messages, *told.of(said.messages)}
        return sum(fingerprint in known for fingerprint in told.of(new))

    def correct(self, old: str, new: str) -> int:
        """Tell that ``old`` no longer holds and ``new`` does; returns how many tokens were fed."""
        return self.remember(f"That is no longer true: {old}\n{new}")

    def rewrite(self, messages: Sequence[Message]) -> None:
        """Replace what was said: memory and context are dropped, all is fed with the next turn.

        ``undo`` brings back what was there.

        Raises:
            TypeError, ValueError: If these are no messages.
        """
        opening = as_messages(messages)
        with self._lock:
            self._begin_anew(opening)

    def reset(self) -> None:
        """Begin anew, with an empty memory and the opening messages; ``undo`` brings it back."""
        with self._lock:
            self._begin_anew(self._opening)

    def forget_context(self) -> None:
        """Drop the context and keep the memory; the next turn sees only the system prompt."""
        with self._lock:
            self._conversation.forget()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Turns begun within this context are answered without learning.

        What they add to the context is never written later either.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1


def _told(
    text: str | Path | Message | Sequence[Message],
) -> str | Message | Sequence[Message]:
    """What is to be told; a path that was given as text would be told itself."""
    if isinstance(text, Path):
        return read_messages(text)
    one_line = isinstance(text, str) and len(text) < 1024 and not set(text) & {"\n", "\0"}
    if isinstance(text, str) and one_line and Path(text).suffix and expanded(text).is_file():
        raise ValueError(
            f"{text} is a file. To tell what it holds: remember(Path({text!r})); its name alone "
            "tells nothing."
        )
    return text


def _opening(system_prompt: str | None, messages: Sequence[Message] | None) -> list[Message]:
    opening: list[Message] = []
    if system_prompt is not None:
        opening.append({"role": "system", "content": system_prompt})
    opening += [dict(message) for message in messages or []]
    if opening:
        check_messages(opening)
    if system_prompt is not None and len(leading_system(opening)) > 1:
        raise ValueError(
            "system_prompt and messages both begin with a system message: give one of them."
        )
    return opening
