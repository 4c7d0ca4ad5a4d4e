"""How well text is predicted with the memory and without: what an adapter does to the base model.

mlx-lm's ``mlx_lm.perplexity`` gives one number for a whole data set; a paired comparison needs a
loss for each passage.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..memory.actions import read_only, write_spans
from ..model.patch import config_of
from ..text.spans import Spans
from .intervals import paired_bootstrap
from .journal import Journal, Row
from .passages import Passage

BASE, ADAPTED = "none", "memory"
CONDITIONS = {
    BASE: "an empty memory that is not written: the plain model",
    ADAPTED: "a memory that is empty at the start of each, written while it is read",
}

# Positions whose logits are held at once: in float32, with a vocabulary of 150,000, 1.2 GB.
POSITIONS = 2048


def losses(
    model: nn.Module,
    passages: Sequence[Passage],
    *,
    batch_size: int,
    journal: Journal,
    tell: Callable[[int], None] | None = None,
) -> list[Row]:
    """The loss of every passage under both conditions.

    Args:
        model (nn.Module): A model with an adapter.
        passages (Sequence[Passage]): Each is read from an empty memory and an empty context.
        batch_size (int): Passages at once.
        journal (Journal): Where losses are kept; those it holds are not computed again.
        tell (Callable[[int], None]): Told how many more passages are done.

    Returns:
        list[Row]: ``passage``, ``condition``, ``nats`` (the sum over the tokens) and ``tokens``
        (those that are predicted: all but the first).

    Raises:
        ValueError: If the model has no adapter, or a loss is not finite.
    """
    ordered = sorted(passages, key=lambda p: len(p.spans.token_ids))  # little padding in a batch
    ids = []
    for condition in CONDITIONS:
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            own = [f"{condition}/{p.id}" for p in batch]
            if any(i not in journal.rows for i in own):
                nats = passage_nats(model, [p.spans for p in batch], write=condition == ADAPTED)
                journal.add(list(map(_row, own, batch, nats, [condition] * len(batch))))
            if tell is not None:
                tell(len(batch))
            ids += own
    return [journal.rows[i] for i in ids]


def passage_nats(model: nn.Module, batch: Sequence[Spans], *, write: bool) -> list[float]:
    """The cross-entropy of each passage in nats, summed over its tokens but the first.

    With an adapter that writes by message or sentence, a message is read with the memory that those
    before it left, and written when it ends. Text without messages is written token by token.

    Args:
        model (nn.Module): A model with an adapter.
        batch (Sequence[Spans]): Passages of two tokens or more.
        write (bool): Whether the memory is written; if it is not, it stays empty and the model
          predicts as it does without the adapter.

    Raises:
        ValueError: If the model has no adapter.
    """
    token_wise = config_of(model).memory_write_granularity == "token"
    if token_wise or not write or all(n < 0 for s in batch for n in s.message_ids):
        end = max(len(s.token_ids) for s in batch) - 1
        return _nats(model, batch, [(0, end)], write=write)
    return [_nats(model, [s], _messages(s), write=True, whole=True)[0] for s in batch]


def _nats(
    model: nn.Module,
    batch: Sequence[Spans],
    runs: Iterable[tuple[int, int]],
    *,
    write: bool,
    whole: bool = False,
) -> list[float]:
    """The same, fed run by run; with ``whole``, each run of a batch of one is one ingest."""
    lengths = np.array([len(s.token_ids) for s in batch])
    rows = np.zeros((len(batch), lengths.max()), np.int32)
    for row, spans in zip(rows, batch, strict=True):
        row[: len(spans.token_ids)] = spans.token_ids  # padding follows, which no token sees
    tokens = mx.array(rows)
    there = mx.array(np.arange(1, lengths.max()) < lengths[:, None])
    cache, sums = make_prompt_cache(model), np.zeros(len(batch))
    step = max(1, POSITIONS // len(batch))
    with nullcontext() if write else read_only(cache):
        for start, end in runs:
            with _ingest(cache, batch[0], start, end) if whole else nullcontext():
                for a in range(start, end, step):
                    b = min(a + step, end)
                    logits = model(tokens[:, a:b], cache=cache).astype(mx.float32)
                    ce = nn.losses.cross_entropy(logits, tokens[:, a + 1 : b + 1])
                    sums += np.array(mx.where(there[:, a:b], ce, 0).sum(axis=1))
                    mx.clear_cache()
    return sums.tolist()


def _ingest(cache: list, spans: Spans, start: int, end: int) -> AbstractContextManager:
    sentence_ids = None if spans.sentence_ids is None else [spans.sentence_ids[start:end]]
    return write_spans(cache, [spans.message_ids[start:end]], sentence_ids)


def _messages(spans: Spans) -> Iterable[tuple[int, int]]:
    """Where each message begins and ends; a system message belongs to the next.

    The last token is left out: nothing is predicted after it.
    """
    first: dict[int, int] = {}
    for place, message in enumerate(spans.message_ids[:-1]):
        if message >= 0:
            first.setdefault(message, place)
    return pairwise([0, *list(first.values())[1:], len(spans.message_ids) - 1])


def _row(name: str, passage: Passage, nats: float, condition: str) -> Row:
    if not math.isfinite(nats):
        raise ValueError(
            f"{passage.id}: the loss under {condition!r} is {nats}, not a finite number. Check the "
            "model and the adapter; weights in float16 may overflow where bfloat16 does not."
        )
    tokens = len(passage.spans.token_ids) - 1
    base = {"id": name, "passage": passage.id, "condition": condition}
    return base | {"nats": nats, "tokens": tokens}


def summary(rows: Iterable[Row], *, seed: int = 0) -> dict[str, Any]:
    """Perplexities, and how they compare on the same passages.

    Args:
        rows (Iterable[Row]): From ``losses``.
        seed (int): Of the bootstrap.

    Returns:
        dict: JSON values: ``scores`` (condition → ``perplexity``, ``nats_per_token``, over all
        tokens) and ``ratio``: perplexity with the adapter over that without it, with a paired
        bootstrap interval of 95 % over the passages (``value``, ``low``, ``high``).
    """
    by_condition: dict[str, dict[str, Row]] = {name: {} for name in CONDITIONS}
    for row in rows:
        by_condition[row["condition"]][row["passage"]] = row
    names = list(by_condition[BASE])
    tokens = [by_condition[BASE][name]["tokens"] for name in names]
    rates = {
        condition: [own[name]["nats"] / own[name]["tokens"] for name in names]
        for condition, own in by_condition.items()
    }
    means = {name: float(np.average(own, weights=tokens)) for name, own in rates.items()}
    found = paired_bootstrap(rates[ADAPTED], rates[BASE], weights=tokens, seed=seed)
    return {
        "scores": {
            name: {"perplexity": math.exp(mean), "nats_per_token": mean}
            for name, mean in means.items()
        },
        "ratio": {name: math.exp(value) for name, value in found._asdict().items()},
    }


def digest(passages: Iterable[Passage]) -> str:
    """SHA-256 of passages, in hex: what tells one set from another."""
    found = hashlib.sha256()
    for passage in passages:
        found.update(json.dumps([passage.id, *passage.spans], ensure_ascii=False).encode())
    return found.hexdigest()
