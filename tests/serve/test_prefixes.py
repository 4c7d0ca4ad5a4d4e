"""Requests without a memory that begin alike: what they have in common is fed once."""

from collections.abc import Iterator

import pytest
from serving import Client, Pair, assistant, user

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings
from deltamem_mlx.serve.turns import waypoints
from deltamem_mlx.serve.turns.waypoints import EVERY, cut

LONG = "anna lives in oslo . ben is a doctor . "
QUESTIONS = ["where does anna live ?", "what is the job of ben ?", "where does chris live ?"]


@pytest.fixture(params=[64, pytest.param(EVERY, marks=pytest.mark.slow)])
def every(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Points as often as this."""
    monkeypatch.setattr(waypoints, "EVERY", request.param)
    return request.param


@pytest.fixture
def long(every: int) -> str:
    """A text of somewhat more tokens than that."""
    return LONG * (every // 9)


@pytest.fixture
def client(pair: Pair) -> Iterator[Client]:
    with Server(*pair, "builtin", ServeSettings(port=0, max_context=None)) as serving:
        yield Client(serving.url)


def cached(reply: object) -> int:
    return reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]


def fresh(pair: Pair, said: list[dict], **more: object) -> dict:
    """What a server says that was asked nothing before."""
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        return Client(serving.url).chat(said, **more).json["choices"]


def test_a_text_with_another_question_is_fed_from_where_they_part(
    client: Client, pair: Pair, every: int, long: str
) -> None:
    shown = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    for number, question in enumerate(QUESTIONS):
        said = [user(long + question)]
        reply = client.chat(said, **shown)
        assert reply.json["usage"]["prompt_tokens"] > every
        assert cached(reply) == (every if number else 0)
        (ours,), (theirs,) = reply.json["choices"], fresh(pair, said, **shown)
        assert ours["message"] == theirs["message"]
        scored = [c["logprobs"]["content"] for c in (ours, theirs)]
        for one, other in zip(*scored, strict=True):
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)


def test_a_short_beginning_is_not_reused(client: Client) -> None:
    for question in QUESTIONS:
        assert cached(client.chat([user("anna lives in oslo . " + question)])) == 0


def test_what_was_taken_from_a_prompt_can_be_taken_from_again(
    client: Client, pair: Pair, every: int, long: str
) -> None:
    """Points are handed on: to what continues, and to what parts from that."""
    first = [user(long + QUESTIONS[0])]
    first.append(assistant(client.chat(first).text))
    longer = [*first, user(long + QUESTIONS[1])]
    assert cached(client.chat(longer)) >= every
    other = [*first, user(long + QUESTIONS[2])]
    reply = client.chat(other)
    assert cached(reply) >= 2 * every
    assert reply.json["choices"] == fresh(pair, other)
    parted = [user(long[: len(long) * 9 // 10] + QUESTIONS[2])]
    reply = client.chat(parted)
    assert cached(reply) == every
    assert reply.json["choices"] == fresh(pair, parted)


def test_a_prompt_that_has_left_the_cache_is_fed_anew(pair: Pair, long: str) -> None:
    settings = ServeSettings(port=0, prompt_cache_size=1)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        client.chat([user(long + QUESTIONS[0])])
        for question in QUESTIONS:
            client.chat([user(question)])
        said = [user(long + QUESTIONS[1])]
        reply = client.chat(said)
        assert cached(reply) == 0 and reply.json["choices"] == fresh(pair, said)


@pytest.mark.parametrize("begin", [0, 1, EVERY - 1, EVERY, EVERY + 1])
@pytest.mark.parametrize("length", [1, EVERY - 1, EVERY, EVERY + 1, 3 * EVERY])
def test_segments_are_cut_at_whole_points(begin: int, length: int) -> None:
    segment = list(range(begin, begin + length))
    parts = cut(segment, begin)
    assert [token for part in parts for token in part] == segment and all(parts)
    assert all((begin + sum(map(len, parts[:n]))) % EVERY == 0 for n in range(1, len(parts)))
    assert all(len(part) <= EVERY for part in parts)
