"""What the generation threads of several processes tell each other, so that all do the same.

A model that is spread over processes computes only where all of them do. So the first process,
which has the clients and the memories' files, tells the others before every step what has come in
and who has gone; each of them then goes through the same turns on its part of the model.
"""

import os
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.server import GenerationArguments

from ...ranks import Ranks
from ...session.conversation import Conversation
from ..memories.memory import HeldMemory, Memory
from ..memories.outcome import TurnOutcome
from ..requests.bodies import MemoryOptions
from ..turns.job import Job, ServedRequest


@dataclass(frozen=True)
class ToldRequest:
    """A request as the other processes are told of it.

    Attributes:
        number (int): Of the job.
        held (HeldMemory): The memory that it is for, without its context; None: it is for none.
        talk (int): Number of that context, which each process has a part of; None: there is none.
        fields (dict): Of mlx-lm's request, and what its answer has to be.
    """

    number: int
    args: GenerationArguments
    options: MemoryOptions | None
    held: HeldMemory | None
    talk: int | None
    stream: bool
    fields: dict[str, object]


News = tuple[bool, bool, int, list[Job]]  # see `Lockstep.tick`


class Tick(NamedTuple):
    """What is told before a step.

    Attributes:
        stop (bool): All end.
        due (bool): Those who wait are let in.
        pace (int): How many tokens of prompts are fed at a time while answers are waited for.
        came (list[ToldRequest]): Requests that have come in.
        gone (list[int]): Numbers of jobs whose clients have gone.
        dropped (list[int]): Numbers of contexts that are needed no more.
    """

    stop: bool
    due: bool
    pace: int
    came: list[ToldRequest]
    gone: list[int]
    dropped: list[int]


class Lockstep:
    """The generation threads of several processes, of which this is one.

    Args:
        ranks (Ranks): The processes.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._jobs: dict[int, Job] = {}
        self._numbered = 0
        self._random: random.Random | None = None
        self._outcomes = 0
        self._talks: dict[int, Conversation] = {}  # in the processes that follow
        self._numbers: weakref.WeakKeyDictionary[Conversation, int] = weakref.WeakKeyDictionary()
        self._dropped: list[int] = []

    @property
    def alone(self) -> bool:
        """Whether there is one process, which tells nothing."""
        return self._ranks.alone

    @property
    def leads(self) -> bool:
        """Whether this process tells the others."""
        return self._ranks.rank == 0

    def shuffle(self) -> None:
        """Give MLX a random state of its own again, the same in all processes.

        One that a failed compiled function leaves behind cannot be used, and one that a client's
        seed has set can be foretold.
        """
        if self.alone:
            mx.random.seed(int.from_bytes(os.urandom(4)))
            return
        if self._random is None:
            self._random = random.Random(self._ranks.share(os.urandom(16)))
        mx.random.seed(self._random.getrandbits(32))

    def tick(self, make: Callable[[], News]) -> tuple[Tick, list[Job]]:
        """What is told now, and the jobs that have come in.

        Args:
            make (Callable): In the process that leads: whether to stop, whether to let in, the
              pace, and the jobs that have come in.
        """
        self._jobs = {n: job for n, job in self._jobs.items() if not job.settled.is_set()}
        made: Tick | None = None
        jobs: list[Job] = []
        if self.leads:
            stop, due, pace, jobs = make()
            came = [self._told(job) for job in jobs]
            gone = [n for n, job in self._jobs.items() if job.cancelled.is_set()]
            dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
            made = Tick(stop, due, pace, came, gone, dropped)
        tick = self._ranks.share(made)
        if not self.leads:
            jobs = [self._job(request) for request in tick.came]
            for number in tick.dropped:
                self._talks.pop(number, None)
        for request, job in zip(tick.came, jobs, strict=True):
            self._jobs[request.number] = job
            job.noticed = False
        for number in tick.gone:
            if number in self._jobs:
                self._jobs[number].noticed = True
        return tick, jobs

    def keep(self, outcome: TurnOutcome | None) -> None:
        """Take note of what a turn came to: the next one may go on from its context."""
        if self.alone or outcome is None:
            return
        number, self._outcomes = self._outcomes, self._outcomes + 1
        if self.leads:
            self._numbers[outcome.talk] = number
            weakref.finalize(outcome.talk, self._dropped.append, number)
        else:
            self._talks[number] = outcome.talk

    def _told(self, job: Job) -> ToldRequest:
        request, number = job.request, self._numbered
        self._numbered += 1
        held = None if request.memory is None else request.memory.contents
        talk = None if held is None or held.talk is None else self._numbers[held.talk]
        return ToldRequest(
            number=number,
            args=job.args,
            options=request.options,
            held=None if held is None else replace(held, talk=None),
            talk=talk,
            stream=request.stream,
            fields=dict(_fields_of(request)),
        )

    def _job(self, told: ToldRequest) -> Job:
        memory = None
        if told.held is not None:
            memory = Memory(told.held.id, told.held.key)
            talk = None if told.talk is None else self._talks[told.talk]
            memory.contents = replace(told.held, talk=talk)
        request = ServedRequest(
            **told.fields,  # type: ignore[arg-type]  # as `_fields_of` took them
            options=told.options,
            memory=memory,
            stream=told.stream,
        )
        return Job(request, told.args)


def _fields_of(request: ServedRequest) -> Iterator[tuple[str, object]]:
    for name in ("request_type", "prompt", "messages", "tools", "role_mapping", "grammar"):
        yield name, getattr(request, name)
