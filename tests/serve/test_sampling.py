"""Every parameter over its whole range: refused by its name, or done; never everybody's end."""

import json
import math
from collections.abc import Iterator
from email.message import Message as Headers
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI
from serving import CHAT, HELLO, Client, builtin_pair, stream, user

from deltamem_mlx.serve.errors import ApiError
from deltamem_mlx.serve.requests.completions import read_completion
from deltamem_mlx.serve.requests.fields import Fields
from deltamem_mlx.serve.requests.sampling import check_defaults, read_parameters
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings, SettingsError

VOCABULARY = 342  # of the built-in pair
SAMPLED = {"messages": [user("hi")], "temperature": 0.7, "max_tokens": 2}
LIMITS = {"max_tokens": 2, "max_tokens_limit": 3000, "max_prompt_tokens": 300, "wait": 5.0}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0, **LIMITS)) as server:
        client = Client(server.url)
        yield client
        assert client.request("POST", CHAT, SAMPLED).status == 200  # after all of it


REFUSED = {
    "temperature": [-1e-9, 10**400, "1", True, [1]],
    "top_p": [-0.1, 1.0000001, 2, "1", False],
    "top_k": [-1, VOCABULARY, 1_000_000, 2**31, 2**63, 10**400, 1.0, 0.5, True],
    "min_p": [-0.1, 1.1, 10**400, "0", True],
    "xtc_probability": [-0.1, 1.1, "0", True],
    "xtc_threshold": [-0.1, 0.51, 0.6, 1, 10**400, True],
    "repetition_penalty": [-0.1, -1, 10**400, "1", True],
    "presence_penalty": [10**400, -(10**400), "1", True],
    "frequency_penalty": [10**400, -(10**400), "1", True],
    "repetition_context_size": [-1, 2**31, 2**63, 10**400, 1.0, True],
    "presence_context_size": [-1, 2**31, 1.5],
    "frequency_context_size": [-1, 2**31, 1.5],
    "seed": [-2, -(2**31), -(2**63), 2**63, 2**64, 10**400, 1.0, "1", True],
    "max_tokens": [0, -1, 2**31, 10**400, 1.0, "1", True],
    "max_completion_tokens": [0, -1, 10**400, 1.0, True],
    "logprobs": [1, 0, "true", []],
    "top_logprobs": [-2, 12, 2**63, 1.0, True],
    "logit_bias": [{"342": 1}, {"-1": 1}, {"1.0": 1}, {"٣": 1}, {"01": 1}, {"1": 1e9},
                   {"1": -1e300}, {"1": 10**400}, {"1": True}, {"1": None}, {"": 1}, [1], "1"],
    "stop": [[""], [1], {}, 1, "a" * 257, ["a"] * 17],
    "stream": [1, 0, "true"],
    "stream_options": [[], "x", {"include_usage": 1}],
    "model": [3, []],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, {}, 1],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}, 1, ""],
    "parallel_tool_calls": [0, 1],
    "functions": [[{"name": "f"}], {}],
    "function_call": [{"name": "f"}, "f"],
    "n": [0, 2, 128, True, 1.0, "1"],
    "best_of": [0, 2, True],
    "echo": [True, 0],
    "suffix": ["x", 1],
    "modalities": [["audio"], ["text", "audio"], "text"],
    "adapters": ["x"],
    "draft_model": ["x"],
    "audio": [{}],
    "reasoning_effort": [1, ["high"]],
    "web_search_options": [{}],
    "guided_json": [{}],
    "temprature": [1],
    "prompt": ["x"],
    "x" * 5000: [1],
}  # fmt: skip
FITTING = {
    "temperature": [0, 0.0, 1, 1e-300, 1e-40, 1e300, 2],
    "top_p": [0, 1, 1e-300, 0.5],
    "top_k": [0, 1, VOCABULARY - 1],
    "min_p": [0, 1, 1e-300],
    "xtc_probability": [0, 1, 0.5],
    "xtc_threshold": [0, 0.5],
    "repetition_penalty": [0, 1, 1e-300, 1e300, 10**30],
    "presence_penalty": [0, -1e300, 1e300, 10**30, 2**31, 2**63, -(2**64)],
    "frequency_penalty": [0, -1e300, 1e300, 10**30, 2**31],
    "repetition_context_size": [0, 1, 2**31 - 1],
    "presence_context_size": [0, 2**31 - 1],
    "frequency_context_size": [0, 2**31 - 1],
    "seed": [-1, 0, 1, 2**31, 2**32, 2**63 - 1, None],
    "max_tokens": [1, 2],
    "logprobs": [True, False],
    "top_logprobs": [-1, 0, 1, 11],
    "logit_bias": [{}, {"0": -100}, {"341": 999999999}, {"5": 1}],
    "stop": [[], "a", [" ", "\n", "🗝", "\x00", "a" * 256]],
    "stream_options": [{}, {"include_usage": None}],
    "response_format": [{"type": "text"}],
    "tool_choice": ["auto", "none"],
    "parallel_tool_calls": [True, False],
    "functions": [[]],
    "function_call": ["none"],
    "n": [1],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
    "modalities": [["text"]],
    "user": ["me"],
    "metadata": [{"a": "b"}],
    "store": [True],
    "service_tier": ["auto"],
    "reasoning_effort": [None, "none", "high"],
    "verbosity": ["low"],
    "prompt_cache_options": [{}],
}  # fmt: skip


