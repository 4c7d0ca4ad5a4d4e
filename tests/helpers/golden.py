"""Replays the reference cases in ``fixtures/golden`` through the public names."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

import deltamem_mlx as dm

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN = FIXTURES / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
TOLERANCE = INDEX["tolerance"]


def cases(kind: str) -> list[str]:
    return [case["case"] for case in INDEX["cases"] if case["kind"] == kind]


def read_case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(GOLDEN / name / "expected.npz") as expected:
        arrays = {key: expected[key] for key in expected.files}
    return json.loads((GOLDEN / name / "case.json").read_text()), arrays


def base_model(name: str) -> nn.Module:
    return load_model(FIXTURES / name)[0]


def batch_cache(model: nn.Module, size: int) -> list:
    """A prompt cache for ``size`` conversations, as mlx-lm's batch generator makes one."""
    singles = [make_prompt_cache(model) for _ in range(size)]
    if size == 1:
        return singles[0]
    return [layer[0].merge(list(layer)) for layer in zip(*singles, strict=True)]


def replay(name: str, model: nn.Module | None = None) -> Iterator[tuple[dict, mx.array, list]]:
    """Yield each step of a forward case with its logits and the prompt cache after it."""
    case, _ = read_case(name)
    if model is None:
        model = dm.load_adapter(base_model(case["model"]), GOLDEN / name / "adapter")
    cache = None
    for step in case["steps"]:
        ids = mx.array(step["input_ids"])
        if cache is None or step["cache"] != "continue":
            cache = _next_cache(model, cache, step, len(ids))
        elif step["reset_before"]:
            dm.reset_memory(cache)
        padding = right_padding(step)
        if padding:
            lengths = [ids.shape[1] - p for p in padding]
            for c in cache:
                c.prepare(lengths=lengths, right_padding=padding)
        with _writing(cache, step):
            logits = model(ids, cache=cache)
        if padding:
            for c in cache:
                c.finalize()
        yield step, logits, cache


def _next_cache(model: nn.Module, old: list | None, step: dict, size: int) -> list:
    """A cache without context; the state stays unless the step resets it or the batch changes."""
    new = batch_cache(model, size)
    if step["attention_mask"] is not None:
        left = [row.index(1) for row in step["attention_mask"]]
        if any(left):
            for c in new:
                c.prepare(left_padding=left)
    if old is not None and not step["reset_before"]:
        state = dm.memory_state(old)
        if next(iter(state.values())).shape[0] == size:
            dm.set_memory_state(new, state)
    return new


def real_tokens(step: dict, per_token: np.ndarray) -> np.ndarray:
    """1 where a step has a token and 0 where padding, to be multiplied with [B, T, ...]."""
    if step["attention_mask"] is None:
        return np.ones(1)
    return np.array(step["attention_mask"])[:, -per_token.shape[1] :, None]


def right_padding(step: dict) -> list[int] | None:
    mask = step["attention_mask"]
    if mask is None or step["cache"] == "continue":
        return None
    padding = [row[::-1].index(1) for row in mask]
    return padding if any(padding) else None


def _writing(cache: list, step: dict) -> AbstractContextManager:
    if not step["write_enabled"]:
        return dm.read_only(cache)
    ids = step["write_message_ids"]
    # The reference ignores ids of another width than the call; here they may name several calls.
    if ids is None or len(ids[0]) != len(step["input_ids"][0]):
        return nullcontext()
    return dm.write_spans(cache, ids, step["write_sentence_ids"])
