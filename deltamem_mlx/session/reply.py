"""Decoding one reply, with the way back from what mlx-lm feeds ahead."""

from collections import deque
from collections.abc import Iterator
from itertools import chain

import mlx.core as mx
from mlx_lm.generate import GenerationResponse, stream_generate
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..text.spans import Spans
from .context import Context, Mark


class Reply:
    """The answer to a prompt, as far as it was handed out.

    Args:
        context (Context): Where the prompt is to be fed.
        prompt (Spans): The new tokens and their ids.

    Attributes:
        tokens (list[int]): What was generated, without an end token.
        text (str): The same as text.
        ended (bool): The model generated an end token. It has been fed then.
    """

    def __init__(self, context: Context, prompt: Spans):
        self.context, self.prompt = context, prompt
        self.tokens: list[int] = []
        self.text = ""
        self.ended = False
        self._start = len(context.tokens) + len(prompt.token_ids)
        self._marks: deque[Mark] = deque(maxlen=3)

    @property
    def started(self) -> bool:
        """Whether anything has been handed out."""
        return self.ended or bool(self.tokens)

    def decode(
        self, tokenizer: TokenizerWrapper, generation: dict[str, object]
    ) -> Iterator[GenerationResponse]:
        """Feed the prompt and yield the pieces of the answer.

        A token has been fed when it is yielded, and no other after it.
        """
        sampler = generation.get("sampler") or greedy_sampler
        length = self._start

        def sample(logprobs: mx.array) -> mx.array:
            # mlx-lm feeds a token before it yields it; it samples in between.
            nonlocal length
            self._marks.append(self.context.mark(length))
            length += 1
            return sampler(logprobs)

        responses = stream_generate(
            self.context.model,
            tokenizer,
            self.prompt.token_ids,
            prompt_cache=self.context.cache,
            **{**generation, "sampler": sample},
        )
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

    def rewind(self) -> None:
        """Go back to the last token handed out, after a step that was cut short."""
        self._back_to(len(self.tokens) + self.ended)

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
