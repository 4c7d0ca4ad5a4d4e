"""Stop words: where the text has one the answer ends, in what is sent and in what is remembered."""

import json
from collections.abc import Iterator

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import FACT, QUESTION, Client, Reply, assistant, builtin_pair, states_in, stream, user

from deltamem_mlx.serve.batching.saying import StopWords
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

NEXT = "what is the job of ben ?"


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as serving:
        yield serving


@pytest.fixture
def client(serving: Server) -> Client:
    return Client(serving.url)


@given(
    words=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=6),
)
def test_a_word_is_found_wherever_pieces_end(words: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    stops, said = StopWords(words), ""
    for piece in pieces:
        if not stops.found:
            said += stops.feed(piece)
    said += "" if stops.found else stops.rest()
    ends = [(text.find(word) + len(word), text.find(word)) for word in words if word in text]
    assert stops.found == bool(ends)
    assert said == (text[: min(ends)[1]] if ends else text)


def whole(client: Client) -> str:
    return client.chat([user(FACT), assistant("noted."), user(QUESTION)]).text


def asked(client: Client, stop: object, session: str | None = None) -> Reply:
    said = [user(FACT), assistant("noted."), user(QUESTION)]
    reset = {"reset": True} if session else {}
    return client.chat(said, session, stop=stop, **({"memory": reset} if session else {}))


@pytest.mark.parametrize("session", [None, "stopped"])
def test_an_answer_ends_where_its_text_has_the_word(client: Client, session: str | None) -> None:
    text = whole(client)
    assert len(text) > 12
    words = [text[i : i + n] for n in (1, 3, 5) for i in range(0, len(text) - n, 2)]
    for word in [*words, text[-1:], text]:
        reply = asked(client, word, session)
        assert reply.text == text[: text.index(word)]
        assert reply.json["choices"][0]["finish_reason"] == "stop"


def test_the_word_that_is_complete_first_ends_the_answer(client: Client) -> None:
    text = whole(client)
    assert asked(client, [text[8:10], text[3:12], "nowhere"]).text == text[:8]
    assert asked(client, ["nowhere", text[:2] + "?"]).text == text


def test_a_word_is_not_held_back_for_good(client: Client) -> None:
    """The answer ends with what could have been the beginning of a stop word."""
    text = whole(client)
    assert asked(client, text[-3:] + "!").text == text
    cut_off = client.chat(QUESTION, max_tokens=2).text
    assert client.chat(QUESTION, max_tokens=2, stop=cut_off[-2:] + "!").text == cut_off


@pytest.mark.parametrize("memory", [{}, {"memory": {"session": "streamed", "reset": True}}])
def test_a_stream_ends_where_a_whole_answer_does(
    serving: Server, client: Client, memory: dict
) -> None:
    text = whole(client)
    said = [user(FACT), assistant("noted."), user(QUESTION)]
    for word in (text[4:7], text[6:11], text[-4:]):
        body = {"messages": said, "max_tokens": 24, "stop": [word]} | memory
        *chunks, done = [line for _, line in stream(serving, body)]
        assert done == b"[DONE]"
        choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
        parts = [choice["delta"].get("content", "") for choice in choices]
        assert "".join(parts) == text[: text.index(word)] and choices[-1]["finish_reason"] == "stop"


def test_logprobs_are_those_of_the_tokens_that_were_said(client: Client) -> None:
    text = whole(client)
    said = [user(FACT), assistant("noted."), user(QUESTION)]
    plain = client.chat(said, logprobs=True).json["choices"][0]["logprobs"]["content"]
    reply = client.chat(said, logprobs=True, stop=text[5:9]).json
    stopped = reply["choices"][0]["logprobs"]["content"]
    assert [t["id"] for t in stopped] == [t["id"] for t in plain][: len(stopped)]
    assert len(stopped) == reply["usage"]["completion_tokens"] < len(plain)


def test_a_token_that_has_the_word_in_it_counts_once(serving: Server, client: Client) -> None:
    """Where text is before the word in the first token, too, which goes out ahead of the rest."""
    first = client.chat(QUESTION, max_tokens=1).text
    asked = {"stop": first[1], "max_tokens": 24, "logprobs": True}
    whole = client.chat(QUESTION, **asked)
    assert whole.text == first[0] and whole.json["usage"]["completion_tokens"] == 1
    assert len(whole.json["choices"][0]["logprobs"]["content"]) == 1
    body = {"messages": [user(QUESTION)], "stream_options": {"include_usage": True}} | asked
    *chunks, used, _ = [line for _, line in stream(serving, body)]
    said = [json.loads(chunk)["choices"][0]["logprobs"]["content"] for chunk in chunks]
    assert len([token for tokens in said for token in tokens]) == 1
    usage = json.loads(used)["usage"]
    assert usage["completion_tokens"] == 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + 1
    message = {"messages": [user(QUESTION)], "max_tokens": 24, "stop_sequences": [first[1]]}
    reply = client.request("POST", "/v1/messages", message)
    assert reply.json["usage"]["output_tokens"] == 1


@pytest.mark.parametrize("word", [slice(4, 7), slice(5, 12), slice(0, 3), slice(-2, None)])
def test_what_is_remembered_is_what_was_said(client: Client, word: slice) -> None:
    """The stopped turn and the next write what is written of the same history told at once."""
    text = client.chat(QUESTION, "once", memory={"reset": True}).text
    first = client.chat(QUESTION, "stopped", stop=text[word], memory={"reset": True})
    said = [user(QUESTION), assistant(first.text or ""), user(NEXT)]
    second = client.chat(said, "stopped", max_tokens=4)
    told = client.chat(said, "told", max_tokens=4, memory={"reset": True})
    assert second.memory["messages_known"] == 2
    assert second.text == told.text
    for count in ("total_tokens_written", "context_tokens"):
        assert second.memory[count] == told.memory[count]
    states = [states_in(client.memory("GET", key, "/export").body) for key in ("stopped", "told")]
    for name, state in states[0].items():
        assert mx.abs(mx.array(state) - mx.array(states[1][name])).max().item() < 1e-4


def test_a_read_only_turn_that_a_word_ends_writes_nothing(client: Client) -> None:
    text = client.chat(QUESTION, "reader").text
    before = client.memory("GET", "reader").json["tokens_written"]
    memory = {"read_only": True}
    reply = client.chat(QUESTION, "reader", stop=text[4:7], memory=memory)
    assert reply.memory["total_tokens_written"] == before
