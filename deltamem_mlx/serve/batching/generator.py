"""The thread that owns the model, and how the requests' threads have it answer."""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Empty

import mlx.core as mx
from mlx_lm.generate import StopSequences, TextStateMachine
from mlx_lm.server import (
    CompletionRequest,
    GenerationArguments,
    GenerationContext,
    Response,
    ResponseGenerator,
)

from ...model.patch import spread_of_memory
from ..errors import ApiError, ClientGone, refusal
from ..grammars.compiling import Grammars
from ..memories.memories import Memories
from ..memories.memory import HeldMemory
from ..metrics import ServerMetrics
from ..provider import ExactPromptCache, PairProvider, ServedPair
from ..settings import ServeSettings
from ..turns.job import Done, Job, PromptProgress, ServedRequest, Steps
from ..turns.lengths import check_length, check_texts
from ..turns.prompts import Prompt, ServedPrompts
from ..turns.turn import MemoryTurn
from .batch import RunningBatch
from .lockstep import Lockstep
from .saying import Carrier

log = logging.getLogger(__name__)
_PATIENCE = 0.5  # seconds; mlx-lm's own


class MemoryGenerator(ResponseGenerator):
    """mlx-lm's generation thread, for requests with and without a memory.

    Args:
        provider (PairProvider): The model.
        pair (ServedPair): The same, and what memory files say of it.
        memories (Memories): Where what turns come to is kept.
        settings (ServeSettings): Of the server.
        metrics (ServerMetrics): What is counted.
    """

    def __init__(
        self,
        provider: PairProvider,
        pair: ServedPair,
        memories: Memories,
        settings: ServeSettings,
        metrics: ServerMetrics,
    ):
        self.pair, self.memories, self.settings, self.metrics = pair, memories, settings, metrics
        self.grammars = Grammars(pair.tokenizer, pair.vocabulary)
        self._held: Job | None = None  # waits until it can run alone
        self._alone, self._lets_in = False, False
        self._admitted = 0.0  # when requests were let in
        self._answers = ExactPromptCache(settings.prompt_cache_size)
        self.lockstep = Lockstep(spread_of_memory(pair.model).ranks)
        self._arrived: deque[Job] = deque()  # in all processes of the model
        super().__init__(provider, self._answers)

    # The requests' threads.

    def generate(
        self,
        request: CompletionRequest,
        generation_args: GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[GenerationContext, Iterator[Response]]:
        """As mlx-lm's; the last response comes when what the turn came to is kept.

        Raises:
            ApiError: If the request cannot be used.
            ClientGone: If nobody waits for the answer any more.
        """
        if not isinstance(request, ServedRequest):
            raise TypeError(f"a {type(request).__name__} says nothing of a memory")
        job = Job(request, generation_args)
        check_texts(request, self._template_kwargs(job), self.pair, self.settings)
        request.job = job
        self.requests.put(job)
        ctx = self._receive(job)
        while isinstance(ctx, PromptProgress):
            ctx = self._receive(job)
        if not isinstance(ctx, GenerationContext):
            raise ApiError(500, "The answer ended before it began.", code="internal_error")
        return ctx, self._responses(job, progress_callback)

    def _responses(
        self, job: Job, progress: Callable[[int, int], None] | None
    ) -> Iterator[Response]:
        while True:
            item = self._receive(job)
            if isinstance(item, Done):
                self._keep(job)
                for response in (*job.said, item.last):
                    yield _shown(job, response)
                return
            if isinstance(item, PromptProgress):
                if progress is not None:
                    progress(*item)
            elif isinstance(item, Response):
                yield _shown(job, item)

    def _receive(self, job: Job) -> GenerationContext | PromptProgress | Response | Done:
        while True:
            if not job.request.alive():
                raise ClientGone
            try:
                item = job.queue.get(timeout=0.25)
            except Empty:
                if not self.generation_available():
                    raise self._ending() from None
                continue
            if isinstance(item, Exception):
                try:
                    raise item
                finally:
                    del item  # its traceback has this frame, which would have it
            return item

    @property
    def is_over(self) -> bool:
        """Whether generation has ended as it should."""
        return not self._generation_thread.is_alive() and not self._generation_failed

    def _ending(self) -> ApiError:
        if self._generation_failed:
            what = "The server cannot generate any more, and is ending."
            return ApiError(503, what, code="internal_error")
        return ApiError(503, "The server is shutting down.", code="stopping")

    def settle(self, request: ServedRequest) -> None:
        """Stop a request, wait until the generation thread is done with it, keep what it came to.

        Raises:
            ApiError: If that cannot be saved.
        """
        job = request.job
        if job is None:
            return
        job.cancelled.set()
        while not job.settled.wait(0.25):
            if not self.generation_available():
                return
        self._keep(job)

    def _keep(self, job: Job) -> None:
        outcome, job.outcome = job.outcome, None
        memory, options = job.request.memory, job.request.options
        if outcome is None or memory is None or options is None or not job.request.store:
            return
        first, key = memory.contents.saved is None and not options.reset, memory.contents.key
        # One that reads only what is not there begins no memory.
        if memory.contents.saved is not None or not options.read_only:
            self.memories.commit(memory, outcome)
        # What keeps no way back is a response's own: its key was drawn, and meant no other.
        first = first and options.takes_back
        meant = self.memories.folder.meant(key) if first and key is not None else ""
        job.kept = replace(outcome, meant=meant)

    # The generation thread.

    def _run_generate(self) -> None:
        """mlx-lm's thread; what is wrong with a request does not end it."""
        try:
            self._generate()
        except Exception as error:
            log.critical("generation ended", extra={"error": type(error).__name__})

    def _generate(self) -> None:
        prompts = ServedPrompts(self.pair, self._answers, self.model_provider.model_key)
        batch = RunningBatch(
            self.pair,
            self.settings,
            self.metrics,
            prompts,
            self._machines,
            self.lockstep,
            self.grammars,
        )
        try:
            if not self.lockstep.alone:
                self.lockstep.shuffle()
            while not self._is_over(batch):
                if self._lets_in and not batch.is_mending:
                    self._admit(batch, prompts)
                if batch.running or batch.is_mending:
                    batch.advance()
        except Exception:
            self._generation_failed = True
            raise
        finally:
            batch.close(self._ending())
            if self._held is not None:
                self._held.fail(self._ending())
        self.prompt_cache.trim_to(n_sequences=0)
        del batch
        gc.collect()
        mx.clear_streams()  # this thread's; mlx may abort the process at its end otherwise

    def _machines(self, stop_words: list[str]) -> tuple[StopSequences, TextStateMachine]:
        key = self.model_provider.model_key
        return self._make_state_machine(key, self.pair.tokenizer, stop_words)

    def _is_over(self, batch: RunningBatch) -> bool:
        """Whether to stop; else, whether to let in who waits is known."""
        if self.lockstep.alone:
            self._lets_in = not self._stop and self._due(batch)
            return self._stop
        tick, came = self.lockstep.tick(lambda: self._news(batch))
        self._lets_in, batch.pace.present = tick.due, tick.pace
        self._arrived.extend(came)
        return tick.stop

    def _news(self, batch: RunningBatch) -> tuple[bool, bool, int, list[Job]]:
        """What the process that leads tells the others."""
        due, came = self._due(batch), []
        job = self._next_job(wait=not batch.running) if due else None
        while job is not None:
            came.append(job)
            job = self._next_job(wait=False)
        return self._stop, due, batch.pace.present, came

    def _due(self, batch: RunningBatch) -> bool:
        """Whether to let in who waits.

        Each time all that is running is copied, so not one by one: when they are half as many as
        what is running, or after a while.
        """
        few = 2 * self.requests.qsize() < len(batch.running)
        return not few or time.monotonic() - self._admitted > _PATIENCE

    def _admit(self, batch: RunningBatch, prompts: ServedPrompts) -> None:
        """Begin the requests that have come in. One with a seed runs alone, as in mlx-lm."""
        self._admitted = time.monotonic()
        while True:
            job = self._held or self._waiting(batch)
            self._held = None
            if job is None:
                return
            if job.gone:
                job.settled.set()
                continue
            seeded = job.args.seed is not None
            if batch.running and (seeded or self._alone):
                self._held = job
                return
            try:
                batch.samplers.check(job.args)
                self._shuffle(job.args.seed)  # after it, which draws a number
                steps = self._turn(job) or self._stateless(job, prompts, batch)
            except Exception as error:
                job.fail(refusal(error))
            else:
                batch.begin(job, steps)

    def _shuffle(self, seed: int | None) -> None:
        """Begin the random numbers that a request asks for; after one that did, unknown ones."""
        if seed is not None:
            mx.random.seed(seed)
        elif self._alone:
            self.lockstep.shuffle()
        self._alone = seed is not None

    def _waiting(self, batch: RunningBatch) -> Job | None:
        if self.lockstep.alone:
            return self._next_job(wait=not batch.running)
        return self._arrived.popleft() if self._arrived else None

    def _next_job(self, *, wait: bool) -> Job | None:
        try:
            return self.requests.get(timeout=0.1) if wait else self.requests.get_nowait()
        except Empty:
            return None

    def _turn(self, job: Job) -> Steps | None:
        """The steps of a request with a memory; None: it has none."""
        request, options = job.request, job.request.options
        if request.memory is None or options is None:
            return None
        contents = request.memory.contents
        return MemoryTurn(
            pair=self.pair,
            settings=self.settings,
            options=options,
            held=HeldMemory(contents.id, contents.key) if options.reset else contents,
            messages=request.messages,
            template_kwargs=self._template_kwargs(job),
            room=job.args.max_tokens,
        ).steps()

    def _template_kwargs(self, job: Job) -> dict[str, object]:
        kwargs = self.settings.chat_template_args | (job.args.chat_template_kwargs or {})
        return kwargs | {"tools": job.request.tools} if job.request.tools else kwargs

    def _stateless(self, job: Job, prompts: ServedPrompts, batch: RunningBatch) -> Steps:
        request = job.request
        prompt = Prompt(*self._tokenize(self.pair.tokenizer, request, job.args)[:4])
        check_length(len(prompt.token_ids), self.pair, self.settings)
        if self.pair.granularity == "token":
            yield from prompts.steps(prompt)
            self._trim_prompt_cache(batch)
        else:
            messages = request.messages if request.request_type == "chat" else []
            kwargs = self._template_kwargs(job)
            yield from prompts.steps_by_spans(prompt, messages, kwargs)
        return None

    def _trim_prompt_cache(self, batch: RunningBatch) -> None:
        if self.settings.prompt_cache_bytes is not None:
            self.prompt_cache.trim_to(n_bytes=self.settings.prompt_cache_bytes - batch.nbytes)


def _shown(job: Job, response: Response) -> Response:
    """The same, noted where it is a token's own: how likely that was is still to be said."""
    if not isinstance(response, Carrier):
        job.shown.append(response)
    return response
