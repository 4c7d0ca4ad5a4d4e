"""A conversation with a memory, turn by turn: only what is new is fed to the model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.nn as nn
from mlx_lm.generate import GenerationResponse
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import memories, memory_state
from ..memory.measures import layer_measures
from ..model.patch import pack
from ..text.messages import Message, check_messages
from ..text.turns import as_messages, leading_system
from .conversation import PREFILL_STEP_SIZE, Conversation
from .lock import TurnLock

# Arguments of mlx-lm's generation that would work on another cache than the session's.
_NOT_OURS = ("prompt_cache", "max_kv_size", "draft_model", "num_draft_tokens", "input_embeddings")


class MemorySession:
    """A conversation whose memory outlives its context.

    Each turn feeds the tokens that it adds, and writes each of them once. With sequence-state
    adapters the ids of messages and sentences follow the chat template (arXiv 2605.12357,
    section 3.3): the opening and a new message are one ingest, the reply is written token by
    token, the template's end of turn is an ingest of its own. (Where the KV cache is a full
    sliding window, an end token that the model generated stays the one-token write that decoding
    made it.)

    Threads may share a session: they wait for each other's turns. Any number of sessions share a
    model.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): mlx-lm's or transformers' tokenizer, with a chat template.
        system_prompt (str): Stays visible when the context is forgotten; written once, with the
          first turn.
        messages (Sequence[Message]): Messages to open with, fed with the first turn.
        max_context (int): Tokens that the context may hold, reply included. A turn that would
          exceed it forgets the context first; the newest turns stay visible, in up to half of it.
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
        pack(model)
        if max_context is not None and max_context < 1:
            raise ValueError(f"max_context is {max_context}; expected 1 token or more, or None.")
        wrapped = isinstance(tokenizer, TokenizerWrapper)
        self.model = model
        self.tokenizer = tokenizer if wrapped else TokenizerWrapper(tokenizer)
        self.max_context, self.max_kv_size = max_context, max_kv_size
        self.template_kwargs = dict(template_kwargs or {})
        self._opening = _opening(system_prompt, messages)
        self._lock, self._holds = TurnLock(), 0
        self._talk = self._begin(self._opening, prompt_cache)

    def _begin(self, opening: Sequence[Message], cache: list | None = None) -> Conversation:
        return Conversation(
            self.model,
            self.tokenizer,
            make_prompt_cache(self.model, self.max_kv_size) if cache is None else cache,
            opening,
            max_context=self.max_context,
            template_kwargs=self.template_kwargs,
        )

    @property
    def messages(self) -> list[Message]:
        """All that was said, and what is to be fed with the next turn; a copy."""
        said = self._talk.said
        return copy.deepcopy([*said.messages, *said.pending])

    @property
    def cache(self) -> list:
        """The prompt cache. Between turns, what ``dm.memory_state`` and its like work on."""
        return self._talk.context.cache

    def stream(
        self, text: str | Message | Sequence[Message], **generation: object
    ) -> Iterator[GenerationResponse]:
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
        unusable = [name for name in _NOT_OURS if name in generation]
        if unusable:
            raise ValueError(
                f"A session has a prompt cache of its own and takes no {', '.join(unusable)}. "
                "max_kv_size is an argument of MemorySession."
            )
        return self._lock.run(self._answer(new, generation))

    def _answer(
        self, new: list[Message], generation: dict[str, object]
    ) -> Iterator[GenerationResponse]:
        yield from self._talk.answer(new, generation, write=not self._holds)

    def ask(self, text: str | Message | Sequence[Message], **generation: object) -> str:
        """The whole answer. Arguments and errors as in ``stream``."""
        return "".join(response.text for response in self.stream(text, **generation))

    def remember(
        self,
        text: str | Message | Sequence[Message],
        *,
        prefill_step_size: int = PREFILL_STEP_SIZE,
    ) -> int:
        """Write a text, as one message of the user's, or messages, without answering.

        They stay in the context until that is forgotten.

        Returns:
            int: How many tokens were fed.

        Raises:
            TypeError, ValueError: If these are no messages.
        """
        new = as_messages(text)
        with self._lock:
            return self._talk.feed(new, write=not self._holds, step_size=prefill_step_size)

    def correct(self, old: str, new: str) -> int:
        """Tell that ``old`` no longer holds and ``new`` does; returns how many tokens were fed."""
        return self.remember(f"That is no longer true: {old}\n{new}")

    def rewrite(self, messages: Sequence[Message]) -> None:
        """Replace what was said: memory and context are dropped, all is fed with the next turn.

        Raises:
            TypeError, ValueError: If these are no messages.
        """
        opening = as_messages(messages)
        with self._lock:
            self._talk = self._begin(opening)

    def reset(self) -> None:
        """Begin anew, with an empty memory and the opening messages."""
        with self._lock:
            self._talk = self._begin(self._opening)

    def forget_context(self) -> None:
        """Drop the context and keep the memory; the next turn sees only the system prompt."""
        with self._lock:
            self._talk.forget()

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

    def fork(self) -> "MemorySession":
        """An independent copy of the session: what either learns, the other does not."""
        with self._lock:
            new = copy.copy(self)
            new._lock, new._holds = TurnLock(), 0
            new._talk = self._talk.fork()
            return new

    def stats(self) -> dict[str, object]:
        """Numbers about the conversation and its memory.

        Returns:
            dict: ``turns``, ``messages``, ``context_tokens``, ``tokens_written``,
            ``memory_bytes``, and ``layers``: layer index → ``norm``, ``effective_rank``.
        """
        with self._lock.reading():
            said, context = self._talk.said, self._talk.context
            found = list(memories(context.cache).values())
            return {
                "turns": said.turns,
                "messages": len(said.messages) + len(said.pending),
                "context_tokens": len(context.tokens),
                "tokens_written": found[0].written[0],
                "memory_bytes": sum(memory.nbytes for memory in found),
                "layers": {
                    layer.layer: {"norm": layer.norm, "effective_rank": layer.effective_rank}
                    for layer in layer_measures(memory_state(context.cache))
                },
            }

    def save(self, path: str | Path, *, note: str = "") -> None:
        """Save to a file ending in ``.safetensors`` the memory alone, else to a folder everything.

        A session restored from a folder goes on exactly as this one would. A memory file has no
        text in it but ``note``.

        Raises:
            ValueError: If the state is not finite, or the folder holds other things.
            OSError: If the file or folder cannot be written.
        """
        from .file import save_session

        with self._lock:
            save_session(self, Path(path), note)

    @classmethod
    def restore(
        cls,
        path: str | Path,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        **settings: object,
    ) -> "MemorySession":
        """The session saved at ``path``.

        Args:
            path (Path): A memory file: the context is empty then; or the folder of a session.
            model, tokenizer: As in the constructor, with the adapter that was saved under.
            **settings: For a memory file, as in the constructor; a folder has its own.

        Raises:
            FileNotFoundError: If there is nothing.
            ValueError: If it is damaged, altered, or was saved under another adapter.
        """
        from .file import restore_session

        return restore_session(cls, Path(path), model, tokenizer, settings)


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
