"""Chat clients that send all of a conversation each time: answers asked for again, edits, branches.

What they come to is compared with a memory that was only ever told the branch that is left.
"""

import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import openai
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
    server,
    user,
)
from taking_back import TakesBack

import deltamem_mlx as dm
from deltamem_mlx.memory.file import MemoryFile, read_memory
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

OTHER, JOB, HIS_JOB = "anna lives in paris .", "ben is a doctor .", "what is the job of ben ?"
TITLE = "### Task:\nGenerate a title.\n<chat_history>\nUSER: hi\n</chat_history>"


@pytest.fixture(scope="module")
def one_chat(pair: Pair) -> Iterator[Client]:
    """A server whose keys are chats."""
    with Server(*pair, "builtin", ServeSettings(port=0, one_chat=True)) as serving:
        yield Client(serving.url)


@pytest.fixture
def exported(tmp_path: Path):
    def read(client: Client, key: str) -> MemoryFile:
        reply = client.memory("GET", key, "/export")
        assert reply.status == 200
        path = tmp_path / "exported.safetensors"
        path.write_bytes(reply.body)
        return read_memory(path)

    return read


def timeless(memory: MemoryFile, told: bool = True) -> dict:
    """A memory as its file has it, without times; and without fingerprints, that are salted."""
    past = [
        (t.packed.tobytes(), t.tokens_written, t.added, len(t.lost), t.turns, t.alone)
        for t in memory.history
    ]
    said = memory.told if told else [len(memory.told.messages), memory.told.turns]
    states = {i: state.tobytes() for i, state in memory.states.items()}
    return {"states": states, "written": memory.tokens_written, "past": past, "told": said}


class ChatClient(TakesBack):
    """Sends all of a chat with each message, as chat clients do.

    - window: the newest so many messages only, as NextChat does.
    - clock: a system prompt with the time in it, as many people have.
    - tasks: asks for a title after each answer, as Open WebUI does.
    """

    def __init__(
        self,
        client: Client,
        key: str,
        *,
        window: int | None = None,
        clock: bool = False,
        tasks: bool = False,
    ):
        self.client, self.key, self.said = client, key, []
        self.window, self.clock, self.tasks = window, clock, tasks

    def send(self) -> str:
        now = [{"role": "system", "content": f"it is 10 : {len(self.said)} ."}]
        sent = (now if self.clock else []) + self.said[-(self.window or 1000) :]
        reply = self.client.chat(sent, self.key)
        assert reply.status == 200, reply.body
        self.said.append(assistant(reply.text))
        if self.tasks:
            task = self.client.chat([*sent, self.said[-1], user(TITLE)], self.key, max_tokens=2)
            assert task.status == 200 and "memory" not in task.json["usage"]
        return reply.text

    def ask(self, text: str) -> str:
        self.said.append(user(text))
        return self.send()


def straight(client: Client, key: str, said: list[dict], **kind: object) -> list[str]:
    """The answers to the user's messages of a chat, each once."""
    fresh = ChatClient(client, key, **kind)
    return [fresh.ask(message["content"]) for message in said if message["role"] == "user"]


def test_an_answer_asked_for_again_leaves_the_bytes_of_a_single_one(
    client: Client, exported
) -> None:
    chat = ChatClient(client, "again")
    chat.ask(FACT)
    for text in (JOB, QUESTION):
        answer = chat.ask(text)
        once = exported(client, "again")
        for _ in range(3):
            assert chat.regenerate() == answer
        assert timeless(exported(client, "again")) == timeless(once)


def test_the_first_answer_asked_for_again_is_not_written_twice(client: Client, exported) -> None:
    """Also by a client whose connection broke before it had the answer."""
    chat = ChatClient(client, "first")
    answer = chat.ask(FACT)
    once = exported(client, "first")
    assert chat.regenerate() == answer
    assert timeless(exported(client, "first")) == timeless(once)
    assert client.memory("GET", "first").json["turns"] == 1


def test_the_last_message_edited_is_as_if_the_other_had_never_been(
    client: Client, exported
) -> None:
    chat = ChatClient(client, "edited")
    chat.ask(JOB)
    chat.ask(FACT)
    assert "paris" not in chat.ask(QUESTION)
    chat.edit(1, OTHER)
    assert "paris" in chat.ask(QUESTION)
    assert straight(client, "edited anew", chat.said)[-1] == chat.said[-1]["content"]
    edited, anew = exported(client, "edited"), exported(client, "edited anew")
    assert timeless(edited, told=False) == timeless(anew, told=False)


