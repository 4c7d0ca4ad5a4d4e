"""A step of the batch that fails: whose fault it is has failed, the others are answered."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator
from serving import CHAT, FACT, QUESTION, Client, Reply, states_in, user

from deltamem_mlx.serve.batching import samplers

LONG = {"max_tokens": 40, "logit_bias": {str(i): -100 for i in range(4)}}  # all of them are used
POISON = 0.321  # a temperature whose sampler fails within the batch


def pieces(reply: Reply) -> str:
    """The text of a streamed answer, which has to be whole."""
    lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]", reply.body
    chunks = [json.loads(line) for line in lines[:-1]]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)


def four_at_once(client: Client, key: str, begun: threading.Barrier) -> list[str]:
    """A memory's turn, the same streamed, a request without a memory, the same streamed."""

    def ask(memory: bool, streamed: bool) -> str:
        body = {"messages": [user(f"{FACT} {QUESTION}")], "stream": streamed, **LONG}
        if memory:
            body["memory"] = {"session": f"{key} {streamed}"}
        begun.wait()
        reply = client.request("POST", CHAT, body)
        assert reply.status == 200, reply.body
        return pieces(reply) if streamed else reply.text

    with ThreadPoolExecutor(4) as pool:
        kinds = [(True, False), (True, True), (False, False), (False, True)]
        return list(pool.map(lambda kind: ask(*kind), kinds))


def let_fail(monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    """A batch's step fails once, the ``at``-th time that all four are decoded; gives those times.

    Before the last has come there are no steps: none shall have ended by then.
    """
    insert, step = BatchGenerator.insert_segments, BatchGenerator.next
    come: list[int] = []
    seen: list[int] = []

    def insert_one(self: BatchGenerator, *args: object, **named: object) -> list[int]:
        come.append(1)
        return insert(self, *args, **named)

    def next_step(self: BatchGenerator) -> tuple:
        if len(come) < 4:
            time.sleep(0.01)
            return [], []
        prompts, tokens = step(self)
        if len(tokens) == 4:
            seen.append(1)
            if len(seen) == at:
                raise RuntimeError("[malloc] out of memory")
        return prompts, tokens

    monkeypatch.setattr(BatchGenerator, "insert_segments", insert_one)
    monkeypatch.setattr(BatchGenerator, "next", next_step)
    return seen


@pytest.mark.parametrize("at", [1, 20, pytest.param(30, marks=pytest.mark.slow)])
def test_of_several_all_are_answered_as_if_nothing_had_been(
    client: Client, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The streamed ones too, of which their clients have a part already."""
    plain = four_at_once(client, f"plain {at}", threading.Barrier(4))
    seen = let_fail(monkeypatch, at)
    assert four_at_once(client, f"again {at}", threading.Barrier(4)) == plain
    assert len(seen) >= at
    for streamed in (False, True):
        ours, theirs = (
            states_in(client.memory("GET", f"{kind} {at} {streamed}", "/export").body)
            for kind in ("again", "plain")
        )
        assert all(np.allclose(ours[i], theirs[i], atol=1e-5) for i in theirs)
        assert client.memory("GET", f"again {at} {streamed}").json["turns"] == 1


def test_one_that_fails_within_the_batch_fails_alone(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = samplers.make_sampler

    def made(args: object, tokenizer: object) -> Callable:
        calls: list[int] = []

        def poisonous(row: mx.array) -> mx.array:
            calls.append(1)
            if len(calls) > 8:
                raise RuntimeError("broken")
            return mx.argmax(row, axis=-1)

        return poisonous if args.sampling.temperature == POISON else make(args, tokenizer)

    monkeypatch.setattr(samplers, "make_sampler", made)
    begun = threading.Barrier(5)

    def poison() -> Reply:
        begun.wait()
        return client.chat(FACT, "poisoned", temperature=POISON, **LONG)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(poison)
        answers = four_at_once(client, "beside", begun)
        failed = found.result()
    assert failed.status == 500 and failed.code == "internal_error"
    assert "broken" not in failed.body.decode()
    assert all(answers) and client.memory("GET", "poisoned").status == 404
    assert client.chat(QUESTION).status == 200
