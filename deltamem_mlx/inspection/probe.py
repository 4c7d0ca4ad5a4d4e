"""Asking a memory without teaching it, and what it adds over no memory.

Every answer is given twice, with the memory and without, and every answer is scored under both:
the difference in log-probability is what the memory adds to it.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import read_only, set_memory_state
from ..text.spans import message_spans
from .scoring import Placement, Read, placed

WITH, WITHOUT, BOTH, GIVEN = "with memory", "without memory", "with and without", "given"


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer and how likely it is.

    Args:
        text (str): The answer.
        source (str): Whose greedy answer it is: ``with memory``, ``without memory``, ``with and
          without``; or ``given``, for one that was only scored.
        given (bool): It was one of those to score.
        tokens (int): Its length.
        log_prob (float): Natural log of its probability with the memory: the sum over its tokens.
        log_prob_without (float): The same with an empty memory.
        after (str): What stands before it, of the models' own answers, where it was scored: a
          single word seldom begins an answer. Empty: it was scored as the answer's beginning.
    """

    text: str
    source: str
    given: bool
    tokens: int
    log_prob: float
    log_prob_without: float
    after: str = ""

    @property
    def in_place(self) -> str:
        """The answer as it is shown: in brackets what stands before it."""
        return f"({self.after}) {self.text}" if self.after else self.text

    @property
    def gain(self) -> float:
        """What the memory adds to the log-probability."""
        return self.log_prob - self.log_prob_without


@dataclass(frozen=True)
class Probed:
    """One phrasing of a question and its answers, that with the memory first."""

    phrasing: str
    answers: list[ScoredAnswer]


@dataclass(frozen=True)
class GivenAnswer:
    """An answer that was to be scored, over all phrasings.

    Args:
        text (str): The answer.
        log_prob, log_prob_without (float): As in ``ScoredAnswer``; means.
        first (int): In how many phrasings it is, with the memory, the likeliest of those given.
    """

    text: str
    log_prob: float
    log_prob_without: float
    first: int

    @property
    def gain(self) -> float:
        return self.log_prob - self.log_prob_without


def rephrasings(question: str) -> list[str]:
    """A question as it is; with, or without, 'Please'; as a statement; carelessly; in passing.

    The words put around it are English.
    """
    question = " ".join(question.split())
    bare = question.rstrip("?!. ")
    if bare.lower().startswith("please "):
        body = bare[len("please ") :].lstrip(" ,:")
        others = [
            f"{body[:1].upper()}{body[1:]}{question[len(bare) :]}",
            f"I would like you to {body}.",
        ]
    else:
        others = [f"Please tell me: {question}", f"I would like to know: {bare}."]
    others += [bare.lower(), f"I have a question about what you were told before. {question}"]
    return list(dict.fromkeys([question, *others]))


def probe(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    state: Mapping[int, mx.array],
    phrasings: Sequence[str],
    *,
    answers: Sequence[str] = (),
    system_prompt: str | None = None,
    template_kwargs: Mapping[str, object] | None = None,
    max_tokens: int = 48,
) -> list[Probed]:
    """Ask a memory in several phrasings, each in a fresh context. Nothing is written.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): Its tokenizer; without a chat template the bare text is fed.
        state (Mapping[int, mx.array]): The memory of one conversation, as ``dm.memory_state`` of
          its prompt cache has it: layer index → [1, H, r, r].
        phrasings (Sequence[str]): Ways to ask.
        answers (Sequence[str]): Answers, or words of them, to score as well: each is where it fits
          best, as the beginning of an answer or within one of the two greedy ones.
        system_prompt (str): System message before the question.
        template_kwargs (Mapping): For the chat template: ``enable_thinking``, ...
        max_tokens (int): Longest answer.

    Returns:
        list[Probed]: One per phrasing; its answers, repeated ones left out.

    Raises:
        ValueError: If the state does not fit the model, or there is nothing to ask.
    """
    if not phrasings or not all(text.strip() for text in phrasings):
        raise ValueError("A question is empty; expected something to ask.")
    if not all(text.strip() for text in answers):
        raise ValueError("An answer to score is empty; expected some text.")
    return [
        Probed(text, _answers(model, tokenizer, prompt, state, answers, max_tokens))
        for text in phrasings
        if (prompt := _prompt(tokenizer, text, system_prompt, template_kwargs or {}))
    ]


def given_answers(probed: Sequence[Probed]) -> list[GivenAnswer]:
    """The answers that were to be scored, over all phrasings."""
    by_text: dict[str, list[ScoredAnswer]] = {}
    best: list[str] = []
    for one in probed:
        given = [answer for answer in one.answers if answer.given]
        for answer in given:
            by_text.setdefault(answer.text, []).append(answer)
        best += [max(given, key=lambda answer: answer.log_prob).text] if given else []
    return [
        GivenAnswer(
            text,
            fmean(answer.log_prob for answer in answers),
            fmean(answer.log_prob_without for answer in answers),
            best.count(text),
        )
        for text, answers in by_text.items()
    ]


def _answers(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: Sequence[int],
    state: Mapping[int, mx.array],
    given: Sequence[str],
    max_tokens: int,
) -> list[ScoredAnswer]:
    with _prefilled(model, prompt, state) as full, _prefilled(model, prompt, None) as empty:
        sources: dict[Placement, str] = {}
        for source, cache in ((WITH, full), (WITHOUT, empty)):
            reply = Placement((), _greedy(model, tokenizer, prompt, cache, max_tokens))
            sources[reply] = BOTH if reply in sources else source
        with_memory, without = Read(model, prompt, full), Read(model, prompt, empty)
        scored = placed(
            tokenizer, given, [place.tokens for place in sources], (with_memory, without)
        )
        for place in scored:
            sources.setdefault(place, GIVEN)
        return [
            ScoredAnswer(
                tokenizer.decode(list(place.tokens)).strip(),
                source,
                place in scored,
                len(place.tokens),
                with_memory.log_prob(place),
                without.log_prob(place),
                tokenizer.decode(list(place.after)).strip(),
            )
            for place, source in sources.items()
        ]


def _prompt(
    tokenizer: TokenizerWrapper,
    question: str,
    system_prompt: str | None,
    template_kwargs: Mapping[str, object],
) -> list[int]:
    if not tokenizer.has_chat_template:
        return _encode(tokenizer, f"{system_prompt}\n\n{question}" if system_prompt else question)
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": question})
    spans = message_spans(
        tokenizer, messages, add_generation_prompt=True, template_kwargs=template_kwargs
    )
    return spans.token_ids


def _encode(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@contextmanager
def _prefilled(
    model: nn.Module, prompt: Sequence[int], state: Mapping[int, mx.array] | None
) -> Iterator[list]:
    """A prompt cache that has read all of the prompt but its last token; ``None``: no memory."""
    cache = make_prompt_cache(model)
    if state is not None:
        set_memory_state(cache, state)
    with read_only(cache):
        if len(prompt) > 1:
            model(mx.array([prompt[:-1]]), cache=cache)
            mx.eval([c.state for c in cache])
        yield cache


def _greedy(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: Sequence[int],
    cache: list,
    max_tokens: int,
) -> tuple[int, ...]:
    """The greedy answer, without its end token; that alone where there is no answer."""
    reply: list[int] = []
    ends = set(tokenizer.eos_token_ids)
    cache = copy.deepcopy(cache)
    for token, _ in generate_step(
        mx.array(list(prompt[-1:])), model, max_tokens=max_tokens, prompt_cache=cache
    ):
        if token in ends:
            return tuple(reply) or (int(token),)
        reply.append(int(token))
    return tuple(reply)
