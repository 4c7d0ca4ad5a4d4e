"""Answers one after another, in the place of mlx-lm's batch: with a draft model's guesses or not.

mlx-lm drafts for one conversation at a time, and there are prompt caches that it cannot batch. What
has to run is told as its `BatchGenerator` is, and comes back in the same form, so that `batch` need
not know which of the two it has.
"""

import copy
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import (
    GenerationBatch,
    PromptProcessingBatch,
    StopSequences,
    speculative_generate_step,
)

from ...memory.actions import rewindable
from ...session.context import Context
from ...session.draft import Draft
from ...text.spans import Spans
from .ending import Sampler

Processor = Callable[[mx.array, mx.array], mx.array]
Tokens = Generator[tuple[Any, mx.array, bool], None, None]  # mlx-lm has integers for arrays
Caches = dict[int, tuple[list, list[int]]]


@dataclass
class _Sequence:
    """What waits or runs: ``segments`` are still to be fed, the last of them one token."""

    uid: int
    segments: list[list[int]]
    context: Context
    max_tokens: int
    sampler: Sampler | None
    processors: Sequence[Processor]
    stops: StopSequences.Matcher
    total: int = 0
    said: int = 0
    drafted: bool = False
    tokens: Tokens | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.total = sum(map(len, self.segments))


