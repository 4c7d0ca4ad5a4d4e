"""Decoding one reply, with the way back from what mlx-lm feeds ahead."""

from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain

import mlx.core as mx
from mlx_lm.generate import GenerationResponse, stream_generate
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import rewindable
from ..text.spans import Spans
from .context import Context, Mark
from .draft import NUM_DRAFT_TOKENS, Draft
from .generation import Generation

Pieces = Generator[GenerationResponse, None, None]


class Reply:
    """The answer to a prompt, as far as it was handed out.

    Args:
        context (Context): Where the prompt is to be fed.
        prompt (Spans): The new tokens and their ids.
        draft (Draft): Guesses ahead; None: plain decoding.

    Attributes:
        tokens (list[int]): What was generated, without an end token.
        text (str): The same as text.
        ended (bool): The model generated an end token. It has been fed then.
    """

    def __init__(self, context: Context, prompt: Spans, draft: Draft | None = None):
        self.context, self.prompt, self._draft = context, prompt, draft
        self.tokens: list[int] = []
        self.text = ""
        self.ended = False
        self._start = len(context.tokens) + len(prompt.token_ids)
        self._marks: deque[Mark] = deque(maxlen=3)
        self._before, self._torn = context.mark(), False

    @property
    def started(self) -> bool:
        """Whether anything has been handed out."""
        return self.ended or bool(self.tokens)

    def decode(
        self, tokenizer: TokenizerWrapper, generation: Generation, step_size: int
    ) -> Iterator[GenerationResponse]:
        """Feed the prompt and yield the pieces of the answer.

        Without a draft, a token has been fed when it is yielded, and no other after it; with one
        that is so when the iterator has ended.
        """
        if self._draft is None:
            yield from self._handed_out(self._plain(tokenizer, generation))
            return
        self._draft.follow(self.context.tokens, step_size)
        ahead = generation.get("num_draft_tokens", NUM_DRAFT_TOKENS)
        with rewindable(self.context.cache, tokens=ahead + 1):
            try:
                yield from self._handed_out(self._drafted(tokenizer, generation, self._draft))
            except GeneratorExit:
                if self.started:
                    self._feed_the_last(step_size)
                raise
            except KeyboardInterrupt:
                self._torn = True
                raise
            self._feed_the_last(step_size)
        self._draft.has_been_fed(self.context.tokens)

    def _plain(self, tokenizer: TokenizerWrapper, generation: Generation) -> Pieces:
        sampler = generation.get("sampler") or greedy_sampler
        length = self._start

        def sample(logprobs: mx.array) -> mx.array:
            # mlx-lm feeds a token before it yields it; it samples in between.
            nonlocal length
            self._marks.append(self.context.mark(length))
            length += 1
            return sampler(logprobs)

        arguments: Generation = {**generation, "sampler": sample}
        arguments.pop("num_draft_tokens", None)
        return stream_generate(
            self.context.model,
            tokenizer,
            self.prompt.token_ids,
            prompt_cache=self.context.cache,
            **arguments,
        )

    def _drafted(self, tokenizer: TokenizerWrapper, generation: Generation, draft: Draft) -> Pieces:
        arguments: Generation = {"num_draft_tokens": NUM_DRAFT_TOKENS, **generation}
        return stream_generate(
            self.context.model,
            tokenizer,
            self.prompt.token_ids,
            draft_model=draft.model,
            prompt_cache=[*self.context.cache, *draft.cache],
            **arguments,
        )

    def _handed_out(self, responses: Pieces) -> Iterator[GenerationResponse]:
        try:
            with self.context.spans(self.prompt):
                first = next(responses)
            self.context.tokens += self.prompt.token_ids
            for response in chain([first], responses):
                self._take(response)
                yield response
        finally:
            responses.close()

    def _take(self, response: GenerationResponse) -> None:
        self.context.tokens.append(response.token)
        self.text += response.text
        self.ended = response.finish_reason == "stop"
        if not self.ended:
            self.tokens.append(response.token)

    def _feed_the_last(self, step_size: int) -> None:
        """Feed the last token: mlx-lm does not where it was no guess of the draft's.

        The way back to before an end token is kept, as while decoding without a draft.
        """
        held = self.context.held()
        if self.ended and held == len(self.context.tokens):
            self.context.take_back(1)
            held -= 1
        missing = self.context.tokens[held:]
        del self.context.tokens[held:]
        self._marks.append(self.context.mark())
        self.context.feed(Spans(missing, [-1] * len(missing)), step_size=step_size)
        self._marks.append(self.context.mark())

    def rewind(self, step_size: int) -> None:
        """Go back to the last token handed out, after a step that was cut short.

        Raises:
            ValueError: If the context cannot go back as far.
        """
        if not self._torn:
            self._back_to(len(self.tokens) + self.ended)
            return
        # What mlx-lm took back of its guesses is not known: feed what was handed out again.
        said = self.context.tokens[self._start :]
        self.context.back_to(self._before)
        if len(self.context.tokens) != self._before.length:
            raise ValueError("The interrupted turn could not be kept; it was taken back.")
        self.context.feed(self.prompt, step_size=step_size)
        self.context.feed(Spans(said, [-1] * len(said)), step_size=step_size)
        self._marks.append(self.context.mark())

    def rest_of(self, end: Spans) -> Spans:
        """What is left to feed of the template's end of turn.

        Token writes need only what comes after the model's own end token. With sequence-state
        writes the whole end is one ingest, so that token is taken back, if the KV cache can.
        """
        if not self.ended:
            return end
        same = end.token_ids[:1] == self.context.tokens[-1:]
        if not (same and self.context.granularity == "token") and self.context.can_trim():
            self._back_to(len(self.tokens))
            return end
        return end.tail(1) if same else end

    def _back_to(self, generated: int) -> None:
        length = self._start + generated
        self.context.back_to(next(mark for mark in self._marks if mark.length == length))
