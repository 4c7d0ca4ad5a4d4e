"""Decoding with a draft model's guesses, beside decoding without: how many fit, and how fast."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import rewindable
from .timing import Effort, Samples, alternate

QUESTIONS = (
    "Tell me about the city of Oslo.",
    "How do I boil an egg?",
    "Write a Python function that adds two numbers.",
)
AHEAD = (1, 3, 5)
_Tokens = Generator[tuple[int, bool], None, None]  # which, and whether it was guessed
_Way = Callable[[list[int], int], _Tokens]


@dataclass(frozen=True)
class DraftRow:
    """Greedy answers to some prompts, with a memory, decoded with and without a draft.

    Args:
        strategy (str): TSW, MSW or SSW.
        ahead (int): Tokens that the draft guesses at a time.
        tokens (int): Tokens of all answers, the first of each excepted.
        drafted (int): Tokens of all answers that were guesses.
        same (int): Answers that are the same, token by token, as without a draft.
        prompts (int): How many answers.
        plain, drafting (Samples): Seconds for all answers, from their first tokens on.
    """

    strategy: str
    ahead: int
    tokens: int
    drafted: int
    same: int
    prompts: int
    plain: Samples
    drafting: Samples

    @property
    def acceptance(self) -> float:
        """Which part of the tokens were guesses."""
        return self.drafted / (self.tokens + self.prompts)

    @property
    def ratio(self) -> Samples:
        """Time with a draft over time without, round by round."""
        return self.drafting.over(self.plain)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        row: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("strategy", "ahead", "tokens", "drafted", "acceptance", "same", "prompts")
        }
        row["ratio"] = self.ratio.to_dict()
        for name, seconds in (("plain", self.plain), ("drafting", self.drafting)):
            row[name] = {
                "tokens_per_second": self.tokens / seconds.median,
                "seconds": seconds.to_dict(),
            }
        return row


def prompts_for(tokenizer: TokenizerWrapper) -> list[list[int]]:
    """Questions as a model is asked them, as token ids."""
    if not tokenizer.has_chat_template:
        return [list(tokenizer.encode(question)) for question in QUESTIONS]
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [list(tokenizer.apply_chat_template(a, add_generation_prompt=True)) for a in asked]


def draft_rows(
    models: dict[str, nn.Module],
    draft: nn.Module,
    prompts: Sequence[list[int]],
    ahead: Sequence[int],
    tokens: int,
    effort: Effort,
) -> list[DraftRow]:
    """What a draft is worth, for each model and each number of guesses.

    Args:
        models (dict[str, nn.Module]): Strategy → a model with a memory.
        draft (nn.Module): Guesses ahead of it.
        prompts (Sequence[list[int]]): Token ids.
        ahead (Sequence[int]): How many guesses at a time.
        tokens (int): Tokens that each answer has after its first.
        effort (Effort): How long to measure.
    """
    rows = []
    for strategy, model in models.items():
        ways: dict[int, _Way] = {k: partial(_drafted, model, draft, k) for k in ahead}
        ways[0] = partial(_plain, model)
        said = {k: [_answer(way, p, tokens) for p in prompts] for k, way in ways.items()}
        runs = {str(k): partial(_seconds, way, prompts, tokens, effort) for k, way in ways.items()}
        seconds = alternate(runs, effort)
        for k in ahead:
            answers = list(zip(said[0], said[k], strict=True))
            rows.append(
                DraftRow(
                    strategy,
                    k,
                    tokens * len(prompts),
                    sum(drafted for _, (_, drafted) in answers),
                    sum(one[0] == other[0] for one, other in answers),
                    len(prompts),
                    seconds["0"],
                    seconds[str(k)],
                )
            )
    return rows


def _plain(model: nn.Module, prompt: list[int], tokens: int) -> _Tokens:
    cache = make_prompt_cache(model)
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens, prompt_cache=cache):
        yield int(token), False


def _drafted(
    model: nn.Module, draft: nn.Module, ahead: int, prompt: list[int], tokens: int
) -> _Tokens:
    cache = make_prompt_cache(model)
    with rewindable(cache, tokens=ahead + 1):
        for token, _, guessed in speculative_generate_step(
            mx.array(prompt),
            model,
            draft,
            num_draft_tokens=ahead,
            max_tokens=tokens,
            prompt_cache=[*cache, *make_prompt_cache(draft)],
        ):
            yield int(token), guessed


def _answer(way: _Way, prompt: list[int], tokens: int) -> tuple[list[int], int]:
    """The tokens of an answer, and how many of them were guesses."""
    said = list(way(prompt, tokens + 1))
    return [token for token, _ in said], sum(guessed for _, guessed in said)


def _seconds(way: _Way, prompts: Sequence[list[int]], tokens: int, effort: Effort) -> float:
    """Seconds from the first token of each answer to its last."""
    total = 0.0
    for prompt in prompts:
        answer = way(prompt, tokens + 1)
        next(answer)
        total += effort.time(partial(list, islice(answer, tokens)))
        answer.close()
    return total