CLIENTS = {
    "whole history": {},
    "whole history, a clock and tasks": {"clock": True, "tasks": True},
    "the newest messages": {"window": 5},
}


@pytest.mark.parametrize("kind", CLIENTS.values(), ids=CLIENTS)
def test_clients_ask_again_edit_and_branch(client: Client, exported, kind: dict) -> None:
    key = f"client {kind}"
    chat = ChatClient(client, key, **kind)
    for text in (JOB, OTHER, QUESTION):
        chat.ask(text)
    chat.regenerate()
    chat.edit(2, HIS_JOB)
    first = list(chat.said)
    chat.regenerate()
    chat.edit(1, FACT)  # another branch, from two turns before
    assert ANSWER in chat.ask(QUESTION)
    second = list(chat.said)
    straight(client, f"{key} straight", second, **kind)
    ours, theirs = exported(client, key), exported(client, f"{key} straight")
    assert timeless(ours, told=False) == timeless(theirs, told=False)
    assert first[:2] == second[:2] and client.memory("GET", key).json["turns"] == 3


def test_the_first_message_edited_empties_a_memory_that_is_one_chat(
    one_chat: Client, exported
) -> None:
    chat = ChatClient(one_chat, "edited")
    chat.ask(FACT)
    chat.ask(QUESTION)
    chat.edit(0, JOB)
    assert ANSWER not in chat.ask(QUESTION)
    straight(one_chat, "anew", chat.said)
    edited, anew = exported(one_chat, "edited"), exported(one_chat, "anew")
    assert timeless(edited, told=False) == timeless(anew, told=False)


def test_a_message_alone_never_takes_back_what_another_chat_told(client: Client) -> None:
    """One key for all chats of a person is what a memory is for."""
    ChatClient(client, "person").ask(FACT)
    new = ChatClient(client, "person")
    assert ANSWER in new.ask(QUESTION)
    ChatClient(client, "person").ask(JOB)
    # Back in the first of these chats: what was told in the last is not to be lost.
    new.said.append(user(HIS_JOB))
    refused = client.chat(new.said, "person")
    assert refused.status == 409 and "another conversation" in refused.json["error"]["message"]
    for text in (HIS_JOB, QUESTION):
        alone = client.chat(text, "person", memory={"context": "drop"})
        assert alone.memory["turns_taken_back"] == 0
        assert (ANSWER if text == QUESTION else "doctor") in alone.text


def test_a_message_sent_alone_once_more_is_a_new_one(client: Client) -> None:
    client.chat(FACT, "twice")
    for turns in (2, 3, 4):
        assert client.chat(JOB, "twice").memory["turns"] == turns


def test_a_chat_with_equal_turns_is_edited_where_the_client_edits(client: Client) -> None:
    chat = ChatClient(client, "equal")
    for _ in range(3):
        chat.ask(JOB)
    chat.edit(1, FACT)
    assert client.memory("GET", "equal").json["turns"] == 2
    assert ANSWER in chat.ask(QUESTION)


def test_branches_are_gone_on_with_from_where_they_part(client: Client, exported) -> None:
    """A client keeps both, and shows one; the memory has what is shown."""
    chat = ChatClient(client, "branches")
    chat.ask(JOB)
    chat.ask(FACT)
    left = list(chat.said)
    chat.edit(1, OTHER)
    assert "paris" in chat.ask(QUESTION)
    chat.said = left
    assert ANSWER in chat.ask(QUESTION)
    other = ChatClient(client, "one branch")
    other.ask(JOB)
    other.said += left[2:]
    del other.said[4:]
    other.ask(QUESTION)
    branch, alone = exported(client, "branches"), exported(client, "one branch")
    assert timeless(branch, told=False) == timeless(alone, told=False)


