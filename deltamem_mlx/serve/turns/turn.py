"""What one request adds to a memory: which messages are new, and what is fed in which order."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...memory.actions import memories, memory_state
from ...memory.contents import MemoryFile
from ...memory.saving import put_memory
from ...model.ingest import Ingest, span_ids
from ...model.patch import spread_of_memory
from ...session.conversation import Conversation
from ...session.past import Before, Past, Present, Said
from ...text.messages import Message
from ...text.spans import Spans
from ...text.turns import Turn, as_messages, leading_system, turn_of
from ..errors import ApiError
from ..memories.memory import HeldMemory
from ..memories.outcome import TurnOutcome
from ..provider import ServedPair
from ..requests.bodies import MemoryOptions
from ..settings import ServeSettings
from .history import StartingPoint, parts_of, place_of
from .job import Answer, Fed, Feed, Steps
from .lengths import check_length, max_context
from .strengths import TurnStrengths
from .tasks import as_said, is_task


@dataclass
class MemoryTurn:
    """One message to one memory.

    Args:
        pair (ServedPair): The model.
        settings (ServeSettings): Of the server.
        options (MemoryOptions): What the request asks of the memory.
        held (HeldMemory): The memory as it is. Not changed.
        messages (list[Message]): Of the request, as it came.
        template_kwargs (dict): For the chat template.
        room (int): Tokens that the answer may take.
    """

    pair: ServedPair
    settings: ServeSettings
    options: MemoryOptions
    held: HeldMemory
    messages: list[Message]
    template_kwargs: dict[str, object]
    room: int

    def __post_init__(self) -> None:
        by_token = self._writes and self.pair.granularity == "token"
        asked = self.options.strengths and by_token
        spread = spread_of_memory(self.pair.model)
        self._strengths = TurnStrengths(self.pair.tokenizer, spread) if asked else None

    def steps(self) -> Steps:
        """The steps of the turn. Nothing that was there before is changed by them.

        What they come to is None if the request was a client's task beside the conversation.

        Raises:
            ApiError, ValueError, TypeError: If the messages cannot be used.
        """
        lead, rest = parts_of(self.messages)
        aside, place = is_task(rest, self.options), place_of(rest, self.held, self.options)
        new = as_messages(rest[place.known :]) if rest[place.known :] else []
        if not new or new[-1]["role"] == "assistant":
            raise ApiError(
                400,
                "There is no new message to answer: the memory was fed all of these.",
                param="messages",
                code="nothing_new",
            )
        if place.back and self.options.read_only and not aside:
            _check_unwritten(self.held, place.back)
        before = self._before(place.back)
        talk = self._open(lead, before, place.back)
        came = Before(talk.context.mark(memory=False), talk.said, [], True, self._writes)
        yield from self._remember(talk)
        if self.options.context == "drop":
            talk.forget()
        turn = talk.plan(new, reply=True, room=self.room)
        if not talk.context.tokens:
            yield from self._feed(talk, turn.seen, write=False)
        length = len(talk.context.tokens) + len(turn.new.token_ids)
        check_length(length, self.pair, self.settings)
        fed = yield Answer(
            self._watched(talk, turn.new, write=self._writes and not aside),
            talk.context.tokens,
            turn.new.token_ids,
            initial_state=initial_state(self.pair.tokenizer, turn.new.token_ids),
            end=self.pair.end,
        )
        if aside:
            return None
        if fed.cut:
            yield from self._tell(talk, [*new, {"role": "assistant", "content": fed.text}])
        else:
            yield from self._close(talk, new, turn, fed)
        # All that was ever said would grow without end; the history recognises it.
        talk.said = talk.said._replace(messages=[])
        talk.past.add(came)
        told = before.told or self.held.told
        after = replace(before, told=told.after(lead, [*as_said(new), fed.message]))
        outcome = self._outcome(talk, before, after, place)
        if self._strengths is None:
            return outcome
        context = talk.context.tokens if fed.cut else fed.tokens
        return replace(outcome, strengths=self._strengths.of([*new, fed.message], context))

    @property
    def _writes(self) -> bool:
        return not self.options.read_only

    def _before(self, back: int) -> MemoryFile:
        """The memory as it was before its last ``back`` turns."""
        saved = self.held.saved or MemoryFile(
            states={i: np.zeros(shape, np.float32) for i, shape in self.pair.shapes.items()},
            adapter=self.pair.adapter,
            base_model=self.pair.described,
            tokens_written=[0],
            created="",
        )
        try:
            return replace(saved, told=self.held.told).before(back)
        except ValueError as error:
            what = f"This memory cannot be used: {error}."
            raise ApiError(409, what, code="memory_unusable") from None

    def _at(self, before: MemoryFile, back: int) -> Conversation | None:
        """The context as it was before the last ``back`` turns; None: that is not in RAM."""
        talk, behind = self.held.talk, back + self.held.behind
        if talk is None or not behind:
            return None if talk is None else talk.fork()
        place = talk.past.back(behind)
        if place is None:
            return None
        talk = talk.fork()
        talk.past.take(behind)
        states = {} if before.is_new else before.states
        memory = {
            i: (mx.array(states[i]) if i in states else None, list(before.tokens_written))
            for i in before.states
        }
        then = place._replace(mark=place.mark._replace(memory=memory))
        talk.restore(Present(then, talk.past))
        return talk

    def _open(self, lead: list[Message], before: MemoryFile, back: int) -> Conversation:
        """A conversation of this turn's own, going on from the memory and its context."""
        talk = self._at(before, back)
        visible = talk.said.visible if talk else []
        system = leading_system(visible)
        lead = lead or system
        same = self.held.told.of(lead) == self.held.told.of(system)
        if talk and same and talk.rendered_with == self.template_kwargs:
            return talk
        # Another system prompt (one with a clock is, every time), or other tools: the context was
        # rendered with the old, so it is seen anew. Only the prompt of the first turn is written.
        cache = make_prompt_cache(self.pair.model)
        put_memory(cache, before)
        anew = Conversation(
            self.pair.model,
            self.pair.tokenizer,
            cache,
            lead,
            max_context=max_context(self.pair, self.settings),
            template_kwargs=self.template_kwargs,
            past=talk.past if talk else Past(self.settings.undo_turns),
        )
        if talk:
            anew.said = Said([], [*lead, *visible[len(system) :]], [])
        return anew

    def _close(
        self, talk: Conversation, new: list[Message], turn: Turn, fed: Fed
    ) -> Generator[Feed, Fed, None]:
        """Feed what the template puts after the reply, as far as it has not been fed."""
        self._take(talk, fed)
        said, spans, end = talk.ending(new, turn, fed.text, fed.reply)
        if fed.closed:
            end = end.tail(len(end.token_ids))
        elif fed.ended and end.token_ids[:1] == fed.tokens[-1:]:
            end = end.tail(1)
        yield from self._feed(talk, end, write=self._writes)
        talk.commit_turn(said, spans)

    def _tell(self, talk: Conversation, said: list[Message]) -> Generator[Feed, Fed, None]:
        """Feed a turn as it was said. What was fed beyond a stop word cannot be taken back from a
        memory, so all of the turn goes into the one of before it."""
        turn = talk.plan(said, reply=False, room=0)
        cache = self._watched(talk, turn.new, write=self._writes)
        self._take(talk, (yield Feed(cache, talk.context.tokens, turn.new.token_ids)))
        talk.commit_turn(said, turn.spans)

    def _remember(self, talk: Conversation) -> Generator[Feed, Fed, None]:
        """Write texts in a context of their own, which nobody sees afterwards."""
        if not self.options.remember:
            return
        spans = turn_of(
            self.pair.tokenizer,
            [],
            [{"role": "user", "content": text} for text in self.options.remember],
            reply=False,
            sentences=self.pair.granularity == "sentence_mean",
            template_kwargs={},
        ).spans
        check_length(len(spans.token_ids), self.pair, self.settings)
        aside = make_prompt_cache(self.pair.model)
        _copy_memory(talk.context.cache, aside)
        fed = yield Feed(self._marked(aside, spans, write=True), [], spans.token_ids)
        _copy_memory(fed.cache, talk.context.cache)

    def _feed(self, talk: Conversation, spans: Spans, *, write: bool) -> Generator[Feed, Fed, None]:
        if spans.token_ids:
            cache = self._marked(talk.context.cache, spans, write=write)
            self._take(talk, (yield Feed(cache, talk.context.tokens, spans.token_ids)))

    def _take(self, talk: Conversation, fed: Fed) -> None:
        for memory in memories(fed.cache).values():
            memory.read_only, memory.ingest, memory.gauges = [False], None, None
        talk.context.cache, talk.context.tokens = fed.cache, list(fed.tokens)

    def _marked(self, cache: list, spans: Spans, *, write: bool) -> list:
        """The cache, with how the coming tokens are to be written."""
        mark(cache, spans, self.pair.granularity, write=write)
        return cache

    def _watched(self, talk: Conversation, spans: Spans, *, write: bool) -> list:
        """The same of a conversation, watched if that is asked for."""
        cache = self._marked(talk.context.cache, spans, write=write)
        if self._strengths is not None:
            self._strengths.watch(cache, spans, len(talk.context.tokens))
        return cache

    def _outcome(
        self, talk: Conversation, before: MemoryFile, after: MemoryFile, place: StartingPoint
    ) -> TurnOutcome:
        saved = replace(
            after,
            states={i: np.array(state) for i, state in memory_state(talk.context.cache).items()},
            tokens_written=[_written(talk)],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        kept = self.settings.undo_turns if self.options.takes_back else 0
        return TurnOutcome(
            talk,
            saved.keeping(before, turns=kept, alone=not place.known),
            written=saved.tokens_written[0] - before.tokens_written[0],
            known=place.known,
            back=place.back,
            keep_partial=self.options.keep_partial,
            new=self.options.reset or self.held.saved is None,
        )


def _check_unwritten(held: HeldMemory, back: int) -> None:
    """Raises ApiError if the last ``back`` turns wrote anything, which would be taken back."""
    if held.has_written(back):
        raise ApiError(
            409,
            "The request goes on from before turns that were written, and with read_only nothing "
            "is taken back. Send the history as it was, or leave read_only out.",
            code="history_conflict",
            param="memory.read_only",
        )


def mark(cache: list, spans: Spans, granularity: str, *, write: bool) -> None:
    """Say how the coming tokens of a prompt cache are to be written, or that they are not."""
    sentences = None if spans.sentence_ids is None else [spans.sentence_ids]
    ids = span_ids([spans.message_ids], sentences, granularity)
    if ids is not None and not (write and bool((ids >= 0).any())):
        ids = None  # token by token
    for memory in memories(cache).values():
        memory.read_only = [not write]
        memory.ingest = None if ids is None else Ingest.from_ids(ids)


def initial_state(tokenizer: TokenizerWrapper, prompt: list[int]) -> str:
    """Whether a reply to this prompt begins with reasoning."""
    state = "normal"
    if tokenizer.has_thinking and (
        tokenizer.rfind_think_start(prompt) > tokenizer.rfind_think_end(prompt)
    ):
        state = "reasoning"
    return tokenizer.response_initial_state or state


def _written(talk: Conversation) -> int:
    return next(iter(memories(talk.context.cache).values())).written[0]


def _copy_memory(source: list, target: list) -> None:
    into = memories(target)
    for i, memory in memories(source).items():
        into[i].matrix, into[i].written = memory.matrix, list(memory.written)
