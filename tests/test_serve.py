"""The server's memories: what is answered from what, and what stays."""

import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.nn as nn
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from serving import Client

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.serve.job import Feed, Job
from deltamem_mlx.serve.server import Serving
from deltamem_mlx.serve.settings import ServeSettings

Pair = tuple[nn.Module, TokenizerWrapper]
FACT, QUESTION, ANSWER = "anna lives in oslo .", "where does anna live ?", "oslo"
UNKNOWN = "do not know"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return dm.load(str(builtin.base_folder()), str(builtin.adapter_folder()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memories")


@pytest.fixture(scope="module")
def serving(pair: Pair, folder: Path) -> Iterator[Serving]:
    settings = ServeSettings(port=0, memory_dir=folder, wait=5.0, request_timeout=2.0)
    with Serving(*pair, "builtin", settings) as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Client:
    return Client(serving.url)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


# Without a memory.


def test_a_stateless_request_is_answered_as_a_fresh_session_would(
    client: Client, pair: Pair
) -> None:
    history = [user(FACT), assistant("noted."), user("ben is a doctor ."), assistant("noted.")]
    for asked in (QUESTION, "what is the job of ben ?"):
        expected = dm.MemorySession(*pair, messages=history).ask(asked, max_tokens=24)
        assert client.chat([*history, user(asked)]).text == expected


def test_a_continued_prompt_is_reused_and_changes_nothing(client: Client, pair: Pair) -> None:
    first = client.chat("chris plays viola .", max_tokens=1)
    prompt = [user("chris plays viola ."), assistant(first.text), user("anna plays flute .")]
    again = client.chat(prompt, max_tokens=1)
    longer = [*prompt, assistant(again.text), user("what is the instrument of chris ?")]
    asked = client.chat(longer)
    session = dm.MemorySession(*pair, messages=longer[:-1])
    assert asked.text == session.ask(longer[-1]["content"], max_tokens=24)
    same = client.chat(longer)
    assert same.text == asked.text
    assert same.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_text_that_was_generated_before_can_be_a_prompt(client: Client) -> None:
    """All of it is cached then, and a memory cannot be trimmed by a token."""
    prompt = "anna lives in"
    first = client.request("POST", "/v1/completions", {"prompt": prompt, "max_tokens": 4}).json
    longer = prompt + first["choices"][0]["text"]
    for _ in range(2):
        reply = client.request("POST", "/v1/completions", {"prompt": longer, "max_tokens": 4})
        assert reply.status == 200 and reply.json["choices"][0]["finish_reason"]


def test_nothing_is_remembered_without_a_key(client: Client) -> None:
    client.chat(FACT)
    assert UNKNOWN in client.chat(QUESTION).text


def test_a_seed_gives_the_same_answer_again(client: Client) -> None:
    sampled = [client.chat(QUESTION, temperature=1.5, seed=7).text for _ in range(3)]
    assert len(set(sampled)) == 1


def test_stop_words_logprobs_and_usage_are_mlx_lms(client: Client) -> None:
    reply = client.chat(QUESTION, stop="lives", logprobs=True, top_logprobs=2)
    assert "lives" not in (reply.text or "")
    assert reply.json["choices"][0]["finish_reason"] == "stop"
    assert len(reply.json["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert "memory" not in reply.json["usage"]


# Streaming.


def stream(serving: Serving, body: dict) -> Iterator[tuple[float, bytes]]:
    """(time, line) of a streamed answer as the lines arrive."""
    raw = json.dumps({"stream": True} | body).encode()
    with socket.create_connection(serving.http.server_address[:2]) as connection:
        head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        with connection.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"data: "):
                    yield time.monotonic(), line[6:].strip()


def test_a_stream_says_what_a_whole_answer_does_piece_by_piece(
    serving: Serving, client: Client
) -> None:
    body = {"messages": [user(QUESTION)], "max_tokens": 24}
    options = {"stream_options": {"include_usage": True}, "memory": {"session": "streamed"}}
    received = list(stream(serving, body | options))
    assert received[-1][1] == b"[DONE]"
    chunks = [json.loads(data) for _, data in received[:-1]]
    usage, chunks = chunks[-1]["usage"], chunks[:-1]
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == client.chat(QUESTION).text
    assert len(deltas) > 3 and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["memory"]["tokens_written"] > 0
    times = [at for at, _ in received]
    assert len(set(times)) > 3 and times[-1] - times[0] > 0.005


def test_a_client_that_goes_away_leaves_no_half_turn(serving: Serving, client: Client) -> None:
    client.chat(FACT, "leaver")
    before = client.memory("GET", "leaver").json
    body = {"messages": [user(QUESTION)], "max_tokens": 4000, "memory": {"session": "leaver"}}
    body["logit_bias"] = {"2": -100, "1": -100, "0": -100, "3": -100}
    answer = stream(serving, body | {"stop": []})
    next(answer)
    answer.close()
    with serving.memories.hold("leaver"):
        pass  # until the server has noticed
    after = client.memory("GET", "leaver").json
    assert after == before
    assert ANSWER in client.chat(QUESTION, "leaver", memory={"context": "drop"}).text


def test_a_half_turn_is_kept_if_it_was_asked_for(serving: Serving, client: Client) -> None:
    client.chat(FACT, "stayer")
    memory = {"session": "stayer", "keep_partial": True}
    body = {"messages": [user(QUESTION)], "max_tokens": 3000, "memory": memory}
    answer = stream(serving, body | {"logit_bias": {str(i): -100 for i in range(4)}})
    next(answer)
    answer.close()
    with serving.memories.hold("stayer") as memory:
        assert memory.history.turns == 2


# With a memory.


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
    states = _states(exported)
    for layer, state in dm.memory_state(session.cache).items():
        assert abs(states[layer] - state).max().item() < 1e-4


def _states(file: bytes) -> dict:
    import mlx.core as mx
    from safetensors.numpy import load

    return {int(k.removeprefix("state.")): mx.array(v) for k, v in load(file).items()}


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


def test_an_edited_history_is_refused_and_nothing_new_too(client: Client) -> None:
    first = client.chat(FACT, "edited").text
    edited = [user("anna lives in paris ."), assistant(first), user(QUESTION)]
    assert client.chat(edited, "edited").code == "history_conflict"
    assert client.chat([user(FACT), assistant(first)], "edited").code == "nothing_new"
    fresh = client.chat(edited, "edited", memory={"reset": True})
    assert "paris" in fresh.text and fresh.memory["turns"] == 1


def test_another_system_prompt_is_written_and_the_context_dropped(client: Client) -> None:
    system = {"role": "system", "content": "be brief ."}
    client.chat([system, user(FACT)], "prompted")
    same = client.chat([system, user(QUESTION)], "prompted").memory
    other = client.chat([system | {"content": "be kind ."}, user(QUESTION)], "prompted").memory
    assert other["context_tokens"] < same["context_tokens"]
    assert other["tokens_written"] > same["tokens_written"]


def test_read_only_writes_nothing(client: Client) -> None:
    client.chat(FACT, "reader")
    before = client.memory("GET", "reader", "/export").body
    reply = client.chat("anna lives in paris .", "reader", memory={"read_only": True})
    assert reply.memory["tokens_written"] == 0
    after = client.memory("GET", "reader", "/export").body
    assert all((a == _states(after)[i]).all() for i, a in _states(before).items())
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
    assert all(len(p.stem) == 64 and p.suffix == ".safetensors" for p in folder.iterdir())
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


def test_many_at_once_are_answered_as_alone(client: Client) -> None:
    """A continuous batch of sessions and stateless requests: no cross-talk."""
    places = ["oslo", "paris", "rome", "berlin"]
    answers: dict[str, str] = {}

    def live(place: str) -> None:
        client.chat(f"anna lives in {place} .", f"in-{place}")
        answers[place] = client.chat(QUESTION, f"in-{place}", memory={"context": "drop"}).text

    def pass_by() -> None:
        answers["nobody"] = client.chat(QUESTION).text

    threads = [threading.Thread(target=live, args=[place]) for place in places]
    threads += [threading.Thread(target=pass_by)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in places:
        client.chat(f"anna lives in {place} .", f"alone-{place}")
        alone = client.chat(QUESTION, f"alone-{place}", memory={"context": "drop"}).text
        assert answers[place] == alone
    assert UNKNOWN in answers["nobody"]


def test_requests_of_one_memory_take_turns(client: Client) -> None:
    replies = []

    def ask() -> None:
        replies.append(client.chat(FACT, "busy"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reply.memory["turns"] for reply in replies) == [1, 2, 3, 4]


def test_nothing_of_a_request_stays_in_ram_until_garbage_is_collected(client: Client) -> None:
    def left() -> int:
        return sum(isinstance(found, Job | Feed) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        client.chat(FACT, "tidy", memory={"remember": FACT})
        client.chat(QUESTION)
        client.chat(QUESTION, "tidy", memory={"remember": "anna " * 40_000})
        until = time.monotonic() + 10
        while left() and time.monotonic() < until:
            time.sleep(0.01)
        assert left() == 0
    finally:
        gc.enable()


# Across servers.


def test_a_new_server_goes_on_from_the_files(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    said = [user(FACT)]
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        said.append(assistant(client.chat(said, "kept").text))
        client.chat(FACT, "other")
    (tmp_path / f".left-1-2{'.safetensors'}").write_bytes(b"cut off")
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        assert len(client.request("GET", "/v1/memories").json["data"]) == 2
        reply = client.chat([*said, user(QUESTION)], "kept")
        assert ANSWER in reply.text
        assert reply.memory["messages_known"] == 2 and reply.memory["turns"] == 2
        assert client.request("DELETE", "/v1/memories").json["deleted"] == 2
        assert UNKNOWN in client.chat(QUESTION, "kept", memory={"read_only": True}).text
    assert len(list(tmp_path.iterdir())) == 1


def test_memories_leave_ram_and_come_back(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path, memory_bytes=20_000)
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        for i in range(4):
            client.chat(FACT, f"m{i}")
        totals = serving.memories.totals()
        assert totals["bytes"] < 80_000 and totals["memories"] < 4
        for i in range(4):
            assert ANSWER in client.chat(QUESTION, f"m{i}").text


def test_a_damaged_file_is_refused_until_it_is_reset(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Serving(*pair, "builtin", settings) as serving:
        Client(serving.url).chat(FACT, "hurt")
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        refused = client.chat(QUESTION, "hurt")
        assert refused.status == 409 and refused.code == "memory_unusable"
        assert str(tmp_path) not in refused.body.decode()
        assert client.chat(QUESTION, "hurt", memory={"reset": True}).status == 200


def test_a_memory_that_cannot_be_saved_is_not_kept(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltamem_mlx.serve import folder

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        client.chat(FACT, "full")
        with monkeypatch.context() as patch:
            patch.setattr(folder, "write_memory", full)
            assert client.chat(QUESTION, "full").code == "not_saved"
        assert client.memory("GET", "full").json["turns"] == 1
        assert client.chat(QUESTION, "full").memory["turns"] == 2
