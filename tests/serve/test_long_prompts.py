"""Long prompts: others' answers go on meanwhile, and too long ones are refused."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from mlx_lm.generate import BatchGenerator
from serving import (
    CHAT,
    ENDLESS,
    FACT,
    QUESTION,
    Client,
    Pair,
    assistant,
    builtin_pair,
    stream,
    user,
)
from transformers import PreTrainedTokenizerBase

from deltamem_mlx.memory.told import Fingerprints
from deltamem_mlx.serve.batching.pace import GAP, Pace
from deltamem_mlx.serve.errors import ApiError
from deltamem_mlx.serve.memories.memory import HeldMemory
from deltamem_mlx.serve.requests.bodies import MemoryOptions
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings
from deltamem_mlx.serve.turns.history import place_of
from deltamem_mlx.session.conversation import Conversation

LONG = " ".join(["anna"] * 3000)
FUNCTION = {"name": "find", "parameters": {"type": "object", "description": LONG}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"x": LONG}}}],
}
CALLS = "{% for message in messages %}{{ message.tool_calls }}{% endfor %}"


@pytest.fixture(scope="module")
def serving(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        yield serving


@pytest.mark.parametrize("rate", [100, 1_000, 5_000, 100_000])
def test_a_step_is_as_large_as_the_gap_allows(rate: int) -> None:
    """On machines that feed this many tokens a second."""
    pace = Pace(2048)
    for _ in range(40):
        pace.took(pace.size(1, waited_for=True) / rate)
    size = pace.size(1, waited_for=True)
    assert size / rate <= GAP or size == 16
    assert size == 2048 or size / rate > GAP / 3
    assert 3 * pace.size(3, waited_for=True) <= size
    assert pace.size(3, waited_for=False) == 2048


def test_a_slower_machine_is_noticed_at_once() -> None:
    pace = Pace(2048)
    for _ in range(20):
        pace.took(0.01)
    before = pace.size(1, waited_for=True)
    pace.took(8 * GAP)
    assert pace.size(1, waited_for=True) <= before / 8


@pytest.mark.parametrize(
    "memory", [{}, pytest.param({"memory": {"session": "long"}}, marks=pytest.mark.slow)]
)
def test_an_answer_goes_on_while_a_long_prompt_is_fed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, memory: dict
) -> None:
    """It gets many tokens before the prompt's own first one."""
    step, fed_beside = BatchGenerator.next, []

    def next_step(self: BatchGenerator) -> tuple[list, list]:
        prompts, tokens = step(self)
        fed_beside.append(bool(tokens) and any(not prompt.end_of_prompt for prompt in prompts))
        return prompts, tokens

    # Steps as at first: how large they become is for the machine to say.
    monkeypatch.setattr(Pace, "took", lambda self, seconds: None)
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        running = stream(serving, ENDLESS)
        next(running)
        monkeypatch.setattr(BatchGenerator, "next", next_step)
        reply = Client(serving.url).chat(FACT * 300, max_tokens=1, **memory)
        running.close()
    assert reply.json["usage"]["prompt_tokens"] > 1500
    assert sum(fed_beside) > 6  # a step of 2048 tokens leaves it two


@pytest.fixture(scope="module")
def narrow() -> Iterator[Client]:
    """A client of a model that was made for 200 tokens."""
    model, tokenizer = builtin_pair()
    model.args.max_position_embeddings = 200
    with Server(model, tokenizer, "builtin", ServeSettings(port=0)) as serving:
        yield Client(serving.url)