def test_what_a_client_went_back_over_is_what_a_session_would_hold(
    client: Client, pair: Pair, exported
) -> None:
    chat = ChatClient(client, "session")
    chat.ask(JOB)
    chat.ask(OTHER)
    chat.edit(1, FACT)
    chat.regenerate()
    chat.ask(QUESTION)
    session = dm.MemorySession(*pair)
    for i in (0, 2, 4):
        assert session.ask(chat.said[i]["content"], max_tokens=24) == chat.said[i + 1]["content"]
    states = dm.memory_state(session.cache)
    for i, state in exported(client, "session").states.items():
        assert mx.allclose(mx.array(state), states[i], atol=1e-5)


def test_tasks_beside_a_conversation_may_lag_behind_it(client: Client, exported) -> None:
    chat = ChatClient(client, "tasks")
    chat.ask(FACT)
    early = [*chat.said, user(TITLE)]
    chat.ask(QUESTION)
    before = timeless(exported(client, "tasks"))
    for _ in range(2):
        reply = client.chat(early, "tasks", max_tokens=4)
        assert reply.status == 200 and "memory" not in reply.json["usage"]
    assert timeless(exported(client, "tasks")) == before
    chat.regenerate()
    assert timeless(exported(client, "tasks")) == before


def test_reading_only_takes_back_only_what_was_read(client: Client, exported) -> None:
    chat = ChatClient(client, "read")
    chat.ask(FACT)
    read = {"read_only": True}
    asked = client.chat([*chat.said, user(QUESTION)], "read", memory=read)
    again = client.chat([*chat.said, user(QUESTION)], "read", memory=read)
    assert asked.text == again.text and again.memory["turns_taken_back"] == 1
    before = timeless(exported(client, "read"))
    chat.said += [user(QUESTION), assistant(again.text)]
    chat.ask(JOB)
    refused = client.chat([*chat.said[:4], user(HIS_JOB)], "read", memory=read)
    assert refused.status == 409 and "read_only" in refused.json["error"]["param"]
    assert client.memory("POST", "read", "/undo").status == 200
    assert timeless(exported(client, "read")) == before


def test_beyond_what_is_kept_the_true_reason_is_given(pair: Pair) -> None:
    for turns in (0, 1, 2):
        settings = ServeSettings(port=0, undo_turns=turns)
        with Server(*pair, "builtin", settings) as serving:
            chat = ChatClient(Client(serving.url), "kept")
            for text in (FACT, JOB, QUESTION):
                chat.ask(text)
            assert chat.client.memory("GET", "kept").json["undo_turns"] == turns
            for back in (1, 2):
                reply = chat.client.chat([*chat.said[: 6 - 2 * back], user(OTHER)], "kept")
                if back <= turns:
                    assert reply.status == 200 and reply.memory["turns_taken_back"] == back
                    break
                assert reply.code == "history_conflict" and reply.status == 409
                assert "does not reach as far" in reply.body.decode()


def test_turns_are_listed_and_taken_back(client: Client, exported) -> None:
    chat, kept = ChatClient(client, "undone"), []
    for text in (FACT, JOB, QUESTION):
        kept.append(None if not chat.said else timeless(exported(client, "undone")))
        chat.ask(text)
    turns = client.memory("GET", "undone", "/turns").json["data"]
    assert [turn["back"] for turn in turns] == [1, 2, 3]
    total = client.memory("GET", "undone").json["tokens_written"]
    assert sum(turn["tokens_written"] for turn in turns) == total
    context = client.memory("GET", "undone").json["context_tokens"]
    for bad in ({"turns": 0}, {"turns": -1}, {"turns": 1.5}, {"turns": "1"}, {"turn": 1}, [1]):
        assert client.memory("POST", "undone", "/undo", bad).status == 400
    too_many = client.memory("POST", "undone", "/undo", {"turns": 4})
    assert too_many.status == 409 and too_many.code == "not_kept"
    undone = client.memory("POST", "undone", "/undo").json
    assert undone["turns"] == 2 and undone["undo_turns"] == 2
    assert 0 < undone["context_tokens"] < context
    assert timeless(exported(client, "undone")) == kept[2]
    del chat.said[4:]
    chat.ask(QUESTION)
    assert ANSWER in chat.said[-1]["content"]
    assert client.memory("GET", "undone").json["context_tokens"] == context
    client.memory("POST", "undone", "/undo", {"turns": 2})
    assert timeless(exported(client, "undone")) == kept[1]
    assert client.memory("POST", "undone", "/undo", {"turns": 1}).json["turns"] == 0
    assert client.memory("GET", "undone").status == 404
    assert client.memory("POST", "undone", "/undo").status == 404
    assert UNKNOWN in client.chat(QUESTION, "undone").text


