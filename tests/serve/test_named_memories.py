"""Requests with a memory: what they are answered from, and what they write."""

import gc
import json
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from serving import (
    ANSWER,
    FACT,
    QUESTION,
    UNKNOWN,
    Client,
    Pair,
    assistant,
    memory_files,
    states_in,
    until,
    user,
)

import deltamem_mlx as dm
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memories")


@pytest.fixture(scope="module")
def serving(pair: Pair, folder: Path) -> Iterator[Server]:
    settings = ServeSettings(port=0, memory_dir=folder)
    with Server(*pair, "builtin", settings) as serving:
        yield serving


@pytest.fixture
def client(serving: Server) -> Client:
    return Client(serving.url)


def test_a_fact_is_known_in_another_connection_through_the_same_key(client: Client) -> None:
    client.chat(FACT, "alice")
    assert ANSWER in client.chat(QUESTION, "alice", memory={"context": "drop"}).text
    assert UNKNOWN in client.chat(QUESTION, "bob").text
    assert UNKNOWN in client.chat(QUESTION).text


def test_turns_are_those_of_a_session(client: Client, pair: Pair) -> None:
    """Greedy answers, tokens written and the state itself, with and without the context."""
    session = dm.MemorySession(*pair, system_prompt="be brief .")
    told = [FACT, "ben is a doctor .", QUESTION, "what is the job of ben ?"]
    for i, text in enumerate(told):
        drop = i == 2
        if drop:
            session.forget_context()
        system = [{"role": "system", "content": "be brief ."}] if i < 3 else []
        context = {"context": "drop" if drop else "keep"}
        reply = client.chat([*system, user(text)], "as-session", memory=context)
        assert reply.text == session.ask(text, max_tokens=24)
        stats = session.stats()
        assert reply.memory["total_tokens_written"] == stats["tokens_written"]
        assert reply.memory["context_tokens"] == stats["context_tokens"]
    exported = client.memory("GET", "as-session", "/export").body
    states = states_in(exported)
    for layer, state in dm.memory_state(session.cache).items():
        assert abs(mx.array(states[layer]) - state).max().item() < 1e-4


def test_turns_leave_nothing_behind(pair: Pair) -> None:
    """No array and no text more, once the context is as long as it gets."""
    long, turns = FACT + " " * 10_000, 6
    with Server(*pair, "builtin", ServeSettings(port=0, max_context=128, undo_turns=4)) as serving:
        client = Client(serving.url)
        threads = threading.active_count()
        client.chat(QUESTION, "long", max_tokens=4)

        def held() -> tuple[int, int]:
            """Bytes after so many turns more, the last in a context of its own."""
            for i in range(turns):
                context = "drop" if i == turns - 1 else "keep"
                client.chat(long, "long", max_tokens=4, memory={"context": context})
            until(lambda: not serving.busy and threading.active_count() <= threads)
            gc.collect()
            return mx.get_active_memory(), tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            held()
            (arrays, objects), (arrays_then, objects_then) = held(), held()
        finally:
            tracemalloc.stop()
        assert client.memory("GET", "long").json["turns"] == 1 + 3 * turns
    assert max(arrays_then - arrays, objects_then - objects) < turns * len(long) / 2


def test_history_that_is_sent_again_is_not_written_again(client: Client) -> None:
    said = []
    for text in (FACT, "ben is a doctor .", QUESTION):
        said.append(user(text))
        all_of_it = client.chat(said, "resent")
        alone = client.chat(text, "alone")
        assert all_of_it.memory["tokens_written"] == alone.memory["tokens_written"]
        assert all_of_it.memory["messages_known"] == len(said) - 1
        assert all_of_it.text == alone.text
        said.append(assistant(all_of_it.text))
    window = client.chat([*said[-3:], user("what is the job of ben ?")], "resent")
    assert window.memory["messages_known"] == 3 and "doctor" in window.text


def test_read_only_writes_nothing(client: Client) -> None:
    client.chat(FACT, "reader")
    before = client.memory("GET", "reader", "/export").body
    reply = client.chat("anna lives in paris .", "reader", memory={"read_only": True})
    assert reply.memory["tokens_written"] == 0
    after = client.memory("GET", "reader", "/export").body
    assert all((a == states_in(after)[i]).all() for i, a in states_in(before).items())
    assert ANSWER in client.chat(QUESTION, "reader", memory={"context": "drop"}).text


def test_remembered_texts_are_known_and_never_seen(client: Client) -> None:
    reply = client.chat(QUESTION, "told", memory={"remember": [FACT, "ben is a doctor ."]})
    plain = client.chat(QUESTION, "untold")
    assert ANSWER in reply.text and UNKNOWN in plain.text
    assert reply.json["usage"]["prompt_tokens"] == plain.json["usage"]["prompt_tokens"]
    assert reply.memory["tokens_written"] > plain.memory["tokens_written"]


