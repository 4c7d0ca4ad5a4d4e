"""A server with a draft model: the same answers, the same memories, one after another."""

import threading
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import pytest
from serving import (
    ANSWER,
    ENDLESS,
    FACT,
    QUESTION,
    Client,
    Pair,
    states_in,
    stream,
    user,
)

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

TURNS = [FACT, "ben is a doctor .", QUESTION, "what is the job of ben ?"]
QUICK = [(1, 1), (3, 5), (64, 24)]  # drafted tokens, length of an answer


@pytest.fixture(scope="module")
def draft() -> nn.Module:
    return dm.load(builtin.base_folder())[0]


@pytest.fixture(scope="module")
def drafting(pair: Pair, draft: nn.Module) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0), draft) as serving:
        yield serving


@pytest.fixture(scope="module")
def client(drafting: Server) -> Client:
    return Client(drafting.url)


def test_answers_and_memories_are_those_without_a_draft(pair: Pair, client: Client) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        plain, said = Client(serving.url), []
        for number, text in enumerate(TURNS):
            said.append(user(text))
            more = {"context": "drop"} if number == 2 else {}
            replies = [one.chat(said, "same", memory=more) for one in (plain, client)]
            first, second = (reply.json for reply in replies)
            assert first["choices"] == second["choices"]
            assert first["usage"]["memory"] == second["usage"]["memory"]
            assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
            said.append({"role": "assistant", "content": replies[0].text})
        files = [one.memory("GET", "same", "/export").body for one in (plain, client)]
    ours, theirs = map(states_in, files)
    for layer, state in ours.items():
        assert mx.allclose(mx.array(state), mx.array(theirs[layer]), atol=1e-5)


@pytest.mark.parametrize(
    ("ahead", "most"),
    [
        pytest.param(ahead, most, marks=[] if (ahead, most) in QUICK else [pytest.mark.slow])
        for ahead in (1, 3, 64)
        for most in (1, 2, 5, 24)
    ],
)
def test_any_length_is_that_without_a_draft(
    pair: Pair, draft: nn.Module, ahead: int, most: int
) -> None:
    session = dm.MemorySession(*pair)
    expected = [session.ask(text, max_tokens=most) for text in TURNS]
    settings = ServeSettings(port=0, num_draft_tokens=ahead)
    with Server(*pair, "builtin", settings, draft) as serving:
        client = Client(serving.url)
        replies = [client.chat(text, "long", max_tokens=most) for text in TURNS]
        assert [reply.text for reply in replies] == expected
        file = states_in(client.memory("GET", "long", "/export").body)
    for layer, state in dm.memory_state(session.cache).items():
        assert mx.allclose(mx.array(file[layer]), state, atol=1e-5)
    assert replies[-1].memory["total_tokens_written"] == session.stats()["tokens_written"]


def test_many_at_once_are_answered_one_after_another(client: Client) -> None:
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        if i % 2:
            client.chat(FACT, f"many {i}")
            reply = client.chat(QUESTION, f"many {i}", memory={"context": "drop"})
        else:
            reply = client.chat([user(FACT), user(QUESTION)])
        answers[i] = reply.text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8 and all(ANSWER in answers[i] for i in (1, 3, 5, 7))


def test_an_answer_asked_for_again_and_a_stop_word_are_as_without(client: Client) -> None:
    said = [user(FACT)]
    first = client.chat(said, "again")
    assert client.chat(said, "again").json["choices"] == first.json["choices"]
    assert client.memory("GET", "again").json["turns"] == 1
    whole = client.chat(QUESTION, "again", memory={"read_only": True}).text
    cut = client.chat(QUESTION, "again", stop=whole[5:8]).text
    assert cut == whole.partition(whole[5:8])[0]
    assert ANSWER in client.chat(QUESTION, "again", memory={"context": "drop"}).text


def test_a_client_that_goes_away_leaves_nothing(drafting: Server, client: Client) -> None:
    client.chat(FACT, "gone")
    before = client.memory("GET", "gone", "/export").body
    answer = stream(drafting, ENDLESS | {"memory": {"session": "gone"}})
    next(answer)
    answer.close()
    assert ANSWER in client.chat(QUESTION, "gone", memory={"read_only": True}).text
    after = client.memory("GET", "gone", "/export").body
    assert states_in(before).keys() == states_in(after).keys()
    assert all((states_in(after)[i] == state).all() for i, state in states_in(before).items())


def test_penalties_count_what_was_said_before(pair: Pair, client: Client) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        plain = Client(serving.url)
        asked = {"repetition_penalty": 1.7, "frequency_penalty": 0.5, "max_tokens": 12}
        for text in TURNS:
            assert plain.chat(text, "p", **asked).text == client.chat(text, "p", **asked).text


def test_what_cannot_be_done_with_a_draft_is_one_sentence(call_cli) -> None:
    refused = call_cli("serve", "--draft-model", "builtin", "--decode-concurrency", "4")
    assert refused.returncode == 2 and "one answer at a time" in refused.stderr
    nowhere = call_cli("serve", "--draft-model", "/nowhere", "--port", "0")
    assert nowhere.returncode == 1 and nowhere.stderr.startswith("Error: --draft-model: No folder")
    assert nowhere.stderr.count("\n") == 1
