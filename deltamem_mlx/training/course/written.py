"""What a model says by itself: answers to ordinary questions, and texts that it goes on with.

Training on them beside facts keeps replies and predictions as they were where the memory has
nothing to say.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import batch_generate
from mlx_lm.sample_utils import make_sampler

from ...evals.journal import Journal
from .rendering import ChatForm

BATCH = 16


class Manner(NamedTuple):
    """How a model is let speak.

    Attributes:
        max_tokens (int): At most so many tokens.
        temp, top_p (float): Sampling; 0: always the likeliest.
        plain (bool): It goes on with a text, and does not answer a message.
    """

    max_tokens: int
    temp: float = 0.0
    top_p: float = 0.0
    plain: bool = False


TALK = Manner(40, 0.7, 0.9)
TEXT = Manner(120, 1.0, plain=True)
BRIEF = Manner(10)  # in most answers the first words tell whether a memory spoke


def said_by(
    model: nn.Module,
    chat: ChatForm,
    begun: Sequence[str],
    manner: Manner,
    *,
    seed: int,
    journal: Journal,
    tell: Callable[[int], None],
) -> list[str]:
    """How a model goes on after each of some beginnings, which follows from the seed.

    Args:
        model (nn.Module): Without a memory.
        chat (ChatForm): How its conversations are written.
        begun (Sequence[str]): What is said to it, or texts.
        manner (Manner): How it speaks.
        seed (int): Of the sampling.
        journal (Journal): Where it is kept; what it holds is not said again.
        tell (Callable[[int], None]): Told how many more are done.
    """
    for first in range(0, len(begun), BATCH):
        part = begun[first : first + BATCH]
        ids = range(first, first + len(part))
        if any(i not in journal.rows for i in ids):
            mx.random.seed(seed + first)
            texts = _said(model, chat, part, manner)
            journal.add([{"id": i, "said": text} for i, text in zip(ids, texts, strict=True)])
        tell(len(part))
    return [journal.rows[i]["said"] for i in range(len(begun))]


def _said(model: nn.Module, chat: ChatForm, begun: Sequence[str], manner: Manner) -> list[str]:
    prompts = [
        chat.opened(text) if manner.plain else chat.prompt([{"role": "user", "content": text}])
        for text in begun
    ]
    sampler = make_sampler(temp=manner.temp, top_p=manner.top_p)
    response = batch_generate(
        model, chat.tokenizer, prompts, max_tokens=manner.max_tokens, sampler=sampler
    )
    return list(response.texts)
