"""OpenAI's agents SDK against a server: turns through its sessions, response ids and chats."""

import asyncio
from collections.abc import Iterator

import agents
import openai
import pytest
from serving import ANSWER, FACT, QUESTION, Client, builtin_pair

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    agents.set_tracing_disabled(True)
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        yield Client(server.url)


@agents.function_tool
def look_up(name: str) -> str:
    """Where somebody lives."""
    return f"{name} lives in rome ."


def agent_of(client: Client, api: str, key: str | None = None) -> agents.Agent:
    theirs = openai.AsyncOpenAI(
        base_url=f"http://{client.host}:{client.port}/v1", api_key="any", max_retries=0
    )
    kinds = {
        "chat": agents.OpenAIChatCompletionsModel,
        "responses": agents.OpenAIResponsesModel,
    }
    named = {"X-Delta-Mem-Session": key} if key else None
    return agents.Agent(
        name="assistant",
        instructions="be brief .",
        tools=[look_up],
        model=kinds[api](model="default_model", openai_client=theirs),
        model_settings=agents.ModelSettings(max_tokens=24, temperature=0, extra_headers=named),
    )


def say(agent: agents.Agent, text: str, **more: object) -> agents.RunResult:
    return asyncio.run(agents.Runner.run(agent, text, **more))


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_session_of_the_sdk_is_told_to_the_memory_once(client: Client, api: str) -> None:
    """It re-sends all that was said; a new session has nothing but the memory."""
    agent, session = agent_of(client, api, f"agent {api}"), agents.SQLiteSession(api)
    say(agent, FACT, session=session)
    assert ANSWER in say(agent, QUESTION, session=session).final_output
    assert client.memory("GET", f"agent {api}").json["turns"] == 2
    anew = agents.SQLiteSession(f"{api} anew")
    assert ANSWER in say(agent, QUESTION, session=anew).final_output
    assert ANSWER not in say(agent_of(client, api, "nobody"), QUESTION).final_output


def test_it_goes_on_from_a_response_and_in_a_conversation(client: Client) -> None:
    agent = agent_of(client, "responses")
    told = say(agent, FACT)
    asked = say(agent, QUESTION, previous_response_id=told.last_response_id)
    assert ANSWER in asked.final_output
    for text in (FACT, QUESTION):
        said = say(agent, text, conversation_id="of the agent")
    assert ANSWER in said.final_output
    assert client.memory("GET", "of the agent").json["turns"] == 2


def test_it_streams(client: Client) -> None:
    async def pieces() -> list[str]:
        found = agents.Runner.run_streamed(agent_of(client, "responses"), QUESTION)
        kinds = [event.type async for event in found.stream_events()]
        return [*kinds, found.final_output]

    *kinds, said = asyncio.run(pieces())
    assert "raw_response_event" in kinds and "do not know" in said
