"""What a turn wrote most strongly: watched, without changing what is written."""

from pathlib import Path

import numpy as np
import pytest

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.inspection.script import messages_script
from deltamem_mlx.inspection.trace import trace
from deltamem_mlx.inspection.turn import watched

TOLD = "anna lives in oslo ."


@pytest.fixture(scope="module")
def pair() -> tuple:
    return dm.load()


def states(session: dm.MemorySession) -> dict[int, np.ndarray]:
    return {i: np.array(state) for i, state in dm.memory_state(session.cache).items()}


def test_who_looks_on_changes_nothing(pair: tuple) -> None:
    plain, seen = dm.MemorySession(*pair), dm.MemorySession(*pair)
    for text in (TOLD, "where does anna live ?"):
        with watched(seen):
            answer = seen.ask(text)
        assert plain.ask(text) == answer
        for layer, state in states(plain).items():
            assert np.array_equal(state, states(seen)[layer])


def test_it_says_what_a_trace_says_and_names_words_of_the_turn_only(pair: tuple) -> None:
    session = dm.MemorySession(*pair)
    with watched(session) as watch:
        said = session.ask(TOLD)
    assert watch.written == session.stats()["tokens_written"]
    script = messages_script(session.tokenizer, [{"role": "user", "content": TOLD}])
    traced = trace(session.model, script)
    at = next(i for i, piece in enumerate(script.pieces) if piece.strip() == "oslo")
    (word, strength), *others = watch.strongest(3, [TOLD, said])
    assert word == "oslo"
    assert strength == pytest.approx(float(traced.write[at].mean()), abs=1e-5)
    assert {word for word, _ in others} <= {"noted"}
    assert watch.strongest(3, ["nothing of it"]) == []


def test_what_is_fed_again_unwritten_does_not_count(pair: tuple) -> None:
    session = dm.MemorySession(*pair, max_context=60)
    session.ask(TOLD, max_tokens=8)
    for text in ("ben is a doctor .", "mia likes tea .", "leo lives in rome ."):
        with watched(session) as watch:
            before = session.stats()["tokens_written"]
            said = session.ask(text, max_tokens=8)
        assert watch.written == session.stats()["tokens_written"] - before
        found = dict(watch.strongest(3, [text, said, TOLD]))
        assert "oslo" not in found
        assert set(found) & set(text.split())


def test_guesses_that_were_taken_back_are_no_words(pair: tuple) -> None:
    draft, _ = dm.load(builtin.base_folder())
    embedding = draft.model.embed_tokens
    embedding.weight = -embedding.weight  # it guesses what is least likely
    session = dm.MemorySession(*pair, draft_model=draft)
    plain = dm.MemorySession(*pair)
    for text in (TOLD, "where does anna live ?"):
        with watched(session) as watch, watched(plain) as expected:
            said = session.ask(text)
            assert plain.ask(text) == said
        found, right = (dict(w.strongest(9, [text, said])) for w in (watch, expected))
        assert {word: pytest.approx(right[word], abs=1e-3) for word in found} == found


def test_nothing_is_said_of_turns_that_wrote_nothing_or_wrote_means(
    pair: tuple, qwen3_tiny: Path
) -> None:
    session = dm.MemorySession(*pair)
    with session.read_only(), watched(session) as watch:
        session.ask(TOLD)
    assert (watch.written, watch.strongest(3, [TOLD])) == (0, [])
    model, tokenizer = dm.load(qwen3_tiny)
    dm.attach(model, dm.DeltaMemConfig(memory_write_granularity="message_mean"), seed=1)
    session = dm.MemorySession(model, tokenizer)
    with watched(session) as watch:
        session.ask("I am Al.", max_tokens=3)
    assert watch.written > 0
    assert watch.strongest(3, ["I am Al."]) == []
