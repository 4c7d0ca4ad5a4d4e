"""Messages as Anthropic's own client asks for them and reads them, from a server process."""

from collections.abc import Iterator
from email.message import Message as Headers

import anthropic
import pytest
from serving import ANSWER, FACT, QUESTION, UNKNOWN, Client, Pair, server, user

from deltamem_mlx.serve.messages.request import read_message
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with server("--memory-dir", folder / "memories", log=folder / "log") as (_, url):
        yield url


@pytest.fixture
def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)


def named(key: str) -> dict:
    return {"extra_headers": {"X-Delta-Mem-Session": key}}


def ask(client: anthropic.Anthropic, said: object, **more: object) -> anthropic.types.Message:
    messages = [user(said)] if isinstance(said, str) else said
    asked = {"model": "default_model", "max_tokens": 24}
    return client.messages.create(messages=messages, **asked | more)


def text(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content)


DROP = {"extra_body": {"memory": {"context": "drop"}}}  # the answer is from the memory alone


def test_a_message_is_answered(client: anthropic.Anthropic) -> None:
    said = ask(client, [user(FACT), {"role": "assistant", "content": "ok ."}, user(QUESTION)])
    assert ANSWER in text(said) and said.role == "assistant" and said.type == "message"
    assert said.stop_reason == "end_turn" and said.stop_sequence is None
    assert said.usage.input_tokens > 0 and said.usage.output_tokens > 0
    assert UNKNOWN in text(ask(client, QUESTION))


def test_what_is_told_to_a_memory_through_one_api_is_known_through_the_others(
    client: anthropic.Anthropic, url: str
) -> None:
    told = ask(client, FACT, system="be brief .", **named("shared"))
    assert told.usage.memory["turns"] == 1
    assert ANSWER in text(ask(client, QUESTION, **named("shared"), **DROP))
    assert ANSWER in Client(url).chat(QUESTION, "shared", memory={"context": "drop"}).text
    Client(url).chat("ben lives in paris .", "shared")
    assert "paris" in text(ask(client, "where does ben live ?", **named("shared"), **DROP))
    assert UNKNOWN in text(ask(client, QUESTION, **named("somebody"), **DROP))


def test_a_re_sent_history_is_told_once(client: anthropic.Anthropic) -> None:
    told = ask(client, FACT, **named("re-sent"))
    history = [user(FACT), {"role": "assistant", "content": told.content}, user(QUESTION)]
    said = ask(client, history, **named("re-sent"))
    assert ANSWER in text(said)
    assert said.usage.memory["messages_known"] == 2 and said.usage.memory["turns"] == 2


@pytest.mark.parametrize("most", [24, 1])
def test_the_events_of_a_stream_add_up_to_the_message(
    client: anthropic.Anthropic, most: int
) -> None:
    messages = [user(FACT), {"role": "assistant", "content": "ok ."}, user(QUESTION)]
    whole = ask(client, messages, max_tokens=most)
    asked = {"model": "default_model", "max_tokens": most}
    with client.messages.stream(messages=messages, **asked) as stream:
        events, said = list(stream), stream.get_final_message()
    kinds = [event.type for event in events if event.type != "text"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert text(said) == text(whole) and said.stop_reason == whole.stop_reason
    assert said.stop_reason == ("end_turn" if most > 1 else "max_tokens")
    one, other = said.usage, whole.usage  # what is in a cache is counted apart
    assert one.output_tokens == other.output_tokens
    assert (
        one.input_tokens + one.cache_read_input_tokens
        == other.input_tokens + other.cache_read_input_tokens
    )


def test_the_text_that_ends_an_answer_is_named(client: anthropic.Anthropic) -> None:
    messages = [user(FACT), {"role": "assistant", "content": "ok ."}, user(QUESTION)]
    cut = ask(client, messages, stop_sequences=["never", ANSWER])
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == ANSWER
    assert ANSWER not in text(cut)
    whole = ask(client, messages, stop_sequences=["never"])
    assert whole.stop_reason == "end_turn" and whole.stop_sequence is None


def test_calls_and_their_results_are_taken(client: anthropic.Anthropic) -> None:
    tools = [{"name": "look", "description": "looks", "input_schema": {"type": "object"}}]
    messages = [
        user(QUESTION),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"who": "anna"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": FACT},
                {"type": "text", "text": QUESTION},
            ],
        },
    ]
    assert ask(client, messages, tools=tools).content[0].type == "text"
    assert ask(client, messages, tools=[tools[0] | {"type": None}]).content[0].type == "text"
    for choice in ({"type": "none"}, {"type": "auto", "disable_parallel_tool_use": True}):
        assert ask(client, messages, tools=tools, tool_choice=choice).content


