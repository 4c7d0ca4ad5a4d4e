"""A request on its way through the generation thread, and the steps that it is made of."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from queue import Queue
from threading import Event
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.server import CompletionRequest, GenerationArguments, GenerationContext, Response

from ...text.messages import Message
from ..grammars.compiling import Grammar
from ..memories.memory import Memory
from ..memories.outcome import TurnOutcome
from ..requests.bodies import MemoryOptions


@dataclass
class Feed:
    """A step: run tokens through the model, giving nothing out.

    Attributes:
        cache (list): The prompt cache to feed; the batch works on a copy.
        before (list[int]): The tokens in its context.
        tokens (list[int]): What to feed, at least one.
    """

    cache: list
    before: list[int]
    tokens: list[int]


@dataclass
class Answer(Feed):
    """A step: feed a prompt and answer it.

    Attributes:
        initial_state (str): Of mlx-lm's text state machine: ``normal`` or ``reasoning``.
        segments (list): The tokens again, cut where mlx-lm's prompt cache wants a copy.
        segment_types (list[str]): What each of them is.
        points (dict): Tokens → the memory after so many, as far as it was noted.
        end (list[int]): Fed after the reply, as `Ending` does.
    """

    initial_state: str = "normal"
    segments: list[list[int]] = field(default_factory=list)
    segment_types: list[str] = field(default_factory=list)
    points: dict[int, dict[int, tuple[mx.array | None, list[int]]]] = field(default_factory=dict)
    end: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Fed:
    """What a step gives back.

    Attributes:
        cache (list): The prompt cache afterwards.
        tokens (list[int]): All tokens in its context.
        reply (list[int]): What was generated, without an end token.
        text (str): The reply as the model wrote it.
        message (Message): The reply as the client sees it.
        cut (bool): A stop word ended it: more was generated and fed than ``text`` has.
        ended (bool): The model generated an end token. It has been fed.
        closed (bool): What follows the reply has been fed.
    """

    cache: list
    tokens: list[int]
    reply: list[int] = field(default_factory=list)
    text: str = ""
    message: Message = field(default_factory=dict)
    cut: bool = False
    ended: bool = False
    closed: bool = False

    def settled(self) -> "Fed":
        """The same, with all that was pending computed, so that nothing keeps the batch alive."""
        mx.eval([c.state for c in self.cache])
        return self


Steps = Generator[Feed, Fed, TurnOutcome | None]


@dataclass(frozen=True)
class Done:
    """The end of an answer: mlx-lm's last response, not given out before what it says is kept."""

    last: Response


class PromptProgress(NamedTuple):
    """How many tokens of a prompt have been fed, and how many it has."""

    fed: int
    total: int


@dataclass
class ServedRequest(CompletionRequest):
    """mlx-lm's request with the memory it is for.

    Attributes:
        options (MemoryOptions): What it asks of a memory.
        memory (Memory): That memory, held by this request.
        alive (Callable): Whether the client is still there.
        stream (bool): It wants the answer piece by piece; else all at once, when it is complete.
        store (bool): What the turn comes to is kept.
        grammar (Grammar): What the answer has to be; None: whatever the model says.
        job (Job): Set when the request is accepted.
    """

    options: MemoryOptions | None = None
    memory: Memory | None = None
    alive: Callable[[], bool] = lambda: True
    stream: bool = True
    store: bool = True
    grammar: Grammar | None = None
    job: "Job | None" = None

    def release(self) -> None:
        """Let go of the job, which is over: it refers to this."""
        self.job = None


@dataclass
class Job:
    """A request in the generation thread. The request's own thread reads ``queue``.

    Attributes:
        cancelled (Event): Set by the request's thread: the client has gone.
        settled (Event): Set by the generation thread, which has no more to do with the job then.
        outcome (TurnOutcome): What the turn came to, for the request's thread to keep.
        kept (TurnOutcome): The same once it is kept.
        ctx (GenerationContext): What mlx-lm's handler knows of the answer, once it begins.
        reply (list[int]): The tokens generated.
        said (list[Response]): The answer so far, where it is not streamed: a thread that wakes for
          every token costs as much as a small model's step.
        shown (list[Response]): Handed out; how likely they were has not been said yet.
        began, first (float): When it came, and when its first token did.
        noticed (bool): Whether all processes of a model know that the client has gone. None: there
          is one process.
    """

    request: ServedRequest
    args: GenerationArguments
    queue: Queue[GenerationContext | PromptProgress | Response | Done | Exception] = field(
        default_factory=Queue
    )
    cancelled: Event = field(default_factory=Event)
    settled: Event = field(default_factory=Event)
    outcome: TurnOutcome | None = None
    kept: TurnOutcome | None = None
    ctx: GenerationContext | None = None
    reply: list[int] = field(default_factory=list)
    said: list[Response] = field(default_factory=list)
    shown: list[Response] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    noticed: bool | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.cancelled.is_set() if self.noticed is None else self.noticed

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.queue.put(error)
        self.settled.set()

    def take_back(self) -> list[int]:
        """Begin the answer anew; returns the tokens of it that there were."""
        said, self.reply, self.said = self.reply, [], []
        return said

    def finish(self, last: Response, outcome: TurnOutcome | None) -> None:
        """End it with an answer."""
        if not self.gone or (outcome is not None and outcome.keep_partial):
            self.outcome = outcome
        self.queue.put(Done(last))
        self.settled.set()
