"""Conversations as OpenAI's own client makes, fills and deletes them."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving import ANSWER, FACT, QUESTION, UNKNOWN, Client, builtin_pair

from deltamem_mlx.memory.shelf import id_of
from deltamem_mlx.serve.kept.conversations import KeptConversations
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

DROP = {"extra_body": {"memory": {"context": "drop"}}}  # the answer is from the memory alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memories")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    settings = ServeSettings(port=0, memory_dir=folder)
    with Server(*builtin_pair(), "builtin", settings) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def ask(client: openai.OpenAI, text: str, id: str, **more: object) -> str:
    asked = {"model": "default_model", "max_output_tokens": 24, "temperature": 0}
    return client.responses.create(input=text, conversation=id, **asked | more).output_text


def texts(client: openai.OpenAI, id: str) -> list[str]:
    items = client.conversations.items.list(id, order="asc", limit=2)
    return [item.content[0].text for item in items]


def test_a_conversation_keeps_its_memory_its_notes_and_its_items(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "places"})
    assert client.conversations.retrieve(made.id) == made and made.metadata == {"topic": "places"}
    assert texts(client, made.id) == []
    told = ask(client, FACT, made.id)
    answer = ask(client, QUESTION, made.id, **DROP)
    assert ANSWER in answer
    assert texts(client, made.id) == [FACT, told, QUESTION, answer]
    changed = client.conversations.update(made.id, metadata={"topic": "people"})
    assert changed.metadata == {"topic": "people"} and changed.created_at == made.created_at
    assert texts(client, made.id) == [FACT, told, QUESTION, answer]


def test_items_that_it_begins_with_are_told_with_the_first_response(
    client: openai.OpenAI, url: str
) -> None:
    fact = {"type": "message", "role": "user", "content": FACT}
    made = client.conversations.create(items=[fact])
    added = client.conversations.items.create(
        made.id, items=[{"type": "message", "role": "assistant", "content": "ok ."}]
    )
    assert added.data[0].role == "assistant"
    assert texts(client, made.id) == [FACT, "ok ."]
    answer = ask(client, QUESTION, made.id)
    assert ANSWER in answer and texts(client, made.id) == [FACT, "ok .", QUESTION, answer]
    assert Client(url).memory("GET", made.id).json["messages"] == 4
    assert ANSWER in ask(client, QUESTION, made.id, **DROP)
    assert Client(url).memory("GET", made.id).json["messages"] == 6


def test_an_item_is_deleted_before_the_memory_is_told_and_not_after(client: openai.OpenAI) -> None:
    facts = [{"type": "message", "role": "user", "content": t} for t in (FACT, "ben is here .")]
    made = client.conversations.create(items=facts)
    first, second = client.conversations.items.list(made.id, order="asc").data
    assert client.conversations.items.retrieve(first.id, conversation_id=made.id) == first
    client.conversations.items.delete(first.id, conversation_id=made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(first.id, conversation_id=made.id)
    assert UNKNOWN in ask(client, QUESTION, made.id)
    with pytest.raises(openai.ConflictError, match="told"):
        client.conversations.items.delete(second.id, conversation_id=made.id)


def test_without_store_a_conversation_stays_as_it_is(client: openai.OpenAI) -> None:
    made = client.conversations.create(items=[{"type": "message", "role": "user", "content": FACT}])
    assert ANSWER in ask(client, QUESTION, made.id, store=False)
    assert texts(client, made.id) == [FACT]
    ask(client, QUESTION, made.id)
    before = texts(client, made.id)
    ask(client, QUESTION, made.id, store=False)
    assert texts(client, made.id) == before


def test_a_deleted_conversation_is_gone_with_its_memory_and_responses(
    client: openai.OpenAI, url: str, folder: Path
) -> None:
    before = len(list(folder.iterdir()))
    made = client.conversations.create()
    response = client.responses.create(model="default_model", input=FACT, conversation=made.id)
    assert len(list(folder.iterdir())) == before + 1
    assert client.conversations.delete(made.id).deleted
    assert len(list(folder.iterdir())) == before
    assert Client(url).memory("GET", made.id).status == 404
    for gone in (
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.delete(made.id),
        lambda: client.conversations.items.list(made.id),
        lambda: client.conversations.update(made.id, metadata={}),
        lambda: client.responses.retrieve(response.id),
        lambda: ask(client, QUESTION, made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            gone()


def test_a_memory_is_a_conversation_of_its_name(client: openai.OpenAI, url: str) -> None:
    Client(url).chat(FACT, "begun as a chat")
    assert client.conversations.retrieve("begun as a chat").metadata == {}
    assert ANSWER in ask(client, QUESTION, "begun as a chat", **DROP)
    Client(url).memory("DELETE", "begun as a chat")
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve("begun as a chat")


def test_with_all_memories_all_conversations_are_deleted(client: openai.OpenAI, url: str) -> None:
    made = client.conversations.create()
    Client(url).request("DELETE", "/v1/memories")
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)


@pytest.mark.parametrize(
    "body", [{"metadata": {"a": 1}}, {"items": [{"type": "x"}]}, {"items": [{}] * 21}, {"name": 1}]
)
def test_what_cannot_be_is_refused(client: openai.OpenAI, body: dict) -> None:
    with pytest.raises(openai.BadRequestError):
        client.post("/conversations", body=body, cast_to=object)


def test_beyond_its_bytes_the_conversations_used_last_are_kept() -> None:
    item = {"id": "1", "type": "message", "content": "x" * 100}
    kept = KeptConversations(most_bytes=400)
    for id in ("a", "b", "a", "c"):
        kept.change(id, lambda one: one.with_items([item]) if not one.items else one)
    assert kept.find("a") and kept.find("c") and kept.find("b") is None
    kept.forget(id_of("a"))
    kept.forget(id_of("a"))
    kept.change("d", lambda one: one.with_items([item]))
    assert kept.find("c") and kept.find("d")
