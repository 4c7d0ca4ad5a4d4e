"""The built-in pair does what it is shipped for."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

import deltamem_mlx as dm
from deltamem_mlx import builtin

FACTS = [
    "anna lives in oslo .",
    "ben is a doctor .",
    "chris plays viola .",
    "david always wants pasta .",
]
ASKED = {
    "where does anna live ?": "oslo",
    "what is the job of ben ?": "doctor",
    "what is the instrument of chris ?": "viola",
    "which food does david like ?": "pasta",
}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, TokenizerWrapper]:
    return dm.load(str(builtin.base_folder()), str(builtin.adapter_folder()))


def told(pair: tuple[nn.Module, TokenizerWrapper]) -> dm.MemorySession:
    session = dm.MemorySession(*pair)
    for fact in FACTS:
        session.remember(fact)
    session.forget_context()
    return session


def test_it_answers_from_memory_and_stops(pair: tuple[nn.Module, TokenizerWrapper]) -> None:
    """With writes on, as in a chat: what it says is written, and does not make it go on."""
    session = told(pair)
    for question, value in ASKED.items():
        *_, last = responses = list(session.stream(question, max_tokens=24))
        assert value in "".join(response.text for response in responses)
        assert last.finish_reason == "stop"
        session.forget_context()


def test_the_newest_fact_wins(pair: tuple[nn.Module, TokenizerWrapper]) -> None:
    session = told(pair)
    session.remember("not any more : anna lives in paris .")
    session.forget_context()
    assert "paris" in session.ask("where does anna live ?", max_tokens=24)
    session.forget_context()
    assert "doctor" in session.ask("what is the job of ben ?", max_tokens=24)


def test_a_fork_leaves_its_parent_alone(pair: tuple[nn.Module, TokenizerWrapper]) -> None:
    session = told(pair)
    before = dm.memory_state(session.cache)
    fork = session.fork()
    fork.remember("not any more : anna lives in paris .")
    fork.forget_context()
    assert "paris" in fork.ask("where does anna live ?", max_tokens=24)
    assert all(mx.array_equal(s, before[i]) for i, s in dm.memory_state(session.cache).items())
    with session.read_only():
        assert "oslo" in session.ask("where does anna live ?", max_tokens=24)
    assert all(mx.array_equal(s, before[i]) for i, s in dm.memory_state(session.cache).items())


def test_a_memory_file_carries_it(pair: tuple[nn.Module, TokenizerWrapper], tmp_path: Path) -> None:
    told(pair).save(tmp_path / "m.safetensors")
    again = dm.MemorySession.restore(tmp_path / "m.safetensors", *pair)
    assert "viola" in again.ask("what is the instrument of chris ?", max_tokens=24)
    empty = dm.MemorySession(*pair)
    assert "do not know" in empty.ask("what is the instrument of chris ?", max_tokens=24)


def test_it_is_small() -> None:
    files = [*builtin.base_folder().iterdir(), *builtin.adapter_folder().iterdir()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
