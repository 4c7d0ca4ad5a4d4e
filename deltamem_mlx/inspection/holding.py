"""What a memory still holds of a text: its strongest words, read again with the memory and without.

A word that the memory makes likelier where it stands is held. One that it makes no likelier has
been let go of; one that it makes less likely was told otherwise since.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import observe, read_only, set_memory_state
from ..model.patch import config_of
from ..text.messages import Message
from ..text.spans import message_spans
from .turn import plain_words, word_spans

HELD = 1.0  # nats: from here on a word counts as held, or as told otherwise
_STEP = 128  # tokens whose logits are there at once
# Of what the strongest word has: the others are what every word is written with.
_STRONG = 0.4


@dataclass(frozen=True)
class HeldWord:
    """A word that was told, and what the memory makes of it.

    Attributes:
        word (str): The word.
        before (str): The words before it in its message.
        message (int): Which message, from 0.
        strength (float): Its write gate, the largest of its tokens' and the mean over layers.
        log_prob (float): Natural log of its probability where it stands, with the memory.
        log_prob_without (float): The same with an empty memory.
    """

    word: str
    before: str
    message: int
    strength: float
    log_prob: float
    log_prob_without: float

    @property
    def gain(self) -> float:
        """What the memory adds to the log-probability."""
        return self.log_prob - self.log_prob_without


def held_words(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    state: Mapping[int, mx.array],
    messages: Sequence[Message],
    *,
    template_kwargs: Mapping[str, object] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[HeldWord]:
    """The words of a text that are written most strongly, that which the memory holds best first.

    Each message is read by itself, in a fresh context, and nothing is written.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): Its tokenizer; without a chat template the bare text is fed.
        state (Mapping[int, mx.array]): The memory, layer index → [1, H, r, r].
        messages (Sequence[Message]): What may have been told.
        template_kwargs (Mapping): For the chat template.
        progress (Callable): Called after each message with how many were read, and of how many.

    Raises:
        ValueError: If the state does not fit the model.
    """
    found: list[HeldWord] = []
    for number, message in enumerate(messages):
        ids = _ids(tokenizer, message, template_kwargs or {})
        read, without = (_read(model, ids, memory) for memory in (state, None))
        found += _words(tokenizer, ids, message, number, read, without)
        progress(number + 1, len(messages))
    if config_of(model).memory_write_granularity == "token":
        top = max((word.strength for word in found), default=0.0)
        found = [word for word in found if word.strength >= _STRONG * top]
    best: dict[tuple[str, str], HeldWord] = {}
    for word in found:
        best.setdefault((word.before, word.word), word)
    return sorted(best.values(), key=lambda word: -word.gain)


class _Reading(NamedTuple):
    """Of each token of a text: its log-probability where it stands, and its write gate."""

    log_probs: np.ndarray
    gates: np.ndarray


def _ids(
    tokenizer: TokenizerWrapper, message: Message, template_kwargs: Mapping[str, object]
) -> list[int]:
    if not tokenizer.has_chat_template:
        return list(tokenizer.encode(str(message.get("content") or "")))
    said = {"role": "user", "content": message.get("content") or ""}
    return message_spans(tokenizer, [said], template_kwargs=template_kwargs).token_ids


def _read(model: nn.Module, ids: Sequence[int], state: Mapping[int, mx.array] | None) -> _Reading:
    cache = make_prompt_cache(model)
    if state is not None:
        set_memory_state(cache, state)
    gates: dict[int, list[mx.array]] = {}

    def see(layer: int, found: dict[str, mx.array]) -> None:
        gates.setdefault(layer, []).append(found["write"].mean(axis=(0, 2, 3)))

    following, parts = mx.array([*ids[1:], 0]), list[np.ndarray]()
    with read_only(cache), observe(cache, see):
        for start in range(0, len(ids), _STEP):
            logits = model(mx.array([ids[start : start + _STEP]]), cache=cache)[0]
            logits = logits.astype(mx.float32)
            picked = mx.take_along_axis(
                logits, following[start : start + _STEP, None], axis=-1
            ).squeeze(-1)
            parts.append(np.array(picked - mx.logsumexp(logits, axis=-1)))
    log_probs = np.concatenate([[0.0], np.concatenate(parts)[:-1]])
    strength = np.mean([np.array(mx.concatenate(each)) for each in gates.values()], axis=0)
    return _Reading(log_probs, strength)


def _words(
    tokenizer: TokenizerWrapper,
    ids: Sequence[int],
    message: Message,
    number: int,
    read: _Reading,
    without: _Reading,
) -> Iterator[HeldWord]:
    """The words of a message in order; those of the template are left out."""
    spans = [
        (word, start, end)
        for text, start, end in word_spans(tokenizer, ids)
        for word in plain_words(text)
    ]
    heard = {word.lower() for word, _, _ in spans}  # not what the tokenizer does not know
    content = plain_words(str(message.get("content") or ""))
    wanted = [word.lower() for word in content if word.lower() in heard]
    said: list[str] = []
    for word, start, end in spans:
        if len(said) == len(wanted) or word.lower() != wanted[len(said)]:
            continue
        yield HeldWord(
            word=word,
            before=" ".join(said),
            message=number,
            strength=float(read.gates[start:end].max()),
            log_prob=float(read.log_probs[start:end].sum()),
            log_prob_without=float(without.log_probs[start:end].sum()),
        )
        said.append(word)
