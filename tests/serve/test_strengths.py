"""How strongly the pieces of a turn were written, for a client that asks."""

import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from serving import FACT, QUESTION, Client, Pair, Reply, states_in, stream, user
from tiny import tiny_model_folder

import deltamem_mlx as dm
from deltamem_mlx.memory.actions import observe
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

ASKED = {"strengths": True}


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url)


def pieces_in(reply: Reply) -> list[list[tuple[str, float | None]]]:
    """Of each message, as pairs; with the roles checked."""
    strengths = reply.memory["strengths"]
    assert [s["role"] for s in strengths][-1] == "assistant"
    return [[tuple(piece) for piece in s["pieces"]] for s in strengths]


def text_of(pieces: list[tuple[str, float | None]]) -> str:
    return "".join(piece for piece, _ in pieces)


def gates_of(session: dm.MemorySession, text: str) -> tuple[str, np.ndarray]:
    """The answer, and the mean write gate of each token of the turn, by the observer's account."""
    seen: dict[int, list[mx.array]] = {}
    with observe(session.cache, lambda i, g: seen.setdefault(i, []).append(g["write"][0])):
        answer = session.ask(text, max_tokens=24)
    layers = [np.array(mx.concatenate(parts)).mean(axis=(-1, -2)) for parts in seen.values()]
    return answer, np.mean(layers, axis=0)


def test_they_are_the_write_gates_of_the_tokens(client: Client, pair: Pair) -> None:
    session = dm.MemorySession(*pair)
    for text in (FACT, "ben is a doctor .", QUESTION):
        reply = client.chat(text, "gates", memory=ASKED)
        answer, gates = gates_of(session, text)
        said, answered = pieces_in(reply)
        assert text_of(said) == text and text_of(answered) == reply.text == answer
        # <|im_start|> user … <|im_end|> <|im_start|> assistant … <|im_end|>, a token a word.
        expected = [*gates[2 : 2 + len(said)], *gates[-1 - len(answered) : -1]]
        found = [strength for _, strength in [*said, *answered]]
        np.testing.assert_allclose(found, expected, atol=6e-5)


def test_the_fact_in_a_sentence_is_written_most_strongly(client: Client) -> None:
    said, _ = pieces_in(client.chat(FACT, "fact", memory=ASKED))
    assert max(said, key=lambda piece: piece[1])[0].strip() == "oslo"


def test_they_change_nothing_and_are_there_for_who_asks_alone(client: Client) -> None:
    for key, memory in (("with", ASKED), ("without", {})):
        replies = [client.chat(text, key, memory=memory) for text in (FACT, QUESTION)]
        assert all(("strengths" in reply.memory) == (key == "with") for reply in replies)
    with_, without = (
        states_in(client.memory("GET", key, "/export").body) for key in ("with", "without")
    )
    for layer, state in with_.items():
        np.testing.assert_array_equal(state, without[layer])


def test_each_conversation_of_a_batch_has_its_own(client: Client) -> None:
    texts = [FACT, "Ben is a doctor . maria lives in rome .", QUESTION, "thanks ."]
    alone = [pieces_in(client.chat(t, f"alone{i}", memory=ASKED)) for i, t in enumerate(texts)]
    found: dict[int, Reply] = {}

    def ask(i: int) -> None:
        found[i] = client.chat(texts[i], f"together{i}", memory=ASKED)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        for pieces, before in zip(pieces_in(found[i]), expected, strict=True):
            assert text_of(pieces) == text_of(before)
            np.testing.assert_allclose([s for _, s in pieces], [s for _, s in before], atol=2e-4)


def test_with_a_stop_word_they_are_those_of_what_was_said(client: Client) -> None:
    client.chat(FACT, "stops")
    reply = client.chat(QUESTION, "stops", memory=ASKED, stop=[" oslo"])
    said, answered = pieces_in(reply)
    assert text_of(said) == QUESTION and text_of(answered) == reply.text == "anna lives in"
    assert all(strength is not None for _, strength in [*said, *answered])


def test_white_space_and_several_messages_come_back_as_they_were(client: Client) -> None:
    messages = [user("  anna\n\nlives in  oslo ."), user("user ?"), user("\tassistant")]
    *found, _ = pieces_in(client.chat(messages, "spaces", memory=ASKED))
    assert [text_of(pieces) for pieces in found] == [m["content"] for m in messages]


def test_a_stream_says_them_at_its_end(server: Server) -> None:
    body = {
        "messages": [user(FACT)],
        "memory": {"session": "streamed"} | ASKED,
        "stream_options": {"include_usage": True},
    }
    *_, usage, done = (line for _, line in stream(server, body))
    assert done == b"[DONE]" and b'"strengths": [{"role": "user", "pieces": [["anna "' in usage


def test_what_is_not_written_has_none(client: Client) -> None:
    client.chat(FACT, "held")
    assert (
        client.chat(QUESTION, "held", memory=ASKED | {"read_only": True}).memory["strengths"]
        is None
    )
    reply = client.chat("hi", "held", memory={"strengths": "yes"})
    assert reply.status == 400 and reply.json["error"]["param"] == "memory.strengths"


def test_where_spans_are_written_no_token_has_a_strength(tmp_path: Path) -> None:
    model, tokenizer = dm.load(str(tiny_model_folder(tmp_path / "model")))
    dm.attach(model, dm.DeltaMemConfig(memory_write_granularity="message_mean"), seed=0)
    with Server(model, tokenizer, "tiny", ServeSettings(port=0)) as server:
        reply = Client(server.url).chat("hello", "spans", memory=ASKED, max_tokens=3)
        assert reply.status == 200 and reply.memory["strengths"] is None
