"""`remembering`: what `remember` does, step by step, one turn that can be stopped."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import deltamem_mlx as dm

MESSAGES = [{"role": "user", "content": f"Note {i}: {'word ' * 12}"} for i in range(6)]


@pytest.fixture(scope="module", params=["token", "message_mean"])
def pair(request: pytest.FixtureRequest, qwen3_tiny: Path) -> tuple:
    model, tokenizer = dm.load(str(qwen3_tiny))
    writes = request.param
    config = dm.DeltaMemConfig(
        output_init="random", online_gain=1.0, memory_write_granularity=writes
    )
    dm.attach(model, config, seed=1)
    return model, tokenizer


def states(session: dm.MemorySession) -> dict[int, np.ndarray]:
    return {i: np.array(state) for i, state in dm.memory_state(session.cache).items()}


def alike(a: dm.MemorySession, b: dm.MemorySession) -> bool:
    mine, theirs = states(a), states(b)
    return all(np.allclose(mine[i], theirs[i], atol=1e-5) for i in mine)


def test_it_writes_what_remember_writes_part_by_part(pair: tuple) -> None:
    whole, steps = dm.MemorySession(*pair), dm.MemorySession(*pair)
    # A part has as many messages as a step takes: here one, which is one ingest.
    told = sum(whole.remember(message) for message in MESSAGES)
    seen = list(steps.remembering(MESSAGES, prefill_step_size=32))
    assert seen[-1] == (told, told, len(MESSAGES))
    assert [w.tokens for w in seen] == sorted(w.tokens for w in seen)
    assert len(seen) > 2 * len(MESSAGES)
    assert all(w.tokens <= w.total for w in seen)
    assert alike(whole, steps)
    assert whole.messages == steps.messages


def test_what_was_fed_whole_stays_when_it_is_stopped(pair: tuple) -> None:
    some, stopped = dm.MemorySession(*pair), dm.MemorySession(*pair)
    steps = stopped.remembering(MESSAGES, prefill_step_size=32)
    kept = next(written for written in steps if written.messages == 2)
    assert next(steps).tokens > kept.tokens  # in the midst of the third
    steps.close()
    for message in MESSAGES[:2]:
        some.remember(message)
    assert alike(some, stopped)
    assert stopped.messages == some.messages == MESSAGES[:2]
    assert stopped.stats()["tokens_written"] == some.stats()["tokens_written"]
    assert stopped.ask("Who?", max_tokens=4) == some.ask("Who?", max_tokens=4)


@pytest.mark.parametrize("undo_turns", [0, 1, 64])
def test_all_of_it_is_one_turn_to_undo(undo_turns: int, pair: tuple) -> None:
    session = dm.MemorySession(*pair, undo_turns=undo_turns)
    session.remember("Before.")
    before = states(session)
    for _ in session.remembering(MESSAGES, prefill_step_size=32):
        pass
    if not undo_turns:
        with pytest.raises(ValueError, match="none is kept"):
            session.undo()
        return
    assert session.undo() == MESSAGES
    for layer, state in states(session).items():
        assert np.array_equal(state, before[layer])
    assert len(session.messages) == 1


def test_read_only_writes_nothing_and_no_messages_are_refused_at_once(pair: tuple) -> None:
    session = dm.MemorySession(*pair)
    with session.read_only():
        for _ in session.remembering(MESSAGES):
            pass
    assert session.stats()["tokens_written"] == 0
    assert not any(mx.any(state).item() for state in dm.memory_state(session.cache).values())
    for nothing in ("", [], [{"role": "user"}]):
        with pytest.raises((ValueError, TypeError)):
            session.remembering(nothing)
