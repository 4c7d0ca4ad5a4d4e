"""Models that mlx-lm spreads over several processes, each with its part of the memory."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from launching import launch
from spread_run import adapted, built, config_for

import deltamem_mlx as dm
from deltamem_mlx.memory.file import read_memory

TENSOR = "qwen3:4 llama qwen3_moe gpt_oss minimax qwen3_5+onekv deepseek_v3 phi3"
PIPELINE = "qwen2 qwen3_moe:4 qwen3_next qwen3_5 glm4_moe deepseek_v3 ministral3 minimax_m3_vl"
RUNS = [
    ("tensor", 2, "llama"),
    ("pipeline", 2, "qwen3_moe:4"),
    pytest.param("tensor", 2, TENSOR, marks=pytest.mark.slow),
    pytest.param("pipeline", 2, PIPELINE, marks=pytest.mark.slow),
    pytest.param("tensor", 3, "qwen3_5:8+onekv", marks=pytest.mark.slow),
    pytest.param("pipeline", 3, "qwen3_moe", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "size", "names"), RUNS)
def test_several_processes_compute_what_one_does(
    kind: str, size: int, names: str, tmp_path: Path
) -> None:
    done = launch(
        ROOT / "tests/helpers/spread_run.py", tmp_path, kind, *names.split(), size=size, timeout=240
    )
    for rank in range(size):
        file = tmp_path / f"{rank}.json"
        assert file.exists(), done.stderr[-3000:]
        report = json.loads(file.read_text())
        assert list(report) == names.split()
        for name, found in report.items():
            limit = 1e-5 * found["spread"] if kind == "tensor" else 0.0
            assert found["logits"] <= limit, (name, found)
            assert found["decoded"] <= limit, (name, found)
            assert found["states"] <= limit, (name, found)
            assert found["spread"] > 1, (name, found)
            one, several = found["said"]
            assert one == several, (name, found)
            plain, with_memory = found["sent"]
            assert plain == with_memory, (name, found)
            assert plain[1] > 0, (name, found)
            assert found["same_fingerprint"], (name, found)
            assert found["same_when_fresh"], (name, found)
            assert found["same_when_loaded"], (name, found)
            assert found["same_file"] or kind == "tensor", (name, found)
    assert_one_process_goes_on(tmp_path, names.split()[-1])


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
