"""An answer as it is said, token by token, up to a stop word in its text."""

import time
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.server import GenerationContext, Response
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...compat import format_top_logprobs
from ..turns.job import Job
from .ending import Ending


class StopWords:
    """Finds the first of some words in a text that comes piece by piece.

    In the text, not in the tokens: a word seldom begins and ends where tokens do.

    Args:
        words (Sequence[str]): What to find.

    Attributes:
        found (bool): One of them came; what is left of the text is not given out.
    """

    def __init__(self, words: Sequence[str]):
        self._words, self._held = words, ""
        self.found = False

    def feed(self, piece: str) -> str:
        """What can be given out by now: not the beginning of what may become a word."""
        text, self._held = self._held + piece, ""
        ends = [(at + len(word), at) for word in self._words if (at := text.find(word)) >= 0]
        if ends:
            self.found = True
            return text[: min(ends)[1]]
        longest = max((len(word) for word in self._words), default=1) - 1
        start = max(0, len(text) - longest)
        while start < len(text) and not any(w.startswith(text[start:]) for w in self._words):
            start += 1
        self._held = text[start:]
        return text[:start]

    def rest(self) -> str:
        """What was held back, once no more comes."""
        text, self._held = self._held, ""
        return text


class Carrier(Response):
    """Text that mlx-lm would leave out of the last response, whose token comes with that one."""


class Saying:
    """The decoding of one answer.

    Args:
        job (Job): Whose answer it is; responses go to its queue.
        ctx (GenerationContext): What mlx-lm's handler knows of it.
        tokenizer (TokenizerWrapper): The model's.
        ending (Ending): Where the end of the turn is fed with it.
        earlier (Saying): The same answer as it was begun before, whose tokens come again; None: it
          was not.

    Attributes:
        pieces (list[str]): The text, response by response.
        cut (bool): A stop word ended it: more was generated than was said.
        last (Response): The last response; None: there is more to come. It is not handed out
          before what the turn came to is kept.
    """

    def __init__(
        self,
        job: Job,
        ctx: GenerationContext,
        tokenizer: TokenizerWrapper,
        ending: Ending | None,
        earlier: "Saying | None" = None,
    ):
        self.job, self.ctx, self.ending = job, ctx, ending
        self._tokenizer, self._detokenizer = tokenizer, tokenizer.detokenizer
        self._stops = StopWords(job.args.stop_words)
        self._waiting: Response | None = None  # for what may still belong to its text
        self._handed, self._known = 0, earlier._handed if earlier is not None else 0
        self.pieces: list[str] = []
        self.cut = False
        self.last: Response | None = None

    def say(self, token: int, logprobs: mx.array, reason: str | None) -> None:
        """Hand out a token, as far as is known that it is said."""
        reason = self.ending.reason if self.ending else reason
        text = self._stops.feed(self._text_of(token, reason))
        self.cut = self._stops.found
        if self.cut:
            reason = "stop"
        elif reason is not None:
            text += self._stops.rest()
        args = self.job.args
        shown = args.logprobs or args.top_logprobs > 0
        said = response(
            "" if reason == "stop" else text,
            token,
            read_logprob(logprobs, token) if shown else 0.0,
            reason,
            format_top_logprobs(logprobs, args.top_logprobs, self._tokenizer),
        )
        self.job.reply.append(token)
        self.job.first = self.job.first or time.perf_counter()
        if reason == "stop" and text:
            # mlx-lm leaves out the text of a last response that says "stop".
            before, self._waiting = self._waiting, None
            self._hand_out(_before(said, text) if before is None else _with(before, text))
        self._hand_out(said)

    def _text_of(self, token: int, reason: str | None) -> str:
        if reason == "stop":
            return ""
        self._detokenizer.add_token(token)
        if reason is not None:
            self._detokenizer.finalize()
        return self._detokenizer.last_segment

    def _hand_out(self, said: Response) -> None:
        """Give out what was waiting; where there are stop words, one response waits."""
        due: list[Response] = [self._waiting] if self._waiting else []
        self._waiting = None
        if said.finish_reason is not None:
            self.last = said
        elif self.job.args.stop_words:
            self._waiting = said
        else:
            due.append(said)
        self.pieces += [item.text for item in due]
        if self.last is not None:
            self.pieces.append(self.last.text)
        for item in due:
            if self.job.request.stream:
                self._handed += 1
                if self._handed > self._known:  # the client has those before
                    self.job.queue.put(item)
            else:
                self.job.said.append(item)

    def break_off(self) -> None:
        """The client has gone; what was said so far is the answer."""
        self.last = response("", 0, 0.0, "length")
        if self._waiting is not None:
            self.pieces.append(self._waiting.text)


def response(
    text: str, token: int, logprob: float, reason: str | None, top: Sequence[object] = ()
) -> Response:
    """mlx-lm's, whose annotation says that the most likely tokens are always one."""
    return Response(text, token, logprob, reason, top)  # type: ignore[arg-type]  # see above


def _with(said: Response, text: str) -> Response:
    return response(said.text + text, said.token, said.logprob, None, said.top_tokens)


def _before(said: Response, text: str) -> Carrier:
    return Carrier(text, said.token, said.logprob, None, said.top_tokens)


def read_logprob(logprobs: mx.array, token: int) -> float:
    """The value at ``token`` of logprobs [V], from where it lies.

    MLX would read it after the step that it is computing now.
    """
    if logprobs.dtype == mx.bfloat16:  # which NumPy does not know: float32's upper half
        bits = np.frombuffer(logprobs, np.uint16)[token]  # type: ignore[call-overload]  # a buffer
        return float((bits.astype(np.uint32) << 16).view(np.float32))
    return float(np.asarray(logprobs)[token])
