"""The thread that owns the model, and how the requests' threads have it answer."""

import gc
import time
from collections.abc import Callable, Iterator
from queue import Empty

import mlx.core as mx
from mlx_lm.generate import StopSequences, TextStateMachine
from mlx_lm.server import GenerationArguments, GenerationContext, Response, ResponseGenerator

from .batch import RunningBatch
from .errors import ApiError, ClientGone
from .history import History
from .job import Done, Job, ServedRequest, Steps
from .memories import Memories
from .metrics import ServerMetrics
from .prompts import Prompt, ServedPrompts
from .provider import ExactPromptCache, PairProvider, ServedPair
from .settings import ServeSettings
from .turn import MemoryTurn, check_length

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
        self._held: Job | None = None  # waits until it can run alone
        self._alone = False
        self._admitted = 0.0  # when requests were let in
        super().__init__(provider, ExactPromptCache(settings.prompt_cache_size))

    # The requests' threads.

    def generate(
        self,
        request: ServedRequest,
        generation_args: GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[GenerationContext, Iterator[Response]]:
        """As mlx-lm's; the last response comes when what the turn came to is kept.

        Raises:
            ApiError: If the request cannot be used.
            ClientGone: If nobody waits for the answer any more.
        """
        job = request.job = Job(request, generation_args)
        self.requests.put(job)
        ctx = self._receive(job)
        while isinstance(ctx, tuple) and not isinstance(ctx, Done):
            ctx = self._receive(job)
        return ctx, self._responses(job, progress_callback)

    def _responses(
        self, job: Job, progress: Callable[[int, int], None] | None
    ) -> Iterator[Response]:
        while True:
            item = self._receive(job)
            if isinstance(item, Done):
                self._keep(job)
                yield from (*job.said, item.last)
                return
            if isinstance(item, tuple):
                if progress is not None:
                    progress(*item)
            else:
                yield item

    def _receive(self, job: Job) -> object:
        while True:
            if not job.request.alive():
                raise ClientGone
            try:
                item = job.queue.get(timeout=0.25)
            except Empty:
                if not self.generation_available():
                    raise ApiError(503, "The server is shutting down.", code="stopping") from None
                continue
            if isinstance(item, Exception):
                try:
                    raise item
                finally:
                    del item  # its traceback has this frame, which would have it
            return item

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
        if outcome is None or memory is None or options is None:
            return
        # One that reads only what is not there begins no memory.
        if memory.contents.saved is not None or not options.read_only:
            self.memories.commit(memory, outcome)
        job.kept = outcome

    # The generation thread.

    def _generate(self) -> None:
        self._prompts = ServedPrompts(self.pair, self.prompt_cache, self.model_provider.model_key)
        self._batch = RunningBatch(
            self.pair, self.settings, self.metrics, self._prompts, self._machines
        )
        while not self._stop:
            if self._due():
                self._admit()
            if self._batch.running:
                self._batch.advance()
        stopping = ApiError(503, "The server is shutting down.", code="stopping")
        self._batch.close(stopping)
        if self._held is not None:
            self._held.fail(stopping)
        self.prompt_cache.trim_to(n_sequences=0)
        del self._batch
        gc.collect()
        mx.clear_streams()  # this thread's; mlx may abort the process at its end otherwise

    def _machines(self, stop_words: list[str]) -> tuple[StopSequences, TextStateMachine]:
        key = self.model_provider.model_key
        return self._make_state_machine(key, self.pair.tokenizer, stop_words)

    def _due(self) -> bool:
        """Whether to let in who waits.

        Each time all that is running is copied, so not one by one: when they are half as many as
        what is running, or after a while.
        """
        few = 2 * self.requests.qsize() < len(self._batch.running)
        return not few or time.monotonic() - self._admitted > _PATIENCE

    def _admit(self) -> None:
        """Begin the requests that have come in. One with a seed runs alone, as in mlx-lm."""
        self._admitted = time.monotonic()
        while True:
            job = self._held or self._waiting()
            self._held = None
            if job is None:
                return
            if job.gone:
                job.settled.set()
                continue
            alone = job.args.seed is not None
            if self._batch.running and (alone or self._alone):
                self._held = job
                return
            self._alone = alone
            if alone:
                mx.random.seed(job.args.seed)
            job.steps = self._turn(job) if job.request.memory else self._stateless(job)
            self._batch.begin(job)

    def _waiting(self) -> Job | None:
        try:
            return (
                self.requests.get_nowait()
                if self._batch.running
                else self.requests.get(timeout=0.1)
            )
        except Empty:
            return None

    def _turn(self, job: Job) -> Steps:
        request, options = job.request, job.request.options
        memory = request.memory.contents
        return MemoryTurn(
            pair=self.pair,
            settings=self.settings,
            options=options,
            saved=None if options.reset else memory.saved,
            talk=None if options.reset else memory.talk,
            history=History.fresh() if options.reset else memory.history,
            messages=request.messages,
            template_kwargs=self._template_kwargs(job),
            room=job.args.max_tokens,
        ).steps()

    def _template_kwargs(self, job: Job) -> dict[str, object]:
        kwargs = self.settings.chat_template_args | (job.args.chat_template_kwargs or {})
        return kwargs | {"tools": job.request.tools} if job.request.tools else kwargs

    def _stateless(self, job: Job) -> Steps:
        request = job.request
        prompt = Prompt(*self._tokenize(self.pair.tokenizer, request, job.args)[:4])
        check_length(len(prompt.token_ids), self.settings)
        if self.pair.granularity == "token":
            yield from self._prompts.steps(prompt)
            self._trim_prompt_cache()
        else:
            messages = request.messages if request.request_type == "chat" else []
            kwargs = self._template_kwargs(job)
            yield from self._prompts.steps_by_spans(prompt, messages, kwargs)

    def _trim_prompt_cache(self) -> None:
        if self.settings.prompt_cache_bytes is not None:
            active = self._batch.nbytes
            self.prompt_cache.trim_to(n_bytes=self.settings.prompt_cache_bytes - active)