@pytest.mark.parametrize("name, values", REFUSED.items(), ids=[name[:30] for name in REFUSED])
def test_what_cannot_be_done_is_refused_by_its_name(
    client: Client, name: str, values: list
) -> None:
    for value in values:
        reply = client.request("POST", CHAT, SAMPLED | {name: value})
        assert reply.status == 400, value
        error = reply.json["error"]
        assert error["param"].split(".")[0] == name[:40] and name[:38] in error["message"]
        assert reply.code in ("invalid_value", "unknown_parameter")
        assert len(error["message"]) < 200 and "\n" not in error["message"]
    assert client.request("POST", CHAT, SAMPLED).status == 200


@pytest.mark.parametrize("name, values", FITTING.items(), ids=FITTING.keys())
def test_what_the_samplers_take_is_taken_to_its_limits(
    client: Client, name: str, values: list
) -> None:
    memory = {"memory": {"session": "fitting", "reset": True}}
    for value in values:
        body = SAMPLED | {"xtc_probability": 0.5, name: value}
        reply = client.request("POST", CHAT, body | memory)
        assert reply.status == 200, reply.body
    assert client.request("POST", CHAT, body).status == 200


def test_integers_become_numbers_that_mlx_can_hold() -> None:
    body = {"presence_penalty": 10**30, "xtc_probability": 1, "logit_bias": {"7": 3}}
    read = read_parameters(Fields(body), ServeSettings(), VOCABULARY)
    kinds = (read.presence_penalty, read.xtc_probability, read.logit_bias[7])
    assert kinds == (1e30, 1.0, 3.0) and all(isinstance(kind, float) for kind in kinds)


@pytest.mark.parametrize("cold", [0, 5e-324, 1e-300, 1e-40, 1e-10])
def test_the_coldest_answers_are_the_likeliest(client: Client, cold: float) -> None:
    asked = {"messages": [user("where does anna live ?")], "max_tokens": 12}
    greedy = client.request("POST", CHAT, asked).text
    assert client.request("POST", CHAT, asked | {"temperature": cold}).text == greedy


def test_the_hottest_answers_hold_to_what_may_be_sampled(client: Client) -> None:
    asked = {"messages": [user("where does anna live ?")], "max_tokens": 12}
    greedy = client.request("POST", CHAT, asked).text
    for hot in (1e5, 1e39, 1e300):
        assert client.request("POST", CHAT, asked | {"temperature": hot, "top_k": 1}).text == greedy


def test_the_limit_of_answers_is_theirs_too_who_name_none() -> None:
    few = ServeSettings(max_tokens=512, max_tokens_limit=10)
    assert read_parameters(Fields({}), few, VOCABULARY).max_tokens == 10
    for named in ({"max_tokens": 4}, {"max_completion_tokens": 4}):
        assert read_parameters(Fields(named), few, VOCABULARY).max_tokens == 4
    for more in ({"max_tokens": 16_384}, {"max_completion_tokens": 16_384}):
        assert read_parameters(Fields(more), few, VOCABULARY).max_tokens == 10
    with pytest.raises(ApiError, match="the same as max_tokens"):
        read_parameters(Fields({"max_tokens": 3, "max_completion_tokens": 4}), few, VOCABULARY)
    with pytest.raises(ApiError, match="max_completion_tokens"):
        read_parameters(Fields({"max_completion_tokens": 0}), few, VOCABULARY)


