"""The thread that owns the model: all requests go through one of mlx-lm's batches.

mlx-lm's loop serves requests that are one prompt each. A turn of a memory is several steps (texts
to remember, what is seen again, the prompt, the end of the turn), so the loop here drives steps;
each of them joins the batch that is running.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from queue import Empty

import mlx.core as mx
from jinja2 import TemplateError
from mlx_lm.generate import BatchGenerator, GenerationBatch
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.server import (
    GenerationArguments,
    GenerationContext,
    Response,
    ResponseGenerator,
    _format_top_logprobs,
    _make_logits_processors,
    _make_sampler,
)

from ..spans import message_spans
from .ending import Ending
from .errors import ApiError, ClientGone, refused
from .history import History
from .job import Answer, Done, Fed, Feed, Job, ServedRequest, Steps
from .memories import Memories
from .metrics import Metrics
from .provider import ExactPromptCache, PairProvider
from .reply import visible
from .settings import ServeSettings
from .turn import Pair, Turn, check_length, mark

log = logging.getLogger(__name__)


class MemoryGenerator(ResponseGenerator):
    """mlx-lm's generation thread, for requests with and without a memory.

    Args:
        provider (PairProvider): The model.
        pair (Pair): The same, and what memory files say of it.
        memories (Memories): Where what turns come to is kept.
        settings (ServeSettings): Of the server.
        metrics (Metrics): What is counted.
    """

    def __init__(
        self,
        provider: PairProvider,
        pair: Pair,
        memories: Memories,
        settings: ServeSettings,
        metrics: Metrics,
    ):
        self.pair, self.memories, self.settings, self.metrics = pair, memories, settings, metrics
        self._running: dict[int, Job] = {}
        self._held: Job | None = None  # waits until it can run alone
        self._alone = False
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
                yield item.last
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
                raise item
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
        if outcome is not None:
            self.memories.commit(job.request.memory, outcome)
            job.kept = outcome

    # The generation thread.

    def _generate(self) -> None:
        self._stream = mx.default_stream(mx.default_device())
        self._batch = self._new_batch()
        while not self._stop:
            self._admit()
            if self._running:
                self._advance()
        self._fail_all(ApiError(503, "The server is shutting down.", code="stopping"))
        self._batch.close()
        self.prompt_cache.trim_to(n_sequences=0)
        del self._batch
        gc.collect()
        mx.clear_streams()  # this thread's; mlx may abort the process at its end otherwise

    def _new_batch(self) -> BatchGenerator:
        return BatchGenerator(
            self.pair.model,
            completion_batch_size=self.settings.decode_concurrency,
            prefill_batch_size=self.settings.prompt_concurrency,
            prefill_step_size=self.settings.prefill_step_size,
            stream=self._stream,
        )

    def _admit(self) -> None:
        """Begin the requests that have come in. One with a seed runs alone, as in mlx-lm."""
        while True:
            job = self._held or self._waiting()
            self._held = None
            if job is None:
                return
            if job.gone:
                job.settled.set()
                continue
            alone = job.args.seed is not None
            if self._running and (alone or self._alone):
                self._held = job
                return
            self._alone = alone
            if alone:
                mx.random.seed(job.args.seed)
            self._begin(job)

    def _waiting(self) -> Job | None:
        try:
            return self.requests.get_nowait() if self._running else self.requests.get(timeout=0.1)
        except Empty:
            return None

    def _begin(self, job: Job) -> None:
        try:
            job.detokenizer = self.pair.tokenizer.detokenizer
            job.steps = self._turn(job) if job.request.memory else self._stateless(job)
            self._go_on(job, None)
        except Exception as error:
            job.fail(error)

    def _turn(self, job: Job) -> Steps:
        request, memory, options = job.request, job.request.memory, job.request.options
        return Turn(
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
        """One prompt, from an empty memory or from where a cached prompt left off."""
        prompt, segments, kinds, state, _ = self._tokenize(
            self.pair.tokenizer, job.request, job.args
        )
        check_length(len(prompt), self.settings)
        if self.pair.granularity != "token":
            yield self._by_spans(job, prompt, state)
            return None
        key = self.model_provider.model_key
        cache, rest = self.prompt_cache.fetch_nearest_cache(key, prompt)
        done = len(prompt) - len(rest)
        cut = []
        for segment in segments:
            cut.append(segment[min(done, len(segment)) :])
            done -= min(done, len(segment))
        kept = [(segment, kind) for segment, kind in zip(cut, kinds, strict=True) if segment]
        fed = yield Answer(
            cache,
            prompt[: len(prompt) - len(rest)],
            rest,
            initial_state=state,
            segments=[segment for segment, _ in kept],
            segment_types=[kind for _, kind in kept],
        )
        self.prompt_cache.insert_cache(key, list(fed.tokens), fed.cache, cache_type="assistant")
        self._trim_prompt_cache()
        return None

    def _by_spans(self, job: Job, prompt: list[int], state: str) -> Answer:
        """For adapters that write once a message or sentence: a cached reply was written otherwise
        than the message it is now, so nothing is reused."""
        cache = make_prompt_cache(self.pair.model)
        if job.request.request_type == "chat":
            spans = message_spans(
                self.pair.tokenizer,
                job.request.messages,
                add_generation_prompt=True,
                sentences=self.pair.granularity == "sentence_mean",
                template_kwargs=self._template_kwargs(job),
            )
            prompt = spans.token_ids
            mark(cache, spans, self.pair.granularity, write=True)
        return Answer(cache, [], prompt, initial_state=state)

    def _trim_prompt_cache(self) -> None:
        if self.settings.prompt_cache_bytes is not None:
            active = self._batch.prompt_cache_nbytes
            self.prompt_cache.trim_to(n_bytes=self.settings.prompt_cache_bytes - active)

    def _go_on(self, job: Job, fed: Fed | None) -> None:
        """The next step of a job, or its end."""
        try:
            job.step = job.steps.send(fed)
        except StopIteration as stop:
            job.finish(stop.value)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            job.fail(self._refusal(error))
        else:
            self._insert(job, job.step)

    def _refusal(self, error: Exception) -> Exception:
        if isinstance(error, TemplateError | TypeError | KeyError):
            said = f"The chat template cannot render these messages: {type(error).__name__}."
            return ApiError(400, said, code="bad_messages", param="messages")
        return refused(400, error)

    def _insert(self, job: Job, step: Feed) -> None:
        shared = {"caches": [step.cache], "all_tokens": [list(step.before)]}
        if not isinstance(step, Answer):
            # The batch is to feed these and stop; it never comes to the last token.
            segments = [step.tokens, [0]]
            (uid,) = self._batch.insert_segments([segments], max_tokens=[1], **shared)
            self._running[uid] = job
            return
        args, tokenizer = job.args, self.pair.tokenizer
        if args.logits.logit_bias and max(args.logits.logit_bias) >= tokenizer.vocab_size:
            raise ApiError(400, "logit_bias: a token id is not in the vocabulary.")
        stops, text_sm = self._make_state_machine(
            self.model_provider.model_key, tokenizer, args.stop_words
        )
        sampler = _make_sampler(args, tokenizer)
        if step.end:
            job.ending = stops = Ending(sampler, stops, args.max_tokens, step.end)
            sampler = job.ending.sample
        (uid,) = self._batch.insert_segments(
            [step.segments or [step.tokens]],
            max_tokens=[args.max_tokens + len(step.end)],
            samplers=[sampler],
            logits_processors=[_make_logits_processors(args)],
            stop_sequences=[stops],
            **shared,
        )
        self._running[uid] = job
        job.ctx = GenerationContext(
            has_tool_calling=tokenizer.has_tool_calling,
            has_thinking=tokenizer.has_thinking,
            tool_parser=tokenizer.tool_parser,
            text_sm=text_sm,
            initial_state=step.initial_state,
            prompt=[*step.before, *step.tokens],
            prompt_cache_count=len(step.before),
        )
        job.queue.put(job.ctx)

    def _advance(self) -> None:
        """One step of the batch, and what follows from it."""
        try:
            prompts, tokens = self._batch.next()
        except Exception as error:
            # All that was running is lost, and nothing of it kept: the server goes on.
            log.error("batch failed", extra={"error": type(error).__name__})
            self.metrics.failed_batches.add()
            self._fail_all(ApiError(500, f"Generation failed: {type(error).__name__}."))
            self._batch.close()
            self._batch = self._new_batch()
            return
        for response in prompts:
            job = self._running[response.uid]
            job.queue.put(response.progress)
            if response.end_of_segment and not response.end_of_prompt:
                self._guarded(job, self._end_of_segment, response.uid)
        for response in tokens:
            self._guarded(self._running[response.uid], self._token, response)
        for uid in [uid for uid, job in self._running.items() if job.gone]:
            self._guarded(self._running[uid], self._cancel, uid)

    def _guarded(self, job: Job, act: Callable, value: object) -> None:
        """An error in one request's affairs is that request's."""
        try:
            act(job, value)
        except Exception as error:
            log.error("request failed", extra={"error": type(error).__name__})
            uids = [uid for uid, running in self._running.items() if running is job]
            self._batch.remove(uids)
            for uid in uids:
                del self._running[uid]
            job.fail(refused(500, error))

    def _end_of_segment(self, job: Job, uid: int) -> None:
        cache, tokens = self._batch.extract_cache([uid])[uid]
        if not isinstance(job.step, Answer):
            self._batch.remove([uid])
            del self._running[uid]
            self._go_on(job, _settled(Fed(cache, list(tokens))))
        elif job.step.segment_types:
            kind = job.step.segment_types.pop(0)
            key = self.model_provider.model_key
            self.prompt_cache.insert_cache(key, list(tokens), cache, cache_type=kind)

    def _token(self, job: Job, response: GenerationBatch.Response) -> None:
        if job.last is None:
            self._say(job, response)
        if response.finish_reason is not None:
            del self._running[response.uid]
            stopped = job.last.finish_reason == "stop"
            self._answered(job, response.prompt_cache, response.all_tokens, stopped=stopped)

    def _say(self, job: Job, response: GenerationBatch.Response) -> None:
        """Hand out a token; the last one is held back until the turn is complete."""
        reason = job.ending.reason if job.ending else response.finish_reason
        text, args = self._text_of(job, response.token, reason), job.args
        job.pieces.append(text)
        job.reply.append(response.token)
        job.first = job.first or time.perf_counter()
        shown = args.logprobs or args.top_logprobs > 0
        said = Response(
            text,
            response.token,
            response.logprobs[response.token].item() if shown else 0.0,
            reason,
            _format_top_logprobs(response.logprobs, args.top_logprobs, self.pair.tokenizer),
        )
        if reason is None:
            job.queue.put(said)
        else:
            job.last = said

    def _text_of(self, job: Job, token: int, reason: str | None) -> str:
        if reason != "stop":
            job.detokenizer.add_token(token)
        if reason is not None:
            job.detokenizer.finalize()
        return job.detokenizer.last_segment

    def _answered(self, job: Job, cache: list, tokens: list[int], *, stopped: bool) -> None:
        ended = bool(job.reply) and job.reply[-1] in self.pair.tokenizer.eos_token_ids
        message = visible(job.ctx, job.pieces, stopped=stopped, tools=job.request.tools)
        fed = Fed(
            cache=cache,
            tokens=list(tokens),
            reply=job.reply[:-1] if ended else job.reply,
            text="".join(job.pieces),
            message=message,
            ended=ended,
            closed=job.ending is not None and job.ending.closed,
        )
        self._go_on(job, _settled(fed))

    def _cancel(self, job: Job, uid: int) -> None:
        """The client has gone: nothing of the turn is kept, unless it asked for that."""
        keep = bool(job.request.options and job.request.options.keep_partial and job.reply)
        if keep and (job.last is not None or not isinstance(job.step, Answer)):
            return  # the reply is complete: let the turn end
        caches = self._batch.remove([uid], return_prompt_caches=keep)
        del self._running[uid]
        if keep:
            cache, tokens = caches[uid]
            job.last = Response("", 0, 0.0, "length", ())
            self._answered(job, cache, tokens, stopped=False)
        else:
            job.settled.set()

    def _fail_all(self, error: ApiError) -> None:
        jobs = list(self._running.values())
        self._running.clear()
        jobs += [self._held] if self._held else []
        self._held = None
        for job in jobs:
            job.fail(error)


def _settled(fed: Fed) -> Fed:
    """Compute what is pending, so that nothing keeps the batch alive."""
    mx.eval([c.state for c in fed.cache])
    return fed