def test_a_prompt_beyond_the_models_window_is_refused(narrow: Client) -> None:
    for memory in ({}, {"memory": {"session": "beyond"}}):
        reply = narrow.chat("anna " * 201, **memory)
        assert reply.status == 400 and reply.code == "context_length_exceeded"
        assert "200" in reply.body.decode()
    assert narrow.memory("GET", "beyond").status == 404


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user("anna " * 800_000)]},
        {"messages": [user("anna " * 100)] * 6000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "anna " * 700_000}]}]},
        {"messages": [user("anna " * 700_000)], "memory": {"session": "new"}},
        {"messages": [user("hi")], "memory": {"session": "new", "remember": ["anna " * 700_000]}},
    ],
    ids=["a text", "messages", "parts", "to a memory", "to remember"],
)
def test_megabytes_are_refused_at_once(
    serving: Server, monkeypatch: pytest.MonkeyPatch, body: dict
) -> None:
    """To tokenize all of it takes seconds, in which nobody's answer would go on."""
    tokenized: list[int] = []  # characters

    def counting(tokenize: Callable) -> Callable:
        def counted(
            self: PreTrainedTokenizerBase, text: str | list[str], *rest: object, **named: object
        ) -> object:
            tokenized.extend(map(len, [text] if isinstance(text, str) else text))
            return tokenize(self, text, *rest, **named)

        return counted

    for name in ("encode", "__call__"):
        tokenize = getattr(PreTrainedTokenizerBase, name)
        monkeypatch.setattr(PreTrainedTokenizerBase, name, counting(tokenize))
    reply = Client(serving.url).request("POST", CHAT, body)
    assert reply.code == "context_length_exceeded"
    assert 0 < sum(tokenized) < 300_000  # of three millions and more


@pytest.mark.parametrize(
    "body, code",
    [
        ({"messages": [user("hi")] * 1500}, "context_length_exceeded"),
        ({"messages": [user("hi")], "tools": [TOOL] * 99}, "context_length_exceeded"),
        ({"messages": [user("hi"), CALL, user("hi")]}, "context_length_exceeded"),
        ({"messages": [user("")] * 2049}, "bad_messages"),
    ],
    ids=["many messages", "tools", "a call", "more messages"],
)
def test_what_is_too_long_for_a_memory_is_refused_before_it_is_planned(
    monkeypatch: pytest.MonkeyPatch, body: dict, code: str
) -> None:
    """A plan renders a turn as often as it has messages, and all answers wait."""
    planned: list[object] = []
    monkeypatch.setattr(Conversation, "plan", lambda *given, **_: planned.append(given))
    model, tokenizer = builtin_pair()
    tokenizer.chat_template = f"{{{{ tools }}}}{CALLS}{tokenizer.chat_template}"
    settings = ServeSettings(port=0, max_prompt_tokens=2000)
    with Server(model, tokenizer, "builtin", settings) as serving:
        reply = Client(serving.url).request("POST", CHAT, body | {"memory": {"session": "new"}})
    assert reply.status == 400 and reply.code == code and not planned


def test_a_history_that_is_another_is_refused_in_linear_time() -> None:
    told = Fingerprints.nothing().after([], [user("a"), assistant("b")] * 1500 + [user("e")])
    held = replace(HeldMemory("id", "key"), told=told)
    sent = [user("a"), assistant("b")] * 1000 + [user("c"), assistant("d")] * 1500
    began = time.thread_time()
    with pytest.raises(ApiError, match=r"^Message 2001 of the conversation is not what"):
        place_of(sent, held, MemoryOptions("key"))
    assert time.thread_time() - began < 2


def test_a_history_of_megabytes_that_is_known_is_no_prompt(serving: Server) -> None:
    client = Client(serving.url)
    said: list[dict] = []
    for text in ("anna " * 500, "ben " * 500, "oslo " * 500, QUESTION):
        said.append(user(text + " " * 12_000))
        reply = client.chat(said, "known", max_tokens=1, memory={"context": "drop"})
        assert reply.status == 200 and reply.memory["messages_known"] == len(said) - 1
        said.append(assistant(reply.text or ""))


def test_a_context_leaves_before_it_is_beyond_the_models_window(narrow: Client) -> None:
    for _ in range(4):
        reply = narrow.chat("anna lives in oslo . " * 20, "window", max_tokens=2)
        assert reply.status == 200 and reply.memory["context_tokens"] <= 200


def test_a_limit_of_the_servers_own_is_kept(pair: Pair) -> None:
    with Server(*pair, "builtin", replace(ServeSettings(port=0), max_prompt_tokens=50)) as serving:
        client = Client(serving.url)
        assert client.chat("anna " * 60).code == "context_length_exceeded"
        assert client.chat(QUESTION).status == 200