@pytest.mark.parametrize(
    "name, value",
    [("temp", math.nan), ("temp", -1), ("temp", math.inf), ("top_p", 1.1), ("top_k", -1),
     ("top_k", VOCABULARY), ("min_p", math.nan), ("max_tokens", 0), ("max_tokens_limit", 0)],
)  # fmt: skip
def test_a_servers_own_defaults_are_checked_at_start(name: str, value: float) -> None:
    bad = ServeSettings(port=0, **{name: value})
    option = "max_tokens" if "max" in name else name
    with pytest.raises(SettingsError, match=f"^--{option.replace('_', '-')} .*: expected "):
        check_defaults(bad, VOCABULARY)
    with pytest.raises(SettingsError):
        Server(*builtin_pair(), "builtin", bad)


def test_logprobs_of_a_stream_are_those_of_the_whole_answer(client: Client) -> None:
    openai = OpenAI(base_url=f"http://{client.host}:{client.port}/v1", api_key="any")
    asked = {"model": "default_model", "messages": [user("where does anna live ?")]}
    asked |= {"logprobs": True, "top_logprobs": 3, "max_tokens": 24, "temperature": 0}
    whole = openai.chat.completions.create(**asked).choices[0].logprobs
    with openai.chat.completions.stream(**asked) as stream:
        pieces = stream.get_final_completion().choices[0].logprobs
    assert len(whole.content) == len(pieces.content) > 2
    for one, other in zip(whole.content, pieces.content, strict=True):
        assert (one.token, one.bytes) == (other.token, other.bytes)
        assert bytes(one.bytes).decode() == one.token and len(one.top_logprobs) == 3
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.logprob == pytest.approx(max(top.logprob for top in one.top_logprobs))


def test_what_openais_client_sends_for_models_of_theirs_is_taken(client: Client) -> None:
    openai = OpenAI(base_url=f"http://{client.host}:{client.port}/v1", api_key="any", max_retries=0)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    silent = {"role": "assistant", "content": None}
    said = openai.chat.completions.create(
        model="default_model", messages=[user("hi"), silent, user("where does anna live ?")],
        reasoning_effort="low", verbosity="low", tools=tools, parallel_tool_calls=False,
        max_completion_tokens=16_384, temperature=0,
    )  # fmt: skip
    assert said.choices[0].message.content


def test_the_effort_is_told_to_the_template() -> None:
    body = {"messages": [user("hi")], "reasoning_effort": "none"}
    asked = read_completion(body, Headers(), ServeSettings(), VOCABULARY, chat=True)
    assert asked.template_kwargs == {"reasoning_effort": "none", "enable_thinking": False}


def test_tools_that_may_not_be_called_are_not_shown_to_the_model(client: Client) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    plain = client.request("POST", CHAT, HELLO).json["usage"]["prompt_tokens"]
    for choice in ("none", "auto"):
        asked = HELLO | {"tools": tools, "tool_choice": choice}
        used = client.request("POST", CHAT, asked).json["usage"]["prompt_tokens"]
        assert choice == "auto" or used == plain


def test_a_text_completion_takes_no_parameters_of_a_chat(client: Client) -> None:
    for name, value in (("messages", []), ("tools", []), ("chat_template_kwargs", {})):
        reply = client.request("POST", "/v1/completions", {"prompt": "anna", name: value})
        assert reply.status == 400 and reply.code == "unknown_parameter"


