"""Models that mlx-lm spreads over several processes, each with its part of the memory."""

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from forked import Nursery
from golden import TOLERANCE, cases, read_case
from launching import launch
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache
from spread_models import adapted, built, config_for

import deltamem_mlx as dm
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.model.spread import reach_of

TENSOR = "qwen3:4 llama qwen3_moe gpt_oss minimax qwen3_5+onekv deepseek_v3 phi3"
PIPELINE = "qwen2 qwen3_moe:4 qwen3_next qwen3_5 glm4_moe deepseek_v3 ministral3 minimax_m3_vl"
# Adapters of some of the layers: one of two processes has no memory.
PARTS = ["qwen2+lower", "qwen2+upper", "qwen3_5+lower", "deepseek_v32+lower", "qwen3_moe:4+upper"]
slow = partial(pytest.param, marks=pytest.mark.slow)


def named(check: str, way: str, names: str | Sequence[str]) -> list[str]:
    names = names.split() if isinstance(names, str) else names
    return [f"{check}/{way}/{name}" for name in names]


def golden(way: str) -> list[str]:
    """All recorded forwards of models that mlx-lm spreads in this way: SmolLM3 in no pipeline."""
    found = [
        name
        for name in cases("forward")
        if way == "tensor" or read_case(name)[0]["model"].endswith("qwen3-tiny")
    ]
    return named("golden", way, found)


FEW = [
    *named("model", "tensor", "llama"),
    *named("golden", "tensor", "tsw_qkvo"),
    *named("model", "pipeline", "qwen3_moe:4"),
    *named("golden", "pipeline", "msw_heads4"),
    *named("actions", "pipeline", "qwen2+lower"),
]
RUNS = [
    (2, FEW),
    slow(2, named("model", "tensor", TENSOR) + named("fresh", "tensor", "qwen3:4 phi3")),
    slow(2, named("model", "pipeline", PIPELINE) + named("fresh", "pipeline", "qwen2")),
    slow(2, [f"{check}/pipeline/{name}" for check in ("model", "actions") for name in PARTS]),
    slow(2, golden("tensor") + golden("pipeline")),
    slow(
        3,
        [
            *named("model", "tensor", "qwen3_5:8+onekv"),
            *named("model", "pipeline", "qwen3_moe qwen3_next qwen2+lower qwen2+upper"),
            *named("actions", "pipeline", "qwen2+upper"),
            *golden("pipeline"),
        ],
    ),
]


@pytest.mark.parametrize(("size", "wanted"), RUNS, ids=lambda value: str(value)[:6])
def test_several_processes_compute_what_one_does(
    size: int, wanted: list[str], tmp_path: Path, nursery: Nursery
) -> None:
    program = ROOT / "tests/helpers/spread_cases.py"
    done = launch(nursery, program, tmp_path, *wanted, size=size, timeout=500)
    reports = []
    for rank in range(size):
        file = tmp_path / f"{rank}.json"
        assert file.exists(), done.stderr[-3000:]
        report = json.loads(file.read_text())
        assert list(report) == wanted
        reports.append(report)
        for case, found in report.items():
            check, way, name = case.split("/")
            said = list(CHECKS[check](way, name, found))
            assert not said, (case, said, found)
    for case in wanted:
        if case.startswith("model/"):
            _, way, name = case.split("/")
            assert_held_once([report[case]["held"] for report in reports], way, name)
            assert_one_process_goes_on(tmp_path / "model" / way, name)


@pytest.mark.parametrize(
    ("cache", "reach"),
    [
        ([KVCache(), KVCache()], math.inf),
        ([KVCache(), RotatingKVCache(64), RotatingKVCache(32)], 32),
        ([RotatingKVCache(64), ArraysCache(2)], 0),
        ([KVCache(), CacheList(KVCache(), RotatingKVCache(16))], 16),
        ([CacheList(ArraysCache(1), KVCache())], 0),
        ([], math.inf),
    ],
)
def test_how_long_a_context_can_be_cut(cache: list, reach: float) -> None:
    assert reach_of(cache) == reach


def of_model(way: str, name: str, found: dict) -> Iterator[str]:
    """What is wrong with a model."""
    limit = 1e-5 * found["spread"] if way == "tensor" else 0.0
    yield from (part for part in ("logits", "decoded", "states") if found[part] > limit)
    if found["spread"] <= 1:
        yield "the logits say nothing"
    one, several = found["said"]
    if one != several:
        yield "other tokens"
    plain, with_memory = found["sent"]
    if plain != with_memory or not plain[1]:
        yield "sent"
    if not found["same_fingerprint"] or not found["same_when_loaded"]:
        yield "another adapter or memory"
    if not found["held_whole"] and way == "tensor":
        yield "an adapter that cannot be trained"
    if not found["same_file"] and way == "pipeline":
        yield "the memory file"


def assert_held_once(held: list[list[dict[str, int]]], way: str, name: str) -> None:
    """Each process has its part of the adapter: its layers, or its rows of Δq, Δk and Δv."""
    for key, whole in held[0][0].items():
        here = [parts.get(key, 0) for _, parts in held]
        if way == "pipeline":
            assert sum(here) == whole, (name, key, here)
        else:
            dealt_out = "q" if name.endswith("+onekv") else "qkv"
            rows = key in {f"delta_{head}_proj" for head in dealt_out}
            assert here == [whole // len(held) if rows else whole] * len(held), (name, key, here)


def of_golden(way: str, name: str, found: dict) -> Iterator[str]:
    """What is wrong with a recorded case."""
    if found["steps"] != len(read_case(name)[0]["steps"]):
        yield "steps"
    limits = TOLERANCE["forward"]
    if found["logits"] > limits["logits_abs"]:
        yield "logits"
    if found["states"] > limits["state_abs"]:
        yield "states"


def of_fresh(way: str, name: str, found: dict) -> Iterator[str]:
    """What is wrong with an adapter that has just been drawn."""
    if not found["same"]:
        yield "other weights"


def of_actions(way: str, name: str, found: dict) -> Iterator[str]:
    """What comes to something else."""
    yield from (action for action, same in found.items() if same is not True)


CHECKS = {"actions": of_actions, "model": of_model, "golden": of_golden, "fresh": of_fresh}


def assert_one_process_goes_on(folder: Path, name: str) -> None:
    """What several processes wrote is read by one."""
    model = adapted(built(name), folder / "here", config_for(name))
    states = read_memory(folder / f"{name}.safetensors").states
    cache = dm.load_memory(folder / f"{name}.safetensors", model)
    for layer, state in dm.memory_state(cache).items():
        assert np.array_equal(np.array(state), states[layer])
    again = dm.load_adapter(dm.detach(model), folder / f"{name}-adapter")
    dm.save_adapter(again, folder / "again")
    one, two = (
        (path / "adapters.safetensors").read_bytes()
        for path in (folder / f"{name}-0" / "adapter", folder / f"{name}-adapter")
    )
    assert one == two
