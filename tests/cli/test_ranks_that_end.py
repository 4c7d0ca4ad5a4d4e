"""Where one of several processes ends, all end, with one sentence that names it."""

from pathlib import Path

import pytest
from conftest import ROOT
from forked import Nursery
from launching import apart
from tiny import strong_pair, tiny_model_folder

import deltamem_mlx as dm
from deltamem_mlx.memory.file import read_memory

DYING = ROOT / "tests/helpers/dying.py"
# Where a process kills itself: function and call. A prompt of four tokens a step, of four layers.
PREFILL = "deltamem_mlx.model.attention:read_and_write", "9"
ANSWER = "deltamem_mlx.model.attention:read_and_write", "150"
ANSWER_OF_ONE_LAYER = "deltamem_mlx.model.attention:read_and_write", "45"
SAVE = "deltamem_mlx.session.session:memory_of", "1"
LOADING = "deltamem_mlx.adapters.loading:attach_adapter", "1"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """A command that works on a memory."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_model_folder(folder / "model", "qwen3_moe", num_hidden_layers=4)
    model, tokenizer = strong_pair(folder / "model")
    dm.save_adapter(model, folder / "adapter")
    session = dm.MemorySession(model, tokenizer)
    session.ask("I am Ann.", max_tokens=4)
    session.save(folder / "me.safetensors")
    pair = ["--model", folder / "model", "--adapter", folder / "adapter"]
    memory = ["--memory", folder / "me.safetensors", "--prefill-step-size", "4", "-m", "40"]
    return ["generate", "Who am I, and who are you, and who are they?", *pair, *memory]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "victim", "when", "flags"),
    [
        (2, 1, LOADING, []),
        (2, 1, PREFILL, ["--pipeline"]),
        (2, 1, ANSWER, []),
        (3, 2, ANSWER_OF_ONE_LAYER, ["--pipeline"]),
        (2, 1, SAVE, ["--pipeline"]),
        (2, 0, ANSWER, []),
    ],
)
def test_all_end_with_a_sentence_that_names_who_ended(
    size: int,
    victim: int,
    when: tuple[str, str],
    flags: list[str],
    words: list[str | Path],
    nursery: Nursery,
) -> None:
    memory = next(Path(w) for w in words if Path(w).suffix == ".safetensors")
    before = read_memory(memory)
    with apart(nursery, DYING, victim, *when, *words, *flags, size=size) as ranks:
        assert ranks[victim].wait(timeout=300) == -9  # loaded, and on its way
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    codes = [rank.returncode for rank in ranks]
    assert codes == [-9 if rank == victim else 1 for rank in range(size)]
    speaker = 1 if victim == 0 else 0
    assert f"Error: rank {victim} of this run has ended" in said[speaker]
    assert "".join(said).count("Error: ") == 1
    after = read_memory(memory)
    assert after.tokens_written == before.tokens_written
    assert [path.name for path in memory.parent.glob("*.safetensors")] == [memory.name]