# Drawing subnormal numbers fails where a library has made the processor flush them to zero; the
# edges have one.
floats = partial(st.floats, allow_subnormal=False)
# The whole range of every parameter that mlx-lm knows, and all that JSON can say beside.
edges = st.sampled_from(
    [0, -0.0, 1, -1, 2, 0.5, 0.1, 0.51, 5e-324, 1e-300, 1e-40, 1e300, -1e300, 2**31 - 1, 2**31,
     -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, VOCABULARY - 1, VOCABULARY, 10**6]
)  # fmt: skip
numbers = edges | st.integers(-5, 400) | st.integers() | floats(0, 1)
numbers |= floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
biases = st.dictionaries(st.integers(-2, 400).map(str) | texts, numbers, max_size=4)
share, size = floats(0, 1), st.integers(0, 2**31 - 1) | st.integers(0, 30)
penalty = floats(-1e308, 1e308) | floats(-2, 2)
NUMBERS = {
    "temperature": floats(0, 1e308) | floats(0, 2),
    "top_p": share,
    "top_k": st.integers(0, VOCABULARY + 2),
    "min_p": share,
    "xtc_probability": share,
    "xtc_threshold": floats(0, 0.55),
    "seed": st.integers(-1, 2**63 - 1),
    "repetition_penalty": floats(0, 1e308) | floats(0, 2),
    "presence_penalty": penalty,
    "frequency_penalty": penalty,
    "repetition_context_size": size,
    "presence_context_size": size,
    "frequency_context_size": size,
    "top_logprobs": st.integers(-1, 11),
    "num_draft_tokens": size,
}
LIKELY = {
    **{name: likely | numbers for name, likely in NUMBERS.items()},
    "max_tokens": st.integers(1, 3),
    "logit_bias": biases,
    "logprobs": st.booleans(),
    "stream": st.booleans(),
    "stop": texts | st.lists(texts, max_size=3),
    "tools": st.lists(st.dictionaries(texts, anything, max_size=2), max_size=2),
    "chat_template_kwargs": st.dictionaries(texts, anything, max_size=2),
    "role_mapping": st.dictionaries(texts, texts, max_size=2),
    "memory": st.fixed_dictionaries(
        {"session": texts},
        optional={
            "read_only": st.booleans(),
            "reset": st.booleans(),
            "remember": texts | st.lists(texts, max_size=2),
            "context": st.sampled_from(["keep", "drop"]),
        },
    ),
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": texts}
        ),
        max_size=3,
    ),
}
TEXT = {*NUMBERS, "max_tokens", "logit_bias", "logprobs", "stream", "stop"}
# Few at a time, or hardly one would come as far as the batch.
changes = st.lists(st.sampled_from(sorted(LIKELY)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: LIKELY[name] for name in names})
)
odd = st.dictionaries(st.sampled_from([*LIKELY, "prompt", "n"]), anything, max_size=1)
usual = changes.map(lambda likely: SAMPLED | likely)
bodies = usual | st.builds(lambda body, odd: body | odd, usual, odd) | anything


def assert_all_go_on_after(client: Client, body: object) -> None:
    asked = [(CHAT, body)]
    if isinstance(body, dict) and "messages" in body:
        text = {name: value for name, value in body.items() if name in TEXT}
        asked.append(("/v1/completions", text | {"prompt": "anna lives in"}))
    for path, said in asked:
        reply = client.request("POST", path, said)
        assert reply.status < 500, (said, reply.body)
        assert (b'"error"' in reply.body) == (reply.status != 200), (said, reply.body)
        assert reply.status == 200 or len(reply.json["error"]["message"]) < 500
    plain = client.request("POST", CHAT, SAMPLED)
    assert plain.status == 200 and plain.json["usage"]["completion_tokens"] > 0


unhurried = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=40, derandomize=True, **unhurried)
@given(bodies)
def test_after_any_body_a_sampled_request_is_answered(client: Client, body: object) -> None:
    assert_all_go_on_after(client, body)


@pytest.mark.slow
@settings(max_examples=5000, **unhurried)
@given(bodies)
def test_after_any_of_thousands_of_bodies_a_sampled_request_is_answered(
    client: Client, body: object
) -> None:
    assert_all_go_on_after(client, body)


def test_who_is_answered_meanwhile_does_not_notice() -> None:
    """All that is refused, and all that is done, beside an answer that goes on."""
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0, **LIMITS)) as server:
        ends = {str(i): -100 for i in range(4)}
        answer = stream(server, SAMPLED | {"max_tokens": 3000, "logit_bias": ends})
        lines = [json.loads(next(answer)[1])]
        client = Client(server.url)
        for table in (REFUSED, FITTING):
            for name, values in table.items():
                if name != "seed":  # which runs alone
                    client.request("POST", CHAT, SAMPLED | {name: values[0]})
        lines += [json.loads(next(answer)[1]) for _ in range(20)]
        answer.close()
    assert not any("error" in line for line in lines)
