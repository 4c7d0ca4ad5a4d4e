"""The batch that is running, and the requests whose steps are in it.

mlx-lm's loop serves requests that are one prompt each. A turn of a memory is several steps (texts
to remember, what is seen again, the prompt, the end of the turn), so here steps are driven; each
of them joins the batch that is running. All of it belongs to the generation thread.
"""

import logging
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np
from jinja2 import TemplateError
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences, TextStateMachine
from mlx_lm.server import (
    GenerationArguments,
    GenerationContext,
    Response,
)

from ..compat import format_top_logprobs, make_logits_processors, make_sampler
from .ending import Ending, Sampler
from .errors import ApiError, refused
from .job import Answer, Fed, Feed, Job
from .metrics import ServerMetrics
from .prompts import ServedPrompts
from .provider import ServedPair
from .reply import visible
from .settings import ServeSettings

log = logging.getLogger(__name__)
_SAMPLERS = 64
Machines = Callable[[list[str]], tuple[StopSequences, TextStateMachine]]


class RunningBatch:
    """mlx-lm's batch of one model, and whose each of its sequences is.

    Args:
        pair (ServedPair): The model.
        settings (ServeSettings): Of the server.
        metrics (ServerMetrics): What is counted.
        prompts (ServedPrompts): Where prompts of requests without a memory are kept.
        machines (Callable): mlx-lm's stop sequences and text states for these stop words.
    """

    def __init__(
        self,
        pair: ServedPair,
        settings: ServeSettings,
        metrics: ServerMetrics,
        prompts: ServedPrompts,
        machines: Machines,
    ):
        self.pair, self.settings, self.metrics = pair, settings, metrics
        self.prompts, self.machines = prompts, machines
        self.running: dict[int, Job] = {}
        self._samplers: dict[tuple, Sampler] = {}
        self._stream = mx.default_stream(mx.default_device())
        self._sequences = self._new_sequences()

    def _new_sequences(self) -> BatchGenerator:
        return BatchGenerator(
            self.pair.model,
            completion_batch_size=self.settings.decode_concurrency,
            prefill_batch_size=self.settings.prompt_concurrency,
            prefill_step_size=self.settings.prefill_step_size,
            stream=self._stream,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the prompt caches in it."""
        return self._sequences.prompt_cache_nbytes

    def close(self, error: ApiError) -> None:
        """End all that is running with an error."""
        self._fail_all(error)
        self._sequences.close()

    def _fail_all(self, error: ApiError) -> None:
        jobs = list(self.running.values())
        self.running.clear()
        for job in jobs:
            job.fail(error)

    def begin(self, job: Job) -> None:
        """Take the first step of a job; an error ends the job."""
        try:
            bias = job.args.logits.logit_bias
            if bias and max(bias) >= self.pair.tokenizer.vocab_size:
                raise ApiError(400, "logit_bias: a token id is not in the vocabulary.")
            job.detokenizer = self.pair.tokenizer.detokenizer
            self._go_on(job, None)
        except Exception as error:
            job.fail(error)

    def _go_on(self, job: Job, fed: Fed | None) -> None:
        """The next step of a job, or its end."""
        try:
            job.step = job.steps.send(fed)
        except StopIteration as stop:
            job.finish(stop.value)
        except (ApiError, TemplateError, ValueError, TypeError, KeyError) as error:
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
            (uid,) = self._sequences.insert_segments([segments], max_tokens=[1], **shared)
            self.running[uid] = job
            return
        args, tokenizer = job.args, self.pair.tokenizer
        stops, text_sm = self.machines(args.stop_words)
        sampler = self._sampler(args)
        if step.end:
            job.ending = stops = Ending(sampler, stops, args.max_tokens, step.end)
            sampler = job.ending.sample
        (uid,) = self._sequences.insert_segments(
            [step.segments or [step.tokens]],
            max_tokens=[args.max_tokens + len(step.end)],
            samplers=[sampler],
            logits_processors=[make_logits_processors(args)],
            stop_sequences=[stops],
            **shared,
        )
        self.running[uid] = job
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

    def _sampler(self, args: GenerationArguments) -> Sampler:
        """One for all who sample alike: mlx-lm calls it once for the batch, if it is everyone's."""
        key = tuple(vars(args.sampling).values())
        if key not in self._samplers:
            if len(self._samplers) >= _SAMPLERS:
                self._samplers.clear()
            self._samplers[key] = make_sampler(args, self.pair.tokenizer)
        return self._samplers[key]

    def advance(self) -> None:
        """One step of the batch, and what follows from it."""
        try:
            prompts, tokens = self._sequences.next()
        except Exception as error:
            # All that was running is lost, and nothing of it kept: the server goes on.
            log.error("batch failed", extra={"error": type(error).__name__})
            self.metrics.failed_batches.add()
            self._fail_all(ApiError(500, f"Generation failed: {type(error).__name__}."))
            self._sequences.close()
            self._sequences = self._new_sequences()
            return
        for response in prompts:
            job = self.running[response.uid]
            if job.request.stream:
                job.queue.put(response.progress)
            if response.end_of_segment and not response.end_of_prompt:
                self._guarded(job, self._end_of_segment, response.uid)
        for response in tokens:
            self._guarded(self.running[response.uid], self._token, response)
        for uid in [uid for uid, job in self.running.items() if job.gone]:
            self._guarded(self.running[uid], self._cancel, uid)

    def _guarded(self, job: Job, act: Callable, value: object) -> None:
        """An error in one request's affairs is that request's."""
        try:
            act(job, value)
        except Exception as error:
            log.error("request failed", extra={"error": type(error).__name__})
            uids = [uid for uid, running in self.running.items() if running is job]
            self._sequences.remove(uids)
            for uid in uids:
                del self.running[uid]
            job.fail(refused(500, error))

    def _end_of_segment(self, job: Job, uid: int) -> None:
        cache, tokens = self._sequences.extract_cache([uid])[uid]
        if not isinstance(job.step, Answer):
            self._sequences.remove([uid])
            del self.running[uid]
            self._go_on(job, _settled(Fed(cache, list(tokens))))
        elif job.step.segment_types:
            kind = job.step.segment_types.pop(0)
            self.prompts.keep(cache, tokens, kind)

    def _token(self, job: Job, response: GenerationBatch.Response) -> None:
        if job.last is None:
            self._say(job, response)
        if response.finish_reason is not None:
            del self.running[response.uid]
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
            read_logprob(response.logprobs, response.token) if shown else 0.0,
            reason,
            format_top_logprobs(response.logprobs, args.top_logprobs, self.pair.tokenizer),
        )
        if reason is not None:
            job.last = said
        elif job.request.stream:
            job.queue.put(said)
        else:
            job.said.append(said)

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
        caches = self._sequences.remove([uid], return_prompt_caches=keep)
        del self.running[uid]
        if keep:
            cache, tokens = caches[uid]
            job.last = Response("", 0, 0.0, "length", ())
            self._answered(job, cache, tokens, stopped=False)
        else:
            job.settled.set()


def read_logprob(logprobs: mx.array, token: int) -> float:
    """The value at ``token`` of logprobs [V], from where it lies.

    MLX would read it after the step that it is computing now.
    """
    if logprobs.dtype == mx.bfloat16:  # which NumPy does not know: float32's upper half
        bits = np.frombuffer(logprobs, np.uint16)[token]
        return float((bits.astype(np.uint32) << 16).view(np.float32))
    return float(np.asarray(logprobs)[token])


def _settled(fed: Fed) -> Fed:
    """Compute what is pending, so that nothing keeps the batch alive."""
    mx.eval([c.state for c in fed.cache])
    return fed
