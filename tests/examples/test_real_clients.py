"""Official clients against a server process with SmolLM2-135M and the shipped adapter."""

from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest
from conftest import ROOT
from serving import Client, server

pytestmark = pytest.mark.real_model
FACT, QUESTION, ANSWER = (
    "Oscar works as a pilot.",
    "What does Oscar do for a living?",
    "pilot",
)
DROP = {"memory": {"context": "drop", "read_only": True}}


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if smollm2.name.endswith("q4"):
        pytest.skip("it was trained and measured in float32")
    folder = tmp_path_factory.mktemp("served")
    adapter = ROOT / "adapters" / "smollm2-135m-instruct"
    options = ("--model", smollm2, "--adapter", adapter, "--memory-dir", folder / "memories")
    with server(*options, log=folder / "log") as (_, url):
        yield url


def chat(url: str, key: str, text: str, drop: bool) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    chunks = client.chat.completions.create(
        model="default_model",
        messages=[{"role": "user", "content": text}],
        max_tokens=16,
        stream=True,
        extra_headers={"X-Delta-Mem-Session": key},
        extra_body=DROP if drop else {},
    )
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def respond(url: str, key: str, text: str, drop: bool) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    with client.responses.stream(
        model="default_model",
        input=text,
        max_output_tokens=16,
        extra_headers={"X-Delta-Mem-Session": key},
        extra_body=DROP if drop else {},
    ) as events:
        ended = ("response.completed", "response.incomplete")
        return next(event.response.output_text for event in events if event.type in ended)


def message(url: str, key: str, text: str, drop: bool) -> str:
    client = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
    with client.messages.stream(
        model="default_model",
        max_tokens=16,
        messages=[{"role": "user", "content": text}],
        extra_headers={"X-Delta-Mem-Session": key},
        extra_body=DROP if drop else {},
    ) as events:
        return events.get_final_text()


APIS = {"chat": chat, "responses": respond, "messages": message}


@pytest.mark.parametrize("told", APIS)
def test_what_is_told_to_a_real_model_is_known_when_it_is_out_of_sight(url: str, told: str) -> None:
    """Through each of the APIs, and unknown under another name."""
    APIS[told](url, told, FACT, False)
    assert Client(url).memory("GET", told).json["turns"] == 1
    for name, ask in APIS.items():
        assert ANSWER in ask(url, told, QUESTION, True), name
    assert ANSWER not in APIS[told](url, f"not {told}", QUESTION, True)
