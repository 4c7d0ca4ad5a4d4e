"""Sessions of models that lie in several processes, saved as one process would save them."""

import json
from pathlib import Path

import pytest
from conftest import ROOT
from launching import launch

RUNS = [
    pytest.param("tensor", 2, "gpt_oss", marks=pytest.mark.slow),
    pytest.param("pipeline", 3, "qwen3_moe", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "size", "names"), RUNS)
def test_a_session_of_several_processes_is_that_of_one(
    kind: str, size: int, names: str, tmp_path: Path
) -> None:
    program = ROOT / "tests/helpers/spread_session_run.py"
    done = launch(program, tmp_path, kind, *names.split(), size=size, timeout=200)
    for rank in range(size):
        file = tmp_path / f"{rank}.json"
        assert file.exists(), done.stderr[-3000:]
        for name, found in json.loads(file.read_text()).items():
            for alike in found["said"]:
                assert len(set(alike)) == 1, (name, found["said"])
            assert found["same_text"]
            assert found["same_arrays"] or kind == "tensor"
            assert found["shapes"][0] == found["shapes"][1]
            assert found["states"] <= (1e-5 if kind == "tensor" else 0.0)
            assert found["restored"] == 0.0
            assert found["undone"] == 0.0
            whole, parts = found["history"]
            assert len(whole) == len(parts) == 3
            assert whole == parts or kind == "tensor"
            assert found["stats"] == 4 * 4 * 4 * 4  # layers, and a state's numbers of 4 bytes
            one, several = found["kept"]
            assert one == several > 1
            assert "nothing.safetensors" in found["refused"]
