"""Other adapters than the built-in pair's: the server's turns are those of a session."""

from pathlib import Path

import mlx.core as mx
import pytest
from serving import Client, Reply
from tiny import tiny_model_folder

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

TOLD = ["Maria lives in Porto. She sings.", "Where does she live?", "And what does she do?"]


@pytest.mark.parametrize("granularity", ["token", "message_mean", "sentence_mean"])
def test_turns_are_those_of_a_session(tmp_path: Path, granularity: str) -> None:
    model, tokenizer = dm.load(str(tiny_model_folder(tmp_path / "model")))
    config = dm.DeltaMemConfig(
        delta_heads=("q", "o"), output_init="random", memory_write_granularity=granularity
    )
    dm.attach(model, config, seed=0)
    session = dm.MemorySession(model, tokenizer, system_prompt="Be brief.")
    system = [{"role": "system", "content": "Be brief."}]
    with Server(model, tokenizer, "tiny", ServeSettings(port=0)) as serving:
        client = Client(serving.url)
        for i, text in enumerate(TOLD):
            if i == 2:
                session.forget_context()
            said = [*system, {"role": "user", "content": text}]
            context = {"context": "drop" if i == 2 else "keep"}
            reply = client.chat(said, "a", memory=context, max_tokens=5)
            session.ask(text, max_tokens=5)
            _assert_same_memory(serving, reply, session)
        history = [{"role": "user", "content": TOLD[0]}, {"role": "assistant", "content": "Yes."}]
        fresh = dm.MemorySession(model, tokenizer, messages=history)
        for _ in range(2):
            asked = client.chat([*history, {"role": "user", "content": TOLD[1]}], max_tokens=5)
        assert asked.text == fresh.ask(TOLD[1], max_tokens=5)


@pytest.mark.parametrize("granularity", ["token", "message_mean", "sentence_mean"])
def test_a_reply_that_the_model_ends_itself_is_fed_as_in_a_session(granularity: str) -> None:
    """The end token that it generates belongs to the end of the turn, which is written as such."""
    model, tokenizer = dm.load(str(builtin.base_folder()))
    config = dm.DeltaMemConfig(
        delta_heads=("q", "o"), output_init="random", memory_write_granularity=granularity
    )
    dm.attach(model, config, seed=0)
    session = dm.MemorySession(model, tokenizer)
    with Server(model, tokenizer, "builtin", ServeSettings(port=0)) as serving:
        client = Client(serving.url)
        for text in ("anna lives in oslo .", "where does anna live ?"):
            reply = client.chat(text, "a", max_tokens=24)
            assert reply.json["choices"][0]["finish_reason"] == "stop"
            assert reply.text == session.ask(text, max_tokens=24)
            _assert_same_memory(serving, reply, session)


def _assert_same_memory(serving: Server, reply: Reply, session: dm.MemorySession) -> None:
    """The server's memory "a" is that of a session, and the reply counts it as one does."""
    stats = session.stats()
    assert reply.memory["total_tokens_written"] == stats["tokens_written"]
    assert reply.memory["context_tokens"] == stats["context_tokens"]
    ours = serving.memories.look("a").saved.states
    for layer, state in dm.memory_state(session.cache).items():
        assert mx.abs(mx.array(ours[layer]) - state).max().item() < 1e-5