def test_reset_begins_with_an_empty_memory(client: Client) -> None:
    client.chat(FACT, "forgetful")
    reply = client.chat(QUESTION, "forgetful", memory={"reset": True})
    assert UNKNOWN in reply.text
    assert reply.memory["total_tokens_written"] == reply.memory["tokens_written"]


def test_the_sidecars_names_are_understood(client: Client) -> None:
    body = {"messages": [user(QUESTION)], "attention_state": [{"text": FACT}], "max_tokens": 24}
    header = {"X-Delta-Mem-Session-Key": "sidecar"}
    reply = client.request("POST", "/v1/chat/completions", body, header)
    assert ANSWER in reply.text and reply.memory["session"] == "sidecar"
    header |= {"X-Delta-Attention-State": json.dumps(["ben is a doctor ."])}
    body = {"messages": [user("what is the job of ben ?")], "max_tokens": 24}
    assert "doctor" in client.request("POST", "/v1/chat/completions", body, header).text


@pytest.mark.parametrize("key", ["../../x", "/etc/passwd", "ключ 鍵 🗝", "a" * 512, ".", "%2e%2e"])
def test_any_text_is_a_key_and_none_is_a_path(client: Client, folder: Path, key: str) -> None:
    before = _outside(folder)
    client.chat(FACT, key)
    assert ANSWER in client.chat(QUESTION, key, memory={"context": "drop"}).text
    assert client.memory("GET", key).json["session"] == key
    assert _outside(folder) == before
    assert {p.name for p in folder.iterdir()} - {p.name for p in memory_files(folder)} == {".lock"}
    assert all(len(p.stem) == 64 for p in memory_files(folder))
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in folder.iterdir())
    assert client.memory("DELETE", key).status == 200
    assert client.memory("GET", key).code == "memory_not_found"


def _outside(folder: Path) -> set[Path]:
    """Memory files beside the folder, where no key may put one."""
    return {p for p in folder.parent.rglob("*.safetensors") if folder not in p.parents}


def test_a_key_in_a_header_may_be_unicode(client: Client) -> None:
    header = {"X-Delta-Mem-Session": "ключ".encode().decode("latin-1")}
    body = {"messages": [user(FACT)], "max_tokens": 4}
    reply = client.request("POST", "/v1/chat/completions", body, header)
    assert reply.memory["session"] == "ключ"


def test_forks_exports_and_puts_are_independent_copies(client: Client) -> None:
    client.chat(FACT, "parent")
    assert client.memory("POST", "parent", "/fork", {"to": "child"}).status == 201
    assert client.memory("POST", "parent", "/fork", {"to": "child"}).code == "memory_exists"
    client.chat("not any more : anna lives in paris .", "child")
    file = client.memory("GET", "child", "/export").body
    assert client.memory("PUT", "copy", body=file).status == 201
    assert client.memory("PUT", "copy", body=file).status == 200
    drop = {"memory": {"context": "drop", "read_only": True}}
    assert ANSWER in client.chat(QUESTION, "parent", **drop).text
    assert "paris" in client.chat(QUESTION, "child", **drop).text
    assert "paris" in client.chat(QUESTION, "copy", **drop).text
    assert FACT.encode() not in file and b"child" not in file
    listed = {m["session"] for m in client.request("GET", "/v1/memories").json["data"]}
    assert {"parent", "child", "copy"} <= listed
    assert client.memory("PUT", "copy", body=file[:-9]).code == "bad_memory_file"
    assert client.memory("PUT", "copy", body=b"no file").code == "bad_memory_file"


def test_requests_of_one_memory_take_turns(client: Client) -> None:
    replies = []
    client.chat(QUESTION, "busy")

    def ask() -> None:
        replies.append(client.chat(FACT, "busy"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reply.memory["turns"] for reply in replies) == [2, 3, 4, 5]


def test_a_reply_with_tool_calls_is_recognised_as_the_client_sends_it_back() -> None:
    from mlx_lm.generate import TextStateMachine
    from mlx_lm.server import GenerationContext

    from deltamem_mlx.memory.told import Fingerprints
    from deltamem_mlx.serve.batching.reply import visible

    machine = TextStateMachine(
        {"normal": [("<call>", "tool"), ("<think>", "reasoning")],
         "tool": [("</call>", "normal")], "reasoning": [("</think>", "normal")]}
    )  # fmt: skip
    ctx = GenerationContext(True, True, lambda text, _: json.loads(text), machine, "normal", [])
    call = '{"name": "look", "arguments": {"city": "Oslo"}}'
    pieces = ["<think>hm</think>Let me", " see. ", f"<call>{call}</call>", ""]
    message = visible(ctx, pieces, stopped=True, tools=[])
    assert message["content"] == "Let me see. "
    sent = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": '{ "city":"Oslo" }'}}],
    }
    told = Fingerprints.nothing()
    assert told.of([sent]) == told.of([message])
    assert told.of([sent | {"content": "Let me be."}]) != told.of([message])
