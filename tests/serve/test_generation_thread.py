"""The thread that owns the model: what is wrong with one request is that request's alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.server import GenerationArguments
from mlx_lm.tokenizer_utils import TokenizerWrapper
from serving import CHAT, ENDLESS, QUESTION, Client, Pair, builtin_pair, stream

from deltamem_mlx.ops.step import compiled_step
from deltamem_mlx.ops.triangular import compiled_short
from deltamem_mlx.serve.batching import batch, samplers
from deltamem_mlx.serve.provider import ServedPair
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

pytestmark = pytest.mark.fused

SAMPLED = {"temperature": 9.0, "max_tokens": 12}
HOSTILE = 0.123  # a temperature that the tests below have refused


@pytest.fixture(scope="module")
def serving(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        yield serving


@pytest.fixture
def client(serving: Server) -> Iterator[Client]:
    client = Client(serving.url)
    yield client
    assert client.chat(QUESTION, **SAMPLED).status == 200  # after all of it


@partial(mx.compile, inputs=mx.random.state, outputs=mx.random.state)
def refuse(row: mx.array) -> mx.array:
    """As mlx-lm's samplers do: the random state is what is being traced."""
    raise ValueError("`top_k` has to be an integer in the (0, 342) interval")


def refusing(make: Callable) -> Callable:
    def made(args: GenerationArguments, tokenizer: TokenizerWrapper) -> Callable:
        return refuse if args.sampling.temperature == HOSTILE else make(args, tokenizer)

    return made


SEEDS = [-1, -2, 0, 2**31, 2**32, 2**63, 2**64, -(2**31), 10**30, 1e300]
SEEDED = {"memory": {"session": "seeded"}}


@pytest.mark.parametrize(
    ("seed", "memory"),
    [
        *((seed, {}) for seed in SEEDS),
        (2**32, SEEDED),
        (2**64, SEEDED),
        *(pytest.param(seed, SEEDED, marks=pytest.mark.slow) for seed in SEEDS),
    ],
)
def test_a_seed_is_used_or_refused(client: Client, seed: float, memory: dict) -> None:
    reply = client.chat(QUESTION, seed=seed, **SAMPLED, **memory)
    assert reply.status in (200, 400)
    assert (seed == -1 and reply.status == 200) or reply.status == 400 or seed >= 0


def test_the_same_seed_gives_the_same_answer_and_another_one_another(client: Client) -> None:
    sampled = [client.chat(QUESTION, seed=seed, **SAMPLED).text for seed in (7, 7, 8, 9, 7)]
    assert sampled[0] == sampled[1] == sampled[4]
    assert len(set(sampled)) > 1


def test_what_comes_after_a_seed_cannot_be_foretold(client: Client) -> None:
    after = []
    for _ in range(3):
        client.chat(QUESTION, seed=7, **SAMPLED)
        after.append(client.chat(QUESTION, **SAMPLED).text)
    assert len(set(after)) > 1


@pytest.mark.parametrize("memory", [{}, {"memory": {"session": "hostile"}}], ids=["", "memory"])
def test_sampling_that_is_refused_is_one_requests_affair(
    serving: Server, client: Client, monkeypatch: pytest.MonkeyPatch, memory: dict
) -> None:
    monkeypatch.setattr(samplers, "make_sampler", refusing(samplers.make_sampler))
    running = stream(serving, ENDLESS | {"max_tokens": 150, "temperature": 1.0})
    next(running)
    for _ in range(2):
        reply = client.chat(QUESTION, temperature=HOSTILE, **memory)
        assert reply.status == 400 and "top_k" in reply.body.decode()
        assert client.chat(QUESTION, **SAMPLED).status == 200
    assert list(running)[-1][1] == b"[DONE]"
    assert client.memory("GET", "hostile").status == 404


def test_sampling_works_after_a_batch_has_failed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(BatchGenerator, "next", lambda _: refuse(mx.zeros(3)))
        assert client.chat(QUESTION, **SAMPLED).status == 500
    assert client.chat(QUESTION, **SAMPLED).status == 200


def test_a_thread_that_has_ended_is_said_to_have(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: batch.RunningBatch) -> None:
        raise RuntimeError("secret")

    with Server(*pair, "builtin", ServeSettings(port=0, grace=0.1)) as serving:
        monkeypatch.setattr(batch.RunningBatch, "advance", broken)
        client = Client(serving.url)
        for _ in range(2):
            reply = client.request("POST", CHAT, ENDLESS)
            assert reply.status == 503 and reply.code == "internal_error"
            assert "secret" not in reply.body.decode()
        assert client.request("GET", "/health").status == 503
        assert not serving.generator.is_healthy
    assert [r for r in caplog.records if r.levelname == "CRITICAL" and "deltamem" in r.name]


def test_a_seed_gives_what_mlx_lm_gives_with_it(client: Client, pair: Pair) -> None:
    """The check of a request's sampling draws no number that the answer would have drawn."""
    from mlx_lm import generate
    from mlx_lm.sample_utils import make_sampler

    model, tokenizer = pair
    prompt = "anna lives in oslo ."
    for seed in (3, 4):
        mx.random.seed(seed)
        sampler = make_sampler(temp=2.0)
        expected = generate(model, tokenizer, prompt, max_tokens=8, sampler=sampler)
        body = {"prompt": prompt, "seed": seed, "temperature": 2.0, "max_tokens": 8}
        reply = client.request("POST", "/v1/completions", body).json
        assert reply["choices"][0]["text"].strip() == expected.strip()


@pytest.mark.parametrize("tokens", [1, 16, 40, 128, 200])
def test_a_model_that_one_thread_has_loaded_another_can_be_the_first_to_use(tokens: int) -> None:
    """What is still to be computed can be so in the thread that made it only."""
    compiled_short.cache_clear()
    compiled_step.cache_clear()
    served = ServedPair.of(*builtin_pair(), {})

    def use() -> None:
        cache = make_prompt_cache(served.model)
        mx.eval(served.model(mx.zeros((1, tokens), mx.uint32), cache=cache))
        mx.eval([c.state for c in cache])

    with ThreadPoolExecutor(1) as pool:
        pool.submit(use).result()