@pytest.mark.parametrize("content", ["be brief .", [{"type": "text", "text": "be brief ."}]])
def test_a_system_prompt_may_come_among_the_messages(
    client: anthropic.Anthropic, content: object
) -> None:
    said = [user(FACT), {"role": "assistant", "content": "ok ."}, user(QUESTION)]
    system = {"role": "system", "content": content}
    first = ask(client, [system, *said])
    assert text(first) == text(ask(client, said, system="be brief ."))
    key = f"system {type(content).__name__}"
    assert ask(client, [*said, system], **named(key)).usage.memory["turns"] == 1
    assert "last message of the user" in refusal(client, [*said[:2], system])


def refusal(client: anthropic.Anthropic, messages: list[dict]) -> str:
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(client, messages)
    return refused.value.body["error"]["message"]


@pytest.mark.parametrize("thinking", [None, "disabled"])
def test_effort_is_told_to_the_template(thinking: str | None) -> None:
    body = {"messages": [user("hi")], "max_tokens": 4, "output_config": {"effort": "low"}}
    body |= {"thinking": {"type": thinking}} if thinking else {}
    asked = read_message(body, Headers(), ServeSettings(), 342)
    expected = {"reasoning_effort": "low", "enable_thinking": thinking is None}
    assert asked.template_kwargs == expected


def test_tokens_are_counted_as_they_are_fed(client: anthropic.Anthropic) -> None:
    asked = {"messages": [user(QUESTION)], "system": "be brief .", "model": "default_model"}
    counted = client.messages.count_tokens(**asked).input_tokens
    used = client.messages.create(max_tokens=1, **asked).usage
    assert counted == used.input_tokens + used.cache_read_input_tokens
    longer = client.messages.count_tokens(**asked | {"system": "be very brief ."}).input_tokens
    assert longer > counted


def test_more_tokens_may_be_asked_for_than_are_ever_given(client: anthropic.Anthropic) -> None:
    assert ask(client, QUESTION, max_tokens=20_000).stop_reason == "end_turn"


REFUSED = {
    "max_tokens": 0,
    "temperature": -1,
    "tools": [{"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "any"},
    "stop_sequences": [1],
    "system": [{"type": "image"}],
    "thinking": {"type": "other"},
    "unheard_of": 1,
    "output_config": {"effort": 1},
    "messages": [],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_its_name(client: anthropic.Anthropic, name: str) -> None:
    body = {"messages": [user(FACT)], "max_tokens": 8, name: REFUSED[name]}
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.post("/v1/messages", body=body, cast_to=object)
    said = refused.value.body
    assert said["type"] == "error" and said["error"]["type"] == "invalid_request_error"
    assert said["error"]["param"].startswith(name)


MESSAGES = [
    {"role": "system", "content": "x"},
    {"role": "assistant", "content": "a beginning"},
    {"role": "user", "content": [{"type": "image", "source": {}}]},
    {"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "content": "without an id"}]},
    {"role": "user"},
    "text",
]


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_messages_that_the_model_cannot_be_given_are_refused(
    client: anthropic.Anthropic, message: object
) -> None:
    body = {"messages": [message], "max_tokens": 8}
    with pytest.raises(anthropic.BadRequestError):
        client.post("/v1/messages", body=body, cast_to=object)


def test_refusals_have_their_own_form_and_status(client: anthropic.Anthropic, url: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        ask(client, FACT, model="other")
    assert refused.value.body["error"]["type"] == "not_found_error"
    missing = Client(url).request("POST", "/v1/messages", {"messages": [user(FACT)]})
    assert missing.status == 400 and missing.json["error"]["param"] == "max_tokens"


def test_the_key_is_taken_as_anthropics_client_sends_it(pair: Pair) -> None:
    settings = ServeSettings(port=0, api_key="secret")
    with Server(*pair, "builtin", settings) as serving:
        said = {"model": "default_model", "max_tokens": 4, "messages": [user(FACT)]}
        for key in ({"api_key": "secret"}, {"auth_token": "secret"}):
            client = anthropic.Anthropic(base_url=serving.url, max_retries=0, **key)
            assert client.messages.create(**said).content
        wrong = anthropic.Anthropic(base_url=serving.url, max_retries=0, api_key="wrong")
        with pytest.raises(anthropic.AuthenticationError) as refused:
            wrong.messages.create(**said)
        assert refused.value.body["error"]["type"] == "authentication_error"
