"""The batch that is running, and the requests whose steps are in it.

mlx-lm's loop serves requests that are one prompt each. A turn of a memory is several steps (texts
to remember, what is seen again, the prompt, the end of the turn), so here steps are driven; each
of them joins the batch that is running. All of it belongs to the generation thread.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import mlx.core as mx
from jinja2 import TemplateError
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences, TextStateMachine
from mlx_lm.server import GenerationContext

from ...compat import make_logits_processors
from ..errors import ApiError, refusal
from ..grammars.compiling import Grammars
from ..grammars.processor import GrammarProcessor
from ..metrics import ServerMetrics
from ..provider import ServedPair
from ..settings import ServeSettings
from ..turns.job import Answer, Fed, Feed, Job, PromptProgress, Steps
from ..turns.prompts import ServedPrompts
from .drafted import DraftedSequences
from .ending import Ending
from .lockstep import Lockstep
from .pace import Pace
from .reply import checked_calls, visible
from .samplers import SaidAgain, Samplers
from .saying import Saying

log = logging.getLogger(__name__)
_Value = TypeVar("_Value")
Machines = Callable[[list[str]], tuple[StopSequences, TextStateMachine]]


@dataclass
class Running:
    """A job in the batch.

    Attributes:
        steps (Steps): What it is made of; the one in the batch is ``step``.
        saying (Saying): Its answer, once that is what is in the batch; of one that is tried again,
          as far as it had come.
        grammar (GrammarProcessor): What that has to be; None: whatever the model says.
    """

    job: Job
    steps: Steps
    step: Feed
    saying: Saying | None = None
    grammar: GrammarProcessor | None = None


class RunningBatch:
    """mlx-lm's batch of one model, and whose each of its sequences is.

    Args:
        pair (ServedPair): The model.
        settings (ServeSettings): Of the server.
        metrics (ServerMetrics): What is counted.
        prompts (ServedPrompts): Where prompts of requests without a memory are kept.
        machines (Callable): mlx-lm's stop sequences and text states for these stop words.
        lockstep (Lockstep): The processes that have the model.
        grammars (Grammars): What answers have to be.
    """

    def __init__(
        self,
        pair: ServedPair,
        settings: ServeSettings,
        metrics: ServerMetrics,
        prompts: ServedPrompts,
        machines: Machines,
        lockstep: Lockstep,
        grammars: Grammars,
    ):
        self.pair, self.settings, self.metrics = pair, settings, metrics
        self.prompts, self.machines, self.lockstep = prompts, machines, lockstep
        self.grammars = grammars
        self.running: dict[int, Running] = {}
        self.samplers = Samplers(pair, lockstep)
        self._again: deque[Running] = deque()  # of a batch that failed: each is tried alone
        self.pace = Pace(settings.prefill_step_size)
        self._stream = mx.default_stream(mx.default_device())
        self._sequences = self._new_sequences()

    def _new_sequences(self) -> BatchGenerator | DraftedSequences:
        if not self.pair.batches:
            return DraftedSequences(
                self.pair.model,
                self.pair.draft,
                num_draft_tokens=self.settings.num_draft_tokens,
                prefill_step_size=self.settings.prefill_step_size,
                stream=self._stream,
            )
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

    @property
    def is_mending(self) -> bool:
        """Whether a batch has failed, and its answers are tried again one after another."""
        return bool(self._again)

    def _fail_all(self, error: ApiError) -> None:
        found = [*self.running.values(), *self._again]
        self.running.clear()
        self._again.clear()
        for running in found:
            running.job.fail(error)

    def begin(self, job: Job, steps: Steps) -> None:
        """Take the first step of a job; an error ends the job."""
        try:
            self._go_on(job, steps, None)
        except Exception as error:
            job.fail(refusal(error))

    def _go_on(self, job: Job, steps: Steps, fed: Fed | None, said: Saying | None = None) -> None:
        """The next step of a job, or its end; ``said`` is its answer, once it has one."""
        try:
            step = next(steps) if fed is None else steps.send(fed)
        except StopIteration as stop:
            if said is None or said.last is None:
                raise RuntimeError("a turn ended without an answer") from None
            self.lockstep.keep(stop.value)
            job.finish(said.last, stop.value)
            return
        except (TemplateError, TypeError, KeyError) as error:
            what = f"The chat template cannot render these messages: {type(error).__name__}."
            raise ApiError(400, what, code="bad_messages", param="messages") from None
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value") from None
        self._insert(Running(job, steps, step, said))

    def _insert(self, running: Running) -> None:
        step = running.step
        uid = self._answer(running, step) if isinstance(step, Answer) else self._feed(step)
        self.running[uid] = running

    def _feed(self, step: Feed) -> int:
        (uid,) = self._sequences.insert_segments(
            # The batch is to feed these and stop; it never comes to the last token.
            [[step.tokens, [0]]],
            max_tokens=[1],
            caches=[step.cache],
            all_tokens=[list(step.before)],
        )
        return uid

    def _answer(self, running: Running, step: Answer) -> int:
        job, tokenizer = running.job, self.pair.tokenizer
        args = job.args
        stops, text_sm = self.machines([])  # stop words are looked for in the text
        sampler, ending = self.samplers.of(args), None
        earlier = running.saying
        if earlier is not None:
            sampler = SaidAgain(sampler, job.take_back())
        if step.end:
            ending = Ending(sampler, stops, args.max_tokens, step.end)
        processors = make_logits_processors(args)
        if job.request.grammar is not None:
            thinks = step.initial_state == "reasoning"
            running.grammar = self.grammars.follow(job.request.grammar, thinks=thinks)
            processors.append(running.grammar)  # the last word
        (uid,) = self._sequences.insert_segments(
            [step.segments or [step.tokens]],
            max_tokens=[args.max_tokens + len(step.end)],
            samplers=[ending.sample if ending else sampler],
            logits_processors=[processors],
            stop_sequences=[ending or stops],
            caches=[step.cache],
            all_tokens=[list(step.before)],
        )
        job.ctx = GenerationContext(
            has_tool_calling=tokenizer.has_tool_calling,
            has_thinking=tokenizer.has_thinking,
            tool_parser=tokenizer.tool_parser and checked_calls(tokenizer.tool_parser),
            text_sm=text_sm,
            initial_state=step.initial_state,
            prompt=[*step.before, *step.tokens],
            prompt_cache_count=len(step.before),
        )
        running.saying = Saying(job, job.ctx, tokenizer, ending, earlier)
        if earlier is None:
            job.queue.put(job.ctx)
        return uid

    def advance(self) -> None:
        """One step of the batch, and what follows from it."""
        if not self.running:
            self._try_again()
            return
        answering = sum(
            isinstance(running.step, Answer) and running.job.first is not None
            for running in self.running.values()
        )
        feeding = min(len(self.running) - answering, self.settings.prompt_concurrency)
        self._sequences.prefill_step_size = self.pace.size(feeding, waited_for=answering > 0)
        began = time.perf_counter()
        try:
            prompts, tokens = self._sequences.next()
        except Exception as error:
            if not self.lockstep.alone:
                raise  # the other processes may have come further
            self._mend(error)
            return
        if answering and any(not response.end_of_segment for response in prompts):
            self.pace.took(time.perf_counter() - began)
        for response in prompts:
            running = self.running[response.uid]
            if running.job.request.stream:
                running.job.queue.put(PromptProgress(*response.progress))
            if response.end_of_segment and not response.end_of_prompt:
                self._guarded(running, self._end_of_segment, response.uid)
        for token in tokens:
            self._guarded(self.running[token.uid], self._token, token)
        for uid in [uid for uid, running in self.running.items() if running.job.gone]:
            self._guarded(self.running[uid], self._cancel, uid)

    def _mend(self, error: Exception) -> None:
        """After a step that failed nothing in the batch can be relied on: begin anew.

        Who was alone in it has failed. Of several nobody knows whose fault it is, or whether they
        were too many: each is tried again alone, from what its step had begun with.
        """
        log.error("batch failed", extra={"error": type(error).__name__})
        self.metrics.failed_batches.add()
        found = list(self.running.values())
        self.running.clear()
        self._sequences.close()
        self._sequences = self._new_sequences()
        mx.clear_cache()
        self.lockstep.shuffle()
        if len(found) > 1:
            self._again.extend(found)
        else:
            for running in found:
                what = f"Generation failed: {type(error).__name__}."
                running.job.fail(ApiError(500, what, code="internal_error"))

    def _try_again(self) -> None:
        running = self._again.popleft()
        if running.job.gone:
            running.job.settled.set()
            return
        if isinstance(running.step, Answer):  # of its prompt nothing is cached now
            running.step = replace(running.step, segments=[], segment_types=[])
        try:
            self._insert(running)
        except Exception as error:
            running.job.fail(refusal(error))

    def _guarded(
        self, running: Running, act: Callable[[Running, _Value], None], value: _Value
    ) -> None:
        """An error in one request's affairs is that request's."""
        try:
            act(running, value)
        except Exception as error:
            uids = [uid for uid, found in self.running.items() if found is running]
            self._sequences.remove(uids)
            for uid in uids:
                del self.running[uid]
            running.job.fail(refusal(error))

    def _end_of_segment(self, running: Running, uid: int) -> None:
        cache, tokens = self._sequences.extract_cache([uid])[uid]
        step = running.step
        if not isinstance(step, Answer):
            self._sequences.remove([uid])
            del self.running[uid]
            self._go_on(
                running.job, running.steps, Fed(cache, list(tokens)).settled(), running.saying
            )
        elif step.segment_types:
            self.prompts.keep(cache, tokens, step.segment_types.pop(0), step.points)

    def _token(self, running: Running, token: GenerationBatch.Response) -> None:
        saying = running.saying
        if saying is None:
            raise RuntimeError("a token of no answer")
        if running.grammar is not None:
            running.grammar.check()
        if saying.last is None:
            saying.say(token.token, token.logprobs, token.finish_reason)
        cache, tokens = token.prompt_cache, token.all_tokens
        if token.finish_reason is None:
            if not saying.cut:
                return
            cache, tokens = self._taken_out(token.uid)
        del self.running[token.uid]
        self._answered(running, saying, cache or [], tokens or [])

    def _taken_out(self, uid: int) -> tuple[list, list[int]]:
        return self._sequences.remove([uid], return_prompt_caches=True)[uid]

    def _answered(self, running: Running, saying: Saying, cache: list, tokens: list[int]) -> None:
        job, ending = running.job, saying.ending
        stopped = saying.last is not None and saying.last.finish_reason == "stop"
        ended = bool(job.reply) and job.reply[-1] in self.pair.tokenizer.eos_token_ids
        fed = Fed(
            cache=cache,
            tokens=list(tokens),
            reply=job.reply[:-1] if ended else job.reply,
            text="".join(saying.pieces),
            message=visible(saying.ctx, saying.pieces, stopped=stopped, tools=job.request.tools),
            cut=saying.cut,
            ended=ended,
            closed=ending is not None and ending.closed,
        )
        self._go_on(job, running.steps, fed.settled(), saying)

    def _cancel(self, running: Running, uid: int) -> None:
        """The client has gone: nothing of the turn is kept, unless it asked for that."""
        job, saying = running.job, running.saying
        options = job.request.options
        keep = bool(options and options.keep_partial and job.reply)
        if keep and saying and (saying.last is not None or not isinstance(running.step, Answer)):
            return  # the reply is complete: let the turn end
        cache, tokens = self._taken_out(uid)
        del self.running[uid]
        if keep and saying:
            saying.break_off()
            self._answered(running, saying, cache, tokens)
        else:
            job.settled.set()