@pytest.mark.parametrize("keys", ["are chats", "are persons"])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_whatever_a_client_does_the_memory_is_that_of_the_branch_that_is_left(
    client: Client, one_chat: Client, exported, seed: int, keys: str
) -> None:
    """But for the first message of a chat, which only a key of its own lets edit."""
    choices, first = random.Random(seed), 0 if keys == "are chats" else 1
    server = one_chat if keys == "are chats" else client
    chat = ChatClient(server, f"any {seed}")
    texts = [FACT, OTHER, JOB, QUESTION, HIS_JOB]
    for _ in range(12):
        asked = len(chat.said) // 2
        what = choices.choice(["ask", "ask", "edit", "again"]) if asked > first else "ask"
        if what == "edit":
            chat.edit(choices.randrange(first, asked), choices.choice(texts))
        elif what == "again":
            chat.regenerate()
        else:
            chat.ask(choices.choice(texts))
    answers = straight(server, f"left {seed}", chat.said)
    assert answers == [m["content"] for m in chat.said if m["role"] == "assistant"]
    any_, left = exported(server, f"any {seed}"), exported(server, f"left {seed}")
    assert timeless(any_, told=False) == timeless(left, told=False)


@pytest.mark.slow
def test_killed_between_an_answer_and_its_edit_it_goes_on_from_there(
    tmp_path: Path, pair: Pair
) -> None:
    folder, log = tmp_path / "memories", tmp_path / "log"
    with server("--memory-dir", folder, log=log) as (process, url):
        chat = ChatClient(Client(url), "killed")
        chat.ask(JOB)
        chat.ask(OTHER)
        answered = chat.client.memory("GET", "killed").json
        process.send_signal(signal.SIGKILL)
        process.wait()
    with server("--memory-dir", folder, log=log) as (_, url):
        chat.client = Client(url)
        after = chat.client.memory("GET", "killed").json
        assert after | {"context_tokens": 0, "context_bytes": 0, "session": None} == (
            answered | {"context_tokens": 0, "context_bytes": 0, "session": None}
        )
        chat.edit(1, FACT)
        assert ANSWER in chat.ask(QUESTION)
        assert "doctor" in chat.client.chat(HIS_JOB, "killed", memory={"context": "drop"}).text
    (file,) = memory_files(folder)
    found = read_memory(file)
    first = replace(found.before(len(found.history) - 1), created="")
    session = dm.MemorySession(*pair)
    session.ask(JOB, max_tokens=24)
    for i, state in dm.memory_state(session.cache).items():
        assert np.allclose(first.states[i], np.array(state), atol=1e-5)


def test_openais_client_regenerates_and_edits(client: Client) -> None:
    url = f"http://{client.host}:{client.port}/v1"
    theirs = openai.OpenAI(
        base_url=url,
        api_key="any",
        max_retries=0,
        default_headers={"X-Delta-Mem-Session": "openai"},
    )

    def complete(messages: list[dict], **more: object):
        return theirs.chat.completions.create(
            model="default_model", messages=messages, max_tokens=24, **more
        )

    said = [user(FACT)]
    said.append(complete(said).choices[0].message.model_dump(exclude_none=True))
    said.append(user(QUESTION))
    first = complete(said)
    again = complete(said)  # the same history: the answer is asked for again
    assert first.choices[0].message.content == again.choices[0].message.content
    assert again.usage.memory["turns_taken_back"] == 1 and again.usage.memory["turns"] == 2
    assert again.usage.memory["total_tokens_written"] == first.usage.memory["total_tokens_written"]
    edited = list(
        complete([*said[:-1], user(OTHER)], stream=True, stream_options={"include_usage": True})
    )
    assert edited[-1].usage.memory["turns"] == 2
    assert {chunk.object for chunk in edited} == {"chat.completion.chunk"}
    with theirs.chat.completions.stream(
        model="default_model", messages=said, stream_options={"include_usage": True}
    ) as pieces:  # which leaves out events of another kind
        assert pieces.get_final_completion().usage.memory["turns"] == 2
    with pytest.raises(openai.ConflictError, match="was not told"):
        complete([user("hi"), assistant("ho"), user("hi")])
