"""Responses as OpenAI's own client asks for them and reads them, from a server process."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving import ANSWER, FACT, QUESTION, UNKNOWN, Client, Pair, server

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

OTHER_FACT = "anna lives in rome ."


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with server("--memory-dir", folder / "memories", log=folder / "log") as (_, url):
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def ask(client: openai.OpenAI, text: object, **more: object) -> openai.types.responses.Response:
    return client.responses.create(
        model="default_model", input=text, **{"max_output_tokens": 24, "temperature": 0} | more
    )


DROP = {"extra_body": {"memory": {"context": "drop"}}}  # the answer is from the memory alone


def test_a_response_goes_on_from_another(client: openai.OpenAI) -> None:
    told = ask(client, FACT)
    assert told.status == "completed" and told.output[0].type == "message"
    assert told.usage.output_tokens > 0 and told.usage.total_tokens > told.usage.input_tokens
    asked = ask(client, QUESTION, previous_response_id=told.id)
    assert ANSWER in asked.output_text and asked.previous_response_id == told.id
    assert asked.usage.memory["turns"] == 2
    assert ANSWER in ask(client, QUESTION, previous_response_id=told.id, **DROP).output_text
    assert UNKNOWN in ask(client, QUESTION).output_text


def test_branching_from_one_id_gives_memories_that_know_nothing_of_each_other(
    client: openai.OpenAI,
) -> None:
    begun = ask(client, "ben is a doctor .")
    one = ask(client, FACT, previous_response_id=begun.id)
    other = ask(client, OTHER_FACT, previous_response_id=begun.id)
    for place, knows in ((one, ANSWER), (other, "rome"), (begun, UNKNOWN), (one, ANSWER)):
        for how in ({}, DROP):
            said = ask(client, QUESTION, previous_response_id=place.id, **how)
            assert knows in said.output_text, how


def test_the_same_may_be_said_twice(client: openai.OpenAI) -> None:
    first = ask(client, FACT)
    again = ask(client, FACT, previous_response_id=first.id)
    assert again.usage.memory["turns"] == 2 and again.usage.memory["turns_taken_back"] == 0


def test_the_memory_of_a_response_has_no_turns_to_take_back(
    client: openai.OpenAI, url: str
) -> None:
    """They would be in every file of a chain: earlier ids are the way back."""
    told = ask(client, FACT)
    again = ask(client, QUESTION, previous_response_id=told.id)
    found = Client(url).memory("GET", again.id).json
    assert found["turns"] == 2 and found["undo_turns"] == 0
    ask(client, FACT, conversation="kept")
    assert Client(url).memory("GET", "kept").json["undo_turns"] == 1


def test_stored_responses_are_shown_and_deleted(client: openai.OpenAI, url: str) -> None:
    made = ask(client, FACT, instructions="be brief .", metadata={"topic": "places"})
    found = client.responses.retrieve(made.id)
    assert found == made and found.metadata == {"topic": "places"}
    assert found.instructions == "be brief ."
    (item,) = client.responses.input_items.list(made.id).data
    assert item.role == "user" and item.content[0].text == FACT
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, QUESTION, previous_response_id=made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)
    assert Client(url).memory("GET", made.id).status == 404


def test_input_items_come_in_pages(client: openai.OpenAI) -> None:
    said = [{"role": "user", "content": f"{n} ."} for n in ("ben", "anna", "rex")]
    made = ask(client, said)
    pages = client.responses.input_items.list(made.id, limit=2, order="asc")
    assert len(pages.data) == 2 and pages.has_more
    assert [item.content[0].text for item in pages] == ["ben .", "anna .", "rex ."]
    assert client.responses.input_items.list(made.id).data[0].content[0].text == "rex ."


def test_what_is_not_stored_leaves_nothing(client: openai.OpenAI, url: str) -> None:
    before = Client(url).request("GET", "/v1/memories").json
    loose = ask(client, FACT, store=False)
    assert Client(url).request("GET", "/v1/memories").json == before
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(loose.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, QUESTION, previous_response_id=loose.id)
    told = ask(client, FACT)
    ask(client, OTHER_FACT, previous_response_id=told.id, store=False)
    assert ANSWER in ask(client, QUESTION, previous_response_id=told.id).output_text
    ask(client, FACT, conversation="not stored", store=False)
    assert Client(url).memory("GET", "not stored").status == 404


def test_without_store_a_named_memory_is_read_and_left_as_it_is(
    client: openai.OpenAI, url: str
) -> None:
    ask(client, FACT, conversation="read")
    before = Client(url).memory("GET", "read").json
    said = ask(client, QUESTION, conversation="read", store=False)
    assert ANSWER in said.output_text
    assert Client(url).memory("GET", "read").json == before


def test_a_conversation_is_a_memory_of_that_name(client: openai.OpenAI, url: str) -> None:
    told = ask(client, FACT, conversation="anna")
    assert told.conversation.id == "anna"
    assert ANSWER in ask(client, QUESTION, conversation="anna", **DROP).output_text
    assert ANSWER in Client(url).chat(QUESTION, "anna", memory={"context": "drop"}).text
    Client(url).chat("ben lives in paris .", "anna")
    said = ask(client, "where does ben live ?", conversation="anna", **DROP)
    assert "paris" in said.output_text
    assert UNKNOWN in ask(client, QUESTION, conversation="somebody", **DROP).output_text


@pytest.mark.parametrize("how", [{}, DROP], ids=["context", "memory"])
def test_a_response_in_a_conversation_can_be_branched_from(
    client: openai.OpenAI, how: dict
) -> None:
    key = f"branched {bool(how)}"
    begun = ask(client, "ben is a doctor .", conversation=key)
    told = ask(client, FACT, conversation=key)
    assert UNKNOWN in ask(client, QUESTION, previous_response_id=begun.id, **how).output_text
    branch = ask(client, QUESTION, previous_response_id=told.id, **how)
    assert ANSWER in branch.output_text
    ask(client, OTHER_FACT, previous_response_id=branch.id)
    assert ANSWER in ask(client, QUESTION, conversation=key, **how).output_text


def test_with_a_memory_deleted_its_responses_are(client: openai.OpenAI, url: str) -> None:
    made = ask(client, FACT, extra_headers={"X-Delta-Mem-Session": "gone"})
    assert Client(url).memory("DELETE", "gone").status == 200
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, QUESTION, previous_response_id=made.id)


def test_an_answer_that_is_cut_off_is_incomplete(client: openai.OpenAI) -> None:
    told = ask(client, FACT)
    cut = ask(client, QUESTION, previous_response_id=told.id, max_output_tokens=1)
    assert cut.status == "incomplete" and cut.usage.output_tokens == 1
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.output[-1].status == "incomplete"


@pytest.mark.parametrize("most", [24, 1])
def test_the_events_of_a_stream_add_up_to_the_response(client: openai.OpenAI, most: int) -> None:
    told = ask(client, FACT)
    asked = {"model": "default_model", "input": QUESTION, "previous_response_id": told.id}
    with client.responses.stream(**asked, max_output_tokens=most) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed" if most > 1 else "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == last.output_text == client.responses.retrieve(last.id).output_text
    assert (
        said
        == ask(client, QUESTION, previous_response_id=told.id, max_output_tokens=most).output_text
    )
    if most > 1:
        assert ANSWER in said and len(said) > 3
        assert stream.get_final_response().output_text == said


def test_a_streamed_response_can_be_gone_on_from(client: openai.OpenAI) -> None:
    events = list(ask(client, FACT, stream=True))
    id = events[0].response.id
    assert ANSWER in ask(client, QUESTION, previous_response_id=id).output_text


def test_the_whole_conversation_may_be_sent(client: openai.OpenAI) -> None:
    told = ask(client, FACT, store=False)
    history = [{"role": "user", "content": FACT}, *(item.model_dump() for item in told.output)]
    said = ask(client, [*history, {"role": "user", "content": QUESTION}], store=False)
    assert ANSWER in said.output_text


def test_under_a_chats_name_what_is_re_sent_is_told_once(client: openai.OpenAI) -> None:
    me = {"extra_headers": {"X-Delta-Mem-Session": "re-sent"}}
    told = ask(client, FACT, **me)
    history = [{"role": "user", "content": FACT}, *(item.model_dump() for item in told.output)]
    said = ask(client, [*history, {"role": "user", "content": QUESTION}], **me)
    assert said.usage.memory["messages_known"] == 2 and said.usage.memory["turns"] == 2


def test_calls_and_their_outputs_are_taken(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    called = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": FACT}
    said = [{"role": "user", "content": QUESTION}, called, output]
    assert ask(client, said, tools=tools).tools[0].name == "look"
    assert ask(client, said, tools=tools, tool_choice="none").tool_choice == "none"
    one = ask(client, said, tools=tools, parallel_tool_calls=False, max_output_tokens=32_000)
    assert one.status == "completed" and one.parallel_tool_calls is False


REFUSED = {
    "max_output_tokens": 0,
    "temperature": -1,
    "top_p": 2,
    "background": True,
    "tools": [{"type": "web_search"}],
    "tool_choice": "required",
    "text": {"format": {"type": "json_object"}},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": 1},
    "conversation": "",
    "input": [],
    "truncation": "other",
    "instructions": 3,
    "top_logprobs": 3,
    "unheard_of": 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_its_name(client: openai.OpenAI, name: str) -> None:
    body = {"input": FACT, name: REFUSED[name]}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/responses", body=body, cast_to=object)
    assert refused.value.body["param"].startswith(name)


ITEMS = [
    {"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]},
    {"role": "tool", "content": "x"},
    {"type": "item_reference", "id": "msg_1"},
    {"type": "function_call", "call_id": "c", "name": "look", "arguments": "no JSON"},
    {"type": "function_call_output", "output": "without an id"},
    "text",
]


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_items_that_the_model_cannot_be_given_are_refused(
    client: openai.OpenAI, item: object
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/responses", body={"input": [item]}, cast_to=object)
    assert refused.value.body["param"].startswith("input[0]")


def test_a_stored_response_is_shown_whole(client: openai.OpenAI) -> None:
    told = ask(client, FACT)
    assert client.responses.retrieve(told.id, stream=False).output_text == told.output_text
    with pytest.raises(openai.BadRequestError) as refused:  # else the client would read no event
        client.responses.retrieve(told.id, stream=True)
    assert refused.value.body["param"] == "stream"


def test_two_places_to_go_on_from_are_refused(client: openai.OpenAI) -> None:
    told = ask(client, FACT)
    for more in ({"conversation": "x"}, {"extra_headers": {"X-Delta-Mem-Session": "x"}}):
        with pytest.raises(openai.BadRequestError):
            ask(client, QUESTION, previous_response_id=told.id, **more)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(told.id)


def test_after_a_restart_an_id_is_still_a_place(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "memories"
    settings = ServeSettings(port=0, memory_dir=folder)
    with Server(*pair, "builtin", settings) as serving:
        client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="any", max_retries=0)
        told = ask(client, FACT)
        ask(client, OTHER_FACT, previous_response_id=told.id)
    with Server(*pair, "builtin", settings) as serving:
        client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="any", max_retries=0)
        assert ANSWER in ask(client, QUESTION, previous_response_id=told.id).output_text
        with pytest.raises(openai.NotFoundError):  # its text was in RAM only
            client.responses.retrieve(told.id)
        assert client.responses.delete(told.id) is None
        with pytest.raises(openai.NotFoundError):
            ask(client, QUESTION, previous_response_id=told.id)
