"""What the attentions of a model see while facts are told and asked for, and where values are."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .directions import final_norm
from .language import Teller, messages_of
from .layers import width_of
from .rendering import ChatForm

BATCH = 8


class ValuePair(NamedTuple):
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
        pairs (list[ValuePair]): The values.
        size (float): Root mean square of the entries that reach the final norm.
        voices (dict[int, float]): By layer, how strongly its attention speaks, beside that size:
            1 where nothing stands behind it, less where a norm makes it louder.
    """

    inputs: dict[int, np.ndarray]
    written: np.ndarray
    pairs: list[ValuePair]
    size: float
    voices: dict[int, float]


class FactScript(NamedTuple):
    """What is to be recorded: parts that are told and asked in turn, and where values are in them.

    Attributes:
        parts (list[list[int]]): Tokens; every second one asks for what the one before told.
        pairs (list[ValuePair]): The values.
    """

    parts: list[list[int]]
    pairs: list[ValuePair]


def script(
    chat: ChatForm,
    teller: Teller,
    conversations: int,
    facts: int,
) -> FactScript:
    """Tell and ask so many facts in so many conversations; each part is read without the other."""
    parts: list[list[int]] = []
    pairs: list[ValuePair] = []
    start = 0
    for _ in range(conversations):
        known = teller.facts(facts)
        turns = teller.turns([teller.tell(fact) for fact in known])
        told = chat.tokens(messages_of(turns))
        order = teller.rng.sample(known, len(known))
        asked = chat.tokens(messages_of(map(teller.question, order)))
        parts += [told, asked]
        for fact in known:
            for value in chat.encodings(fact.value):
                places = find(told, value), find(asked, value)
                if all(places):
                    at, answer = start + places[0][-1], start + len(told) + places[1][0]
                    pairs += [ValuePair(at + i, answer + i - 1, t) for i, t in enumerate(value)]
                    break
        start += len(told) + len(asked)
    return FactScript(parts, pairs)


def record(model: nn.Module, said: FactScript, sites: dict[int, nn.Module]) -> Recording:
    """What the attentions of some layers see of a script.

    Args:
        model (nn.Module): Without a memory.
        said (FactScript): What is read.
        sites (dict[int, nn.Module]): Layer → its attention.
    """
    inputs, size, voices = attention_inputs(model, said.parts, sites)
    lengths = [len(part) for part in said.parts]
    written = np.repeat(np.arange(len(said.parts)) % 2 == 0, lengths)
    return Recording(inputs, written, said.pairs, size, voices)


def find(tokens: Sequence[int], value: Sequence[int]) -> list[int]:
    """Where a sequence of tokens stands in another."""
    starts = range(len(tokens) - len(value) + 1)
    return [i for i in starts if list(tokens[i : i + len(value)]) == list(value)]


@lru_cache
def _tapped(base: type[nn.Module]) -> type[nn.Module]:
    """A class of modules that keep what they were given last, and what they gave."""

    name = list(inspect.signature(base.__call__).parameters)[1]

    def call(self: nn.Module, *args: object, **kwargs: object) -> object:
        said = base.__call__(self, *args, **kwargs)
        vars(self).update(seen=args[0] if args else kwargs[name], said=said)
        return said

    return type(f"Tapped{base.__name__}", (base,), {"__call__": call})


@contextmanager
def tapped(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within this context modules keep what they get and give: ``seen``, ``said`` in ``vars``."""
    classes = [type(module) for module in modules]
    for module, cls in zip(modules, classes, strict=True):
        module.__class__ = _tapped(cls)
    try:
        yield
    finally:
        for module, cls in zip(modules, classes, strict=True):
            module.__class__ = cls
            for name in ("seen", "said"):
                vars(module).pop(name, None)


def attention_inputs(
    model: nn.Module, parts: Sequence[list[int]], sites: dict[int, nn.Module]
) -> tuple[dict[int, np.ndarray], float, dict[int, float]]:
    """What each layer's attention gets, float16 [tokens, D] by layer, over all parts in order.

    Also the root mean square of the entries of what reaches the final norm, 1 without one, and the
    voices of a `Recording`.
    """
    width = width_of(model)
    last = final_norm(model, width)
    norms = [m for m in model.modules() if getattr(m, "weight", mx.zeros(0)).shape == (width,)]
    found: dict[int, list] = {layer: [None] * len(parts) for layer in sites}
    order = sorted(range(len(parts)), key=lambda i: len(parts[i]))
    sizes: list[float] = []
    behind: dict[int, nn.Module] = {}
    loud: dict[int, list[float]] = {layer: [] for layer in sites}
    with tapped([*sites.values(), *norms]):
        for first in range(0, len(parts), BATCH):
            chosen = order[first : first + BATCH]
            tokens = np.zeros((len(chosen), len(parts[chosen[-1]])), np.int32)
            for row, i in zip(tokens, chosen, strict=True):
                row[: len(parts[i])] = parts[i]  # what follows the end changes nothing before it
            model(mx.array(tokens))
            seen = {layer: vars(module)["seen"] for layer, module in sites.items()}
            behind = behind or _behind(sites, norms)
            said = {layer: vars(norm)["seen"] for layer, norm in behind.items()}
            final = vars(last)["seen"] if last is not None and "seen" in vars(last) else None
            mx.eval(seen, said, final)
            for layer, x in seen.items():
                rows = np.array(x.astype(mx.float16))
                for row, i in zip(rows, chosen, strict=True):
                    found[layer][i] = row[: len(parts[i])].copy()  # not the batch's padding
            for heard, x in [*((loud[i], x) for i, x in said.items()), (sizes, final)]:
                if x is not None:
                    rows = np.array(x.astype(mx.float32))
                    heard += [
                        _size(row[: len(parts[i])]) for row, i in zip(rows, chosen, strict=True)
                    ]
    size = float(np.mean(sizes)) if sizes else 1.0
    # Not entry by entry through the norm's weights: small ones would be answered by shouting, and
    # of a correction that is mostly such entries the norm leaves little of the word.
    voices = {
        layer: float(np.mean(loud[layer])) / size if layer in behind else 1.0 for layer in sites
    }
    inputs = {layer: np.concatenate(found.pop(layer)) for layer in sites}
    return inputs, size, voices


def _behind(sites: dict[int, nn.Module], norms: Sequence[nn.Module]) -> dict[int, nn.Module]:
    """The norms that some families put between an attention and the residual, by layer."""
    given = {id(vars(norm)["seen"]): norm for norm in norms if "seen" in vars(norm)}
    said = {layer: vars(module)["said"] for layer, module in sites.items()}
    first = {layer: x[0] if isinstance(x, tuple) else x for layer, x in said.items()}
    return {layer: given[id(x)] for layer, x in first.items() if id(x) in given}


def _size(rows: np.ndarray) -> float:
    """The size of usual entries: some models have a few that are huge."""
    return float(np.sqrt(np.median(np.square(rows))))
