"""A conversation with a memory, turn by turn: only what is new is fed to the model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import mlx.nn as nn
from mlx_lm.generate import GenerationResponse
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .context import Context, Mark
from .memory import memories, memory_state, read_only
from .messages import Message, check_messages
from .patch import config_of, memory_layers
from .reply import Reply
from .summary import summarize
from .turn_lock import TurnLock
from .turns import Turn, as_messages, end_of_turn, leading_system, newest_turns, turn_of

PREFILL_STEP_SIZE = 2048
MAX_TOKENS = 256

# Arguments of mlx-lm's generation that would work on another cache than the session's.
_NOT_OURS = ("prompt_cache", "max_kv_size", "draft_model", "num_draft_tokens", "input_embeddings")


class _Before(NamedTuple):
    """The session before a turn, to go back to if that fails."""

    mark: Mark
    messages: list[Message]
    visible: list[Message]
    pending: list[Message]
    turns: int


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
        self._granularity = config_of(model).memory_write_granularity
        for attention in memory_layers(model).values():
            attention.pack()
        if max_context is not None and max_context < 1:
            raise ValueError(f"max_context is {max_context}; expected 1 token or more, or None.")
        wrapped = isinstance(tokenizer, TokenizerWrapper)
        self.model = model
        self.tokenizer = tokenizer if wrapped else TokenizerWrapper(tokenizer)
        self.max_context, self.max_kv_size = max_context, max_kv_size
        self.template_kwargs = dict(template_kwargs or {})
        self._opening = _opening(system_prompt, messages)
        self._lock = TurnLock()
        self._holds = 0
        self._begin(
            self._opening,
            make_prompt_cache(model, max_kv_size) if prompt_cache is None else prompt_cache,
        )

    def _begin(self, opening: Sequence[Message], cache: list) -> None:
        if not all(c.empty() for c in cache):
            raise ValueError(
                "The prompt cache holds a context whose messages are unknown. Call "
                "dm.forget_context(cache) first: the session goes on with the memory in it."
            )
        # A system prompt was written when a memory that holds something was begun.
        begun = any(memory.matrix is not None for memory in memories(cache).values())
        self._context = Context(self.model, cache, self._granularity)
        self._visible = leading_system(opening) if begun else []
        self._messages = list(self._visible)
        self._pending = list(opening[len(self._visible) :])
        self._turns = 0

    @property
    def messages(self) -> list[Message]:
        """All that was said, and what is to be fed with the next turn; a copy."""
        return copy.deepcopy([*self._messages, *self._pending])

    @property
    def cache(self) -> list:
        """The prompt cache. Between turns, what ``dm.memory_state`` and its like work on."""
        return self._context.cache

    def stream(
        self, text: str | Message | Sequence[Message], **generation: object
    ) -> Iterator[GenerationResponse]:
        """Answer, piece by piece.

        Closing the iterator early, or leaving the loop over it, ends the answer there: what was
        said so far stays said. After an error the session is as it was before the turn.

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
        with self._lock, self._undone_on_error(), self._held():
            turn = self._open_turn(new, reply=False, room=0, step_size=prefill_step_size)
            self._context.feed(turn.new, step_size=prefill_step_size)
            self._commit(new)
            return len(turn.new.token_ids)

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
            self._begin(opening, make_prompt_cache(self.model, self.max_kv_size))

    def reset(self) -> None:
        """Begin anew, with an empty memory and the opening messages."""
        with self._lock:
            self._begin(self._opening, make_prompt_cache(self.model, self.max_kv_size))

    def forget_context(self) -> None:
        """Drop the context and keep the memory; the next turn sees only the system prompt."""
        with self._lock:
            self._context.forget()
            self._visible = leading_system(self._visible)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Turns within this context are answered without learning.

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
            new._context = self._context.fork()
            for name in ("_messages", "_visible", "_pending"):
                setattr(new, name, list(getattr(self, name)))
            return new

    def stats(self) -> dict[str, object]:
        """Numbers about the conversation and its memory.

        Returns:
            dict: ``turns``, ``messages``, ``context_tokens``, ``tokens_written``,
            ``memory_bytes``, and ``layers``: layer index → ``norm``, ``effective_rank``.
        """
        with self._lock.reading():
            found = list(memories(self._context.cache).values())
            return {
                "turns": self._turns,
                "messages": len(self._messages) + len(self._pending),
                "context_tokens": len(self._context.tokens),
                "tokens_written": found[0].written[0],
                "memory_bytes": sum(memory.nbytes for memory in found),
                "layers": summarize(memory_state(self._context.cache)),
            }

    def save(self, path: str | Path, *, note: str = "") -> None:
        """Save to a file ending in ``.safetensors`` the memory alone, else to a folder everything.

        A session restored from a folder goes on exactly as this one would. A memory file has no
        text in it but ``note``.

        Raises:
            ValueError: If the state is not finite.
            OSError: If the file or folder cannot be written.
        """
        from .session_file import save_session

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
        from .session_file import restore_session

        return restore_session(cls, Path(path), model, tokenizer, settings)

    # One turn: open, feed or decode, close, commit; or back to before it.

    def _answer(
        self, new: list[Message], generation: dict[str, object]
    ) -> Iterator[GenerationResponse]:
        step_size = int(generation.get("prefill_step_size", PREFILL_STEP_SIZE))
        room = max(0, int(generation.get("max_tokens", MAX_TOKENS)))
        interrupt: BaseException | None = None
        with self._undone_on_error(), self._held():
            turn = self._open_turn(new, reply=True, room=room, step_size=step_size)
            reply = Reply(self._context, turn.new)
            try:
                yield from reply.decode(self.tokenizer, generation)
            except (GeneratorExit, KeyboardInterrupt) as error:
                if not reply.started:
                    raise
                interrupt = error
                reply.rewind()
            self._close_turn(new, turn, reply, step_size)
        if interrupt is not None:
            raise interrupt

    def _open_turn(self, new: list[Message], *, reply: bool, room: int, step_size: int) -> Turn:
        """Work out the new tokens, and make the context what they are to follow."""
        turn = self._turn_of(new, reply)
        length = len(self._context.tokens) or turn.start
        if self._visible and self.max_context is not None:
            free = self.max_context - len(turn.new.token_ids) - room
            if length > free:
                budget = min(free, self.max_context // 2)
                self._visible = newest_turns(self._visible, turn.seen, budget)
                self._context.forget()
                turn = self._turn_of(new, reply)
        if not self._context.tokens:
            # It has been written, if it was to be.
            self._context.feed(turn.seen, step_size=step_size, write=False)
        return turn

    def _turn_of(self, new: list[Message], reply: bool) -> Turn:
        return turn_of(
            self.tokenizer,
            self._visible,
            [*self._pending, *new],
            reply=reply,
            sentences=self._sentences,
            template_kwargs=self.template_kwargs,
        )

    def _close_turn(self, new: list[Message], turn: Turn, reply: Reply, step_size: int) -> None:
        """Feed what the template puts after the reply."""
        said: Message = {"role": "assistant", "content": reply.text}
        end = end_of_turn(
            self.tokenizer,
            turn,
            [*self._visible, *self._pending, *new, said],
            reply.tokens,
            self.tokenizer.eos_token_ids,
            sentences=self._sentences,
            template_kwargs=self.template_kwargs,
        )
        if self._context.tokens:
            self._context.feed(reply.rest_of(end), step_size=step_size)
        self._context.settle()
        self._commit([*new, said])
        self._turns += 1

    def _commit(self, new: list[Message]) -> None:
        said = [*self._pending, *new]
        self._messages = [*self._messages, *said]
        self._visible = [*self._visible, *said]
        self._pending = []

    @property
    def _sentences(self) -> bool:
        return self._granularity == "sentence_mean"

    def _held(self) -> AbstractContextManager:
        return read_only(self._context.cache) if self._holds else nullcontext()

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        before = _Before(
            self._context.mark(), self._messages, self._visible, self._pending, self._turns
        )
        try:
            yield
        except BaseException:
            self._context.back_to(before.mark)
            self._messages, self._visible, self._pending, self._turns = before[1:]
            raise


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
