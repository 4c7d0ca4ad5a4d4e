"""What the attentions of a model see while facts are told and asked for, and where values are."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from make_data import Generator, Turn, messages_of
from mlx_lm.tokenizer_utils import TokenizerWrapper

BATCH = 8


class Pair(NamedTuple):
    """A token of a value: where it was told, and the token before it in the answer.

    Positions count through all recorded tokens.
    """

    told: int
    before: int
    token: int


class Recording(NamedTuple):
    """What was recorded.

    Attributes:
        inputs (dict[int, np.ndarray]): By layer, what its attention got, float16 [tokens, D].
        written (np.ndarray): bool [tokens], true where facts were told, false where asked.
        pairs (list[Pair]): The values.
    """

    inputs: dict[int, np.ndarray]
    written: np.ndarray
    pairs: list[Pair]


def record(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    generator: Generator,
    layers: Sequence[int],
    conversations: int,
    facts: int,
) -> Recording:
    """Tell and ask so many facts in so many conversations; each part is read without the other."""
    parts: list[list[int]] = []
    pairs: list[Pair] = []
    start = 0
    for _ in range(conversations):
        known = generator.facts(facts)
        told = tokens_of(tokenizer, generator.turns([generator.tell(fact) for fact in known]))
        order = generator.rng.sample(known, len(known))
        asked = tokens_of(tokenizer, map(generator.question, order))
        parts += [told, asked]
        for fact in known:
            value = tokenizer.encode(" " + fact.value, add_special_tokens=False)
            places = _find(told, value), _find(asked, value)
            if all(places):
                at, answer = start + places[0][-1], start + len(told) + places[1][0]
                pairs += [Pair(at + i, answer + i - 1, token) for i, token in enumerate(value)]
        start += len(told) + len(asked)
    lengths = [len(part) for part in parts]
    written = np.repeat(np.arange(len(parts)) % 2 == 0, lengths)
    return Recording(attention_inputs(model, parts, layers), written, pairs)


def tokens_of(tokenizer: TokenizerWrapper, turns: Iterable[Turn]) -> list[int]:
    """A conversation as the chat template renders it."""
    return list(tokenizer.apply_chat_template(messages_of(turns), tokenize=True))


def _find(tokens: list[int], value: list[int]) -> list[int]:
    starts = range(len(tokens) - len(value) + 1)
    return [i for i in starts if tokens[i : i + len(value)] == value]


class Tap(nn.Module):
    """A norm that keeps what it gave last."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        vars(self).update(norm=norm, seen=None)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.norm(x)
        vars(self)["seen"] = y
        return y


def attention_inputs(
    model: nn.Module, parts: Sequence[list[int]], layers: Sequence[int]
) -> dict[int, np.ndarray]:
    """What each layer's attention gets, float16 [tokens, D] by layer, over all parts in order."""
    blocks = {layer: model.layers[layer] for layer in layers}
    taps = {layer: Tap(block.input_layernorm) for layer, block in blocks.items()}
    found = {layer: [None] * len(parts) for layer in layers}
    order = sorted(range(len(parts)), key=lambda i: len(parts[i]))
    for layer, block in blocks.items():
        block.input_layernorm = taps[layer]
    try:
        for first in range(0, len(parts), BATCH):
            chosen = order[first : first + BATCH]
            tokens = np.zeros((len(chosen), len(parts[chosen[-1]])), np.int32)
            for row, i in zip(tokens, chosen, strict=True):
                row[: len(parts[i])] = parts[i]  # what follows the end changes nothing before it
            model(mx.array(tokens))
            mx.eval([tap.seen for tap in taps.values()])
            for layer, tap in taps.items():
                seen = np.array(tap.seen.astype(mx.float16))
                for row, i in zip(seen, chosen, strict=True):
                    found[layer][i] = row[: len(parts[i])]
    finally:
        for layer, block in blocks.items():
            block.input_layernorm = taps[layer].norm
    return {layer: np.concatenate(rows) for layer, rows in found.items()}
