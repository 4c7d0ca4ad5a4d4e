"""SmolLM2-135M in several processes, beside the same in one."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT, RunCli
from forked import Nursery
from launching import launch
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from mlx_lm.utils import load_model, save_model

from deltamem_mlx.memory.file import read_memory

# It was trained and measured in float32.
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.parametrize("smollm2", ["float32"], indirect=True),
]
ADAPTER = ["--adapter", ROOT / "adapters" / "smollm2-135m-instruct"]
ASKED = ["generate", "What does Oscar do for a living?", "--remember", ROOT / "examples/notes.txt"]
RECALL = ["eval", "recall", "--limit", "2", "--facts", "1", "--kind", "told"]
RECALL += ["--condition", "memory", "--json"]


@pytest.fixture(scope="module")
def as_qwen2(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as one of Qwen2, which has biases, all zero: mlx-lm has a pipeline for it."""
    folder = tmp_path_factory.mktemp("as_qwen2")
    model, config = load_model(smollm2)
    new = config | {"model_type": "qwen2"}
    copy = qwen2.Model(qwen2.ModelArgs.from_dict(new))
    zeros = {n: mx.zeros_like(x) for n, x in tree_flatten(copy.parameters()) if n.endswith(".bias")}
    copy.load_weights([*tree_flatten(model.parameters()), *zeros.items()])
    save_model(folder, copy)
    (folder / "config.json").write_text(json.dumps(new))
    for file in smollm2.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def compare(
    model: Path, flags: list[str], size: int, run_cli: RunCli, folder: Path, nursery: Nursery
) -> float:
    """Words and scores are the same; gives how far the memories are apart."""
    pair, files = ["--model", model, *ADAPTER], [folder / f"{n}.safetensors" for n in "ab"]
    words = [*pair, "-m", "12", "--memory"]
    one = run_cli(*ASKED, *words, files[0], timeout=600)
    command = ["-m", "deltamem_mlx"]
    several = launch(nursery, *command, *ASKED, *words, files[1], *flags, size=size, timeout=600)
    assert several.stdout == one.stdout != "", several.stderr
    assert "pilot" in one.stdout
    scores = run_cli(*RECALL, *pair, timeout=600).stdout
    shared = launch(nursery, *command, *RECALL, *pair, *flags, size=size, timeout=600)
    assert json.loads(shared.stdout) == json.loads(scores), shared.stderr
    a, b = map(read_memory, files)
    assert (a.tokens_written, a.adapter) == (b.tokens_written, b.adapter)
    assert a.told is not None and b.told is not None  # each has a salt of its own
    assert (a.told.turns, len(a.told.messages)) == (b.told.turns, len(b.told.messages))
    assert a.states.keys() == b.states.keys()
    return max(float(np.abs(a.states[i] - b.states[i]).max()) for i in a.states)


def test_three_processes_in_parallel_say_what_one_says(
    smollm2: Path, run_cli: RunCli, tmp_path: Path, nursery: Nursery
) -> None:
    assert compare(smollm2, [], 3, run_cli, tmp_path, nursery) < 1e-4


def test_a_pipeline_of_two_says_what_one_says_and_keeps_it_to_the_bit(
    as_qwen2: Path, run_cli: RunCli, tmp_path: Path, nursery: Nursery
) -> None:
    assert compare(as_qwen2, ["--pipeline"], 2, run_cli, tmp_path, nursery) == 0.0


def test_two_processes_cannot_share_nine_heads(smollm2: Path, nursery: Nursery) -> None:
    done = launch(nursery, "-m", "deltamem_mlx", "generate", "Hi", "--model", smollm2, *ADAPTER)
    assert "9 for queries and 3 for keys and values. Start 3 processes." in done.stderr
    assert done.stderr.count("Error: ") == 1