class DraftedSequences:
    """Sequences that a model continues, with a draft model's help or alone, the first come first.

    Args:
        model (nn.Module): A model with an adapter.
        draft (nn.Module): Guesses ahead of it; None: nothing does.
        num_draft_tokens (int): How far.
        prefill_step_size (int): Tokens a step.
        stream (mx.Stream): Where to compute.
    """

    def __init__(
        self,
        model: nn.Module,
        draft: nn.Module | None,
        *,
        num_draft_tokens: int,
        prefill_step_size: int,
        stream: mx.Stream,
    ):
        self.prefill_step_size = prefill_step_size
        self._model, self._ahead = model, num_draft_tokens
        self._draft = None if draft is None else Draft(draft)
        self._stream, self._uids = stream, 0
        self._waiting: deque[_Sequence] = deque()

    def insert_segments(
        self,
        segments: list[list[list[int]]],
        max_tokens: list[int],
        caches: list[list],
        all_tokens: list[list[int]],
        samplers: list[Sampler] | None = None,
        logits_processors: list[list[Processor]] | None = None,
        stop_sequences: list[StopSequences] | None = None,
    ) -> list[int]:
        """Take one sequence in; works on a copy of its cache. Arguments as of mlx-lm's."""
        parts = [list(part) for part in segments[0] if part]
        if len(parts[-1]) > 1:
            parts[-1:] = [parts[-1][:-1], parts[-1][-1:]]
        context = Context(self._model, copy.deepcopy(caches[0]), "token")
        context.tokens = list(all_tokens[0])
        self._uids += 1
        stops = stop_sequences[0] if stop_sequences else StopSequences()
        self._waiting.append(
            _Sequence(
                self._uids,
                parts,
                context,
                max_tokens[0],
                samplers[0] if samplers else None,
                logits_processors[0] if logits_processors else [],
                stops.matcher(),
            )
        )
        return [self._uids]

    def next(
        self,
    ) -> tuple[list[PromptProcessingBatch.Response], list[GenerationBatch.Response]]:
        """One step of the first sequence: some of its prompt, or a token."""
        if not self._waiting:
            return [], []
        first = self._waiting[0]
        with mx.stream(self._stream):
            if first.tokens is not None:
                return [], [self._token(first)]
            if len(first.segments) > 1:
                return [self._feed(first)], []
            first.tokens = self._tokens(first, first.segments.pop())
            begun = PromptProcessingBatch.Response(first.uid, (first.total,) * 2, True, True)
            return [begun], [self._token(first)]

    def _feed(self, sequence: _Sequence) -> PromptProcessingBatch.Response:
        segment, context = sequence.segments[0], sequence.context
        step, rest = segment[: self.prefill_step_size], segment[self.prefill_step_size :]
        self._model(mx.array(step, mx.uint32)[None], cache=context.cache)
        context.settle()
        mx.clear_cache()
        context.tokens += step
        sequence.segments[:1] = [rest] if rest else []
        fed = sequence.total - sum(map(len, sequence.segments))
        return PromptProcessingBatch.Response(sequence.uid, (fed, sequence.total), not rest, False)

    def _tokens(self, sequence: _Sequence, last: list[int]) -> Tokens:
        """What the model says after ``last``, the one token of the prompt that is left."""
        context, before = sequence.context, mx.array(sequence.context.tokens, mx.uint32)
        processors = [_after(before, processor) for processor in sequence.processors]
        room = sequence.max_tokens + len(last) + self._ahead
        if self._draft is None or not context.can_draft(room):
            context.tokens += last
            yield from self._plainly(sequence, last, processors)
            return
        self._draft.follow(context.tokens, self.prefill_step_size)
        sequence.drafted = True
        context.tokens += last
        with rewindable(context.cache, tokens=self._ahead + 1):
            yield from speculative_generate_step(
                mx.array(last, mx.uint32),
                self._model,
                self._draft.model,
                self._stream,
                num_draft_tokens=self._ahead,
                max_tokens=sequence.max_tokens,
                sampler=sequence.sampler,
                logits_processors=processors or None,
                prompt_cache=[*context.cache, *self._draft.cache],
            )

    def _plainly(
        self, sequence: _Sequence, last: list[int], processors: Sequence[Processor]
    ) -> Tokens:
        """Without guesses: nothing guesses, or a sliding window that fills up could not go back."""
        said, sampler = mx.array(last, mx.uint32), sequence.sampler or mx.argmax
        for _ in range(sequence.max_tokens):
            logits = self._model(said[None, -1:], cache=sequence.context.cache)[:, -1]
            for processor in processors:
                logits = processor(said, logits)
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            token = sampler(logprobs).reshape(1)
            said = mx.concatenate([said, token.astype(mx.uint32)])
            yield token.item(), logprobs[0], False

    def _token(self, sequence: _Sequence) -> GenerationBatch.Response:
        if sequence.tokens is None:
            raise RuntimeError("a token of a sequence that has not begun")
        token, logprobs, _ = next(sequence.tokens)
        sequence.context.tokens.append(token)
        sequence.said += 1
        reason = "length" if sequence.said >= sequence.max_tokens else None
        if sequence.stops.advance(token):
            reason = "stop"
        cache, tokens = None, None
        if reason is not None:
            self._waiting.remove(sequence)
            cache, tokens = self._ended(sequence)
        mx.eval(logprobs)
        return GenerationBatch.Response(sequence.uid, token, logprobs, reason, cache, tokens)

    def _ended(self, sequence: _Sequence) -> tuple[list, list[int]]:
        """A sequence's cache, which has been fed all that was said, and its tokens."""
        context = sequence.context
        if sequence.tokens is not None:
            sequence.tokens.close()
            missing = context.tokens[context.held() :]
            del context.tokens[context.held() :]
            context.feed(Spans(missing, [-1] * len(missing)), step_size=self.prefill_step_size)
            if self._draft is not None and sequence.drafted:
                self._draft.has_been_fed(context.tokens)
        context.settle()
        return context.cache, context.tokens

    def extract_cache(self, uids: Sequence[int]) -> Caches:
        """Copies of the caches of some sequences, and the tokens in them."""
        found = [sequence for sequence in self._waiting if sequence.uid in uids]
        return {s.uid: (copy.deepcopy(s.context.cache), list(s.context.tokens)) for s in found}

    def remove(self, uids: Sequence[int], return_prompt_caches: bool = False) -> Caches:
        """End some sequences; returns their caches and tokens, if asked to."""
        found = [sequence for sequence in self._waiting if sequence.uid in uids]
        self._waiting = deque(s for s in self._waiting if s.uid not in uids)
        with mx.stream(self._stream):
            ended = {sequence.uid: self._ended(sequence) for sequence in found}
        return ended if return_prompt_caches else {}

    @property
    def prompt_cache_nbytes(self) -> int:
        """Bytes of the caches in it, the draft's too."""
        caches = [c for s in self._waiting for c in s.context.cache]
        return sum(c.nbytes for c in caches + (self._draft.cache if self._draft else []))

    def close(self) -> None:
        """End all of them."""
        for sequence in self._waiting:
            if sequence.tokens is not None:
                sequence.tokens.close()
        self._waiting.clear()


def _after(before: mx.array, processor: Processor) -> Processor:
    """The same for a text of which mlx-lm knows the end only."""

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        return processor(mx.concatenate([before, tokens.astype(mx.uint32)]), logits)

    return process
