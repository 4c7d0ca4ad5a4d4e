"""The server's answers: without a memory, in a stream, many at once."""

import gc
import json
import threading
from collections.abc import Iterator
from itertools import count

import pytest
from mlx_lm.generate import BatchGenerator
from serving import (
    ANSWER,
    CHAT,
    FACT,
    HELLO,
    QUESTION,
    UNKNOWN,
    Client,
    Pair,
    assistant,
    stream,
    until,
    user,
)

import deltamem_mlx as dm
from deltamem_mlx.serve.http.wire import Wire
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings
from deltamem_mlx.serve.turns.job import Feed, Job


@pytest.fixture(scope="module")
def serving(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        yield serving


@pytest.fixture
def client(serving: Server) -> Client:
    return Client(serving.url)


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


def test_stop_words_logprobs_and_usage_are_mlx_lms(client: Client) -> None:
    reply = client.chat(QUESTION, stop="lives", logprobs=True, top_logprobs=2)
    assert "lives" not in (reply.text or "")
    assert reply.json["choices"][0]["finish_reason"] == "stop"
    assert len(reply.json["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert "memory" not in reply.json["usage"]


def test_a_stream_says_what_a_whole_answer_does_piece_by_piece(
    serving: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps, came, in_time = BatchGenerator.next, count(1), threading.Event(), []

    def next_step(self: BatchGenerator) -> tuple[list, list]:
        """The fourth token is not given out before the client has something of the answer."""
        prompts, tokens = step(self)
        if tokens and next(steps) == 4:
            in_time.append(came.wait(120))
        return prompts, tokens

    monkeypatch.setattr(BatchGenerator, "next", next_step)
    body = {"messages": [user(QUESTION)], "max_tokens": 24}
    options = {"stream_options": {"include_usage": True}, "memory": {"session": "streamed"}}
    answer = stream(serving, body | options)
    received = [next(answer)]
    came.set()
    received += answer
    assert in_time == [True]
    assert received[-1][1] == b"[DONE]"
    chunks = [json.loads(data) for _, data in received[:-1]]
    usage, chunks = chunks[-1]["usage"], chunks[:-1]
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == client.chat(QUESTION).text
    assert len(deltas) > 3 and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["memory"]["tokens_written"] > 0


def test_a_client_that_goes_away_leaves_no_half_turn(serving: Server, client: Client) -> None:
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


@pytest.mark.parametrize("route", [CHAT, "/v1/responses", "/v1/messages"])
def test_who_goes_away_before_the_answer_begins_is_counted_as_gone(
    client: Client, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    body = {"input": QUESTION} if route == "/v1/responses" else HELLO
    with monkeypatch.context() as patch:
        patch.setattr(Wire, "alive", lambda _: False)
        with pytest.raises(ConnectionError):
            client.request("POST", route, body)
    lines = client.request("GET", "/metrics").body.decode().splitlines()
    counted = [line for line in lines if "requests_total{" in line and f'"{route}"' in line]
    assert any('"499"' in line for line in counted)
    assert not any('"500"' in line for line in counted)


def test_a_half_turn_is_kept_if_it_was_asked_for(serving: Server, client: Client) -> None:
    client.chat(FACT, "stayer")
    memory = {"session": "stayer", "keep_partial": True}
    body = {"messages": [user(QUESTION)], "max_tokens": 3000, "memory": memory}
    answer = stream(serving, body | {"logit_bias": {str(i): -100 for i in range(4)}})
    next(answer)
    answer.close()
    with serving.memories.hold("stayer") as memory:
        assert memory.told.turns == 2


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


def test_nothing_of_a_request_stays_in_ram_until_garbage_is_collected(client: Client) -> None:
    def left() -> int:
        return sum(isinstance(found, Job | Feed) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        client.chat(FACT, "tidy", memory={"remember": FACT})
        client.chat(QUESTION)
        client.chat(QUESTION, "tidy", memory={"remember": "anna " * 40_000})
        until(lambda: left() == 0)
    finally:
        gc.enable()
