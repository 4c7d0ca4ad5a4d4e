"""The turns of one conversation: open, feed or decode, close; or back to before a failed one.

`MemorySession` is this with a lock around it, and with names that are promised.
"""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TypedDict

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import PromptCache, memories, read_only
from ..memory.told import Fingerprints
from ..model.patch import config_of, spread_of_memory
from ..text.messages import Message
from ..text.spans import Spans
from ..text.turns import Turn, end_of_turn, leading_system, newest_turns, spans_with, turn_of
from .context import Context
from .draft import Draft
from .file import SavedSession
from .generation import Generation
from .past import Before, Filing, Past, Present, Said
from .reply import Reply

PREFILL_STEP_SIZE = 2048
MAX_TOKENS = 256


class Rendering(TypedDict):
    """How messages become tokens: see ``message_spans``."""

    sentences: bool
    template_kwargs: Mapping[str, object]


class Conversation:
    """One conversation with a model that has a memory.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): Its tokenizer, with a chat template.
        cache (list): A prompt cache without context; its memory goes on.
        opening (Sequence[Message]): What to feed with the first turn. System messages at its start
          are not, if the memory holds something: they were written when it was begun.
        max_context (int): Tokens in the context at most.
        template_kwargs (Mapping): For the chat template.
        past (Past): Where earlier turns are kept. Default: none are.
        draft (Draft): Guesses ahead of the model. Default: plain decoding.

    Raises:
        ValueError: If the prompt cache has a context, or no memory.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        cache: PromptCache,
        opening: Sequence[Message],
        *,
        max_context: int | None,
        template_kwargs: Mapping[str, object],
        past: Past | None = None,
        draft: Draft | None = None,
    ):
        if not all(c.empty() for c in cache):
            raise ValueError(
                "The prompt cache holds a context whose messages are unknown. Call "
                "dm.forget_context(cache) first: the session goes on with the memory in it."
            )
        begun = any(memory.matrix is not None for memory in memories(cache).values())
        seen = leading_system(opening) if begun else []
        self.tokenizer, self.max_context = tokenizer, max_context
        self.context = Context(model, cache, config_of(model).memory_write_granularity)
        self.said = Said(seen, seen, list(opening[len(seen) :]))
        self._known: tuple[list[Message], Spans] | None = None  # messages and their spans
        self._rendering: Rendering = {
            "sentences": self.context.granularity == "sentence_mean",
            "template_kwargs": template_kwargs,
        }
        self.past = Past(0) if past is None else past
        self.filing: Filing | None = None
        self.nothing_told = Fingerprints.nothing()  # what is told is added to in its files
        self.spread = spread_of_memory(model)
        self._draft = draft

    @property
    def rendered_with(self) -> Mapping[str, object]:
        """The settings of the chat template."""
        return self._rendering["template_kwargs"]

    def fork(self) -> "Conversation":
        """An independent copy."""
        new = copy.copy(self)
        new.context, new.past = self.context.fork(), self.past.copy()
        new._draft = None if self._draft is None else self._draft.fresh()
        return new

    def forget(self) -> None:
        """Drop the context; the next turn sees the system messages of the start."""
        self.context.forget()
        self.said = self.said._replace(visible=leading_system(self.said.visible))

    def feed(self, new: list[Message], *, write: bool, step_size: int, source: str = "") -> int:
        """Feed messages without answering; returns how many tokens they are."""
        return sum(self.feeding(new, write=write, step_size=step_size, source=source))

    def feeding(
        self,
        new: list[Message],
        *,
        write: bool,
        step_size: int,
        source: str = "",
        goes_on: bool = False,
    ) -> Generator[int, None, None]:
        """The same step by step: yields how many tokens each fed. All is kept, or nothing is.

        ``source`` names the file that it is from. With ``goes_on`` it is part of the turn before,
        and taken back with that.
        """
        with self._one_turn(new, answered=False, write=write, goes_on=goes_on):
            turn = self._open(new, reply=False, room=0, step_size=step_size)
            yield from self.context.feeding(turn.new, step_size=step_size)
            self._commit(new, turn.spans, source)

    def answer(
        self, new: list[Message], generation: Generation, *, write: bool
    ) -> Iterator[GenerationResponse]:
        """Feed messages and yield mlx-lm's pieces of the answer.

        An answer that is closed early, or interrupted by a key, is kept as far as it was yielded.
        After an error all is as it was before the turn.
        """
        step_size = generation.get("prefill_step_size", PREFILL_STEP_SIZE)
        room = max(0, generation.get("max_tokens", MAX_TOKENS))
        interrupt: BaseException | None = None
        with self._one_turn(new, answered=True, write=write):
            turn = self._open(new, reply=True, room=room, step_size=step_size)
            drafts = self.context.can_draft(len(turn.new.token_ids) + room)
            reply = Reply(self.context, turn.new, self._draft if drafts else None)
            try:
                yield from reply.decode(self.tokenizer, generation, step_size)
            except (GeneratorExit, KeyboardInterrupt) as error:
                if not reply.started:
                    raise
                interrupt = error
                reply.rewind(step_size)
            self._close(new, turn, reply, step_size)
        if interrupt is not None:
            raise interrupt

    def _open(self, new: list[Message], *, reply: bool, room: int, step_size: int) -> Turn:
        """Work out the new tokens, and make the context what they are to follow."""
        turn = self.plan(new, reply=reply, room=room)
        if not self.context.tokens:
            # It has been written, if it was to be.
            self.context.feed(turn.seen, step_size=step_size, write=False)
        return turn

    def plan(self, new: list[Message], *, reply: bool, room: int) -> Turn:
        """The new tokens, after forgetting the context if ``room`` more would not fit into it.

        Where the context is empty then, what the turn has ``seen`` is to be fed first, unwritten.
        """
        turn = self._turn_of(new, reply)
        length = len(self.context.tokens) or turn.start
        if self.said.visible and self.max_context is not None:
            free = self.max_context - len(turn.new.token_ids) - room
            if length > free:
                budget = min(free, self.max_context // 2)
                kept = newest_turns(self.said.visible, turn.seen, budget)
                self.context.forget()
                self.said = self.said._replace(visible=kept)
                turn = self._turn_of(new, reply)
        return turn

    def length_of(self, new: list[Message]) -> int:
        """How many tokens messages would add, as the chat template has them."""
        return len(self._turn_of(new, reply=False).new.token_ids)

    def _turn_of(self, new: list[Message], reply: bool) -> Turn:
        coming = [*self.said.pending, *new]
        return turn_of(
            self.tokenizer,
            self.said.visible,
            coming,
            reply=reply,
            known=self._known_spans(),
            **self._rendering,
        )

    def _close(self, new: list[Message], turn: Turn, reply: Reply, step_size: int) -> None:
        """Feed what the template puts after the reply."""
        said, spans, end = self.ending(new, turn, reply.text, reply.tokens)
        # Empty after an interrupt that a full sliding window could not go back from.
        if self.context.tokens:
            self.context.feed(reply.rest_of(end), step_size=step_size)
        self.context.settle()
        self.commit_turn(said, spans)

    def ending(
        self, new: list[Message], turn: Turn, text: str, tokens: list[int]
    ) -> tuple[list[Message], Spans, Spans]:
        """What a turn said, with the reply; the spans of it all; those that follow the reply."""
        reply = {"role": "assistant", "content": text}
        spans = spans_with(
            self.tokenizer,
            [*self.said.visible, *self.said.pending, *new],
            [reply],
            known=turn.said,
            **self._rendering,
        )
        return [*new, reply], spans, end_of_turn(turn, spans, tokens, self.tokenizer.eos_token_ids)

    def commit_turn(self, said: list[Message], spans: Spans) -> None:
        """Keep what `ending` gave, once all of it has been fed."""
        self._commit(said, spans)
        self.said = self.said._replace(turns=self.said.turns + 1)

    def _commit(self, new: list[Message], spans: Spans, source: str = "") -> None:
        messages, visible, pending = self.said[:3]
        new = [*pending, *new]
        self.said = self.said._replace(
            messages=[*messages, *new],
            visible=[*visible, *new],
            pending=[],
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            source=source,
        )
        self._known = self.said.visible, spans

    def _known_spans(self) -> Spans | None:
        """The spans of what is visible: a turn need not render all of it message by message."""
        if self._known is not None and self._known[0] is self.said.visible:
            return self._known[1]
        return None

    def _writing(self, write: bool) -> AbstractContextManager[None]:
        return nullcontext() if write else read_only(self.context.cache)

    @contextmanager
    def _one_turn(
        self, new: list[Message], *, answered: bool, write: bool, goes_on: bool = False
    ) -> Iterator[None]:
        """A turn is complete and kept, or all is as it was before it."""
        before = Before(self.context.mark(), self.said, new, answered, write)
        try:
            with self._writing(write):
                yield
            self._check_finite(before)
        except BaseException:
            self._go_back(before)
            raise
        if goes_on:
            self.past.add_to_last(new)
        else:
            self.past.add(before)

    def _check_finite(self, before: Before) -> None:
        """Raise ValueError if the turn has made the memory overflow."""
        changed = [
            memory.matrix
            for i, memory in memories(self.context.cache).items()
            if memory.matrix is not None and memory.matrix is not before.mark.memory[i][0]
        ]
        finite = [mx.isfinite(state).all() for state in changed]
        bad = bool(finite) and not mx.stack(finite).all().item()
        if self.spread.ranks.any(bad) if self.spread.pipelined else bad:
            raise ValueError(
                "After this turn the memory was not finite: it was taken back, and the memory is "
                "as it was before. An adapter whose gates let states grow does that; inspect it."
            )

    def undo(self, turns: int = 1) -> list[Message]:
        """Go back to before the last ``turns``; returns what they were given.

        The memory is what it was, bit for bit. What is visible then stays in the context where
        that can be cut, else it is fed again with the next turn, unwritten.

        Raises:
            ValueError: If so many turns are not kept.
        """
        undone = self.past.undone or self.present()
        taken = self.past.take(turns)
        if taken:
            self._go_back(taken[0])
            self.past.undone = undone
        return [message for before in taken for message in before.new]

    def redo(self) -> int:
        """Put back all turns that were taken back since the last one; returns how many.

        Raises:
            ValueError: If there is nothing to put back.
        """
        left = len(self.past)
        self.restore(self.past.put_back())
        return len(self.past) - left

    def undo_to_user_message(self, index: int) -> None:
        """Go back to just before the user's message ``index`` was fed.

        Raises:
            IndexError: If there is no such message.
            ValueError: If its turn is not kept.
        """
        said = [*self.said.messages, *self.said.pending]
        asked, count = index, sum(message["role"] == "user" for message in said)
        index += count if index < 0 else 0
        if not 0 <= index < count:
            raise IndexError(f"There is no user message {asked}: {count} have been said.")
        still = sum(message["role"] == "user" for message in self.said.messages)
        if index >= still:  # nothing has been fed since
            place = [i for i, m in enumerate(self.said.pending) if m["role"] == "user"]
            self.said = self.said._replace(pending=self.said.pending[: place[index - still]])
            return
        back, place_in_turn = self.past.turn_of_user_message(index, said)
        before = self.past.take(back)[0]
        self._go_back(before)
        self.said = before.said._replace(pending=before.coming[:place_in_turn])

    def present(self) -> Present:
        """The conversation as it is now."""
        before = Before(self.context.mark(), self.said, [], answered=False, write=False)
        return Present(before, self.past.copy())

    def restore(self, present: Present) -> None:
        """Be again what it was, with the way back that there was."""
        self._go_back(present.before)
        self.past = present.past.copy()

    def go_on(self, saved: SavedSession) -> None:
        """Go on from a saved session."""
        self.context.take(saved.cache, saved.tokens, saved.context)
        self.said = saved.said
        for before in saved.past:
            self.past.add(before)

    def _go_back(self, before: Before) -> None:
        self.context.back_to(before.mark)
        self.said = before.said
