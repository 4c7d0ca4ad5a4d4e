"""What runs in the server's batch: the end of a turn, log-probabilities, who joins when."""

import itertools
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import StopSequences
from serving import Client, builtin_pair, stream, user

from deltamem_mlx.serve.batching.ending import Ending
from deltamem_mlx.serve.batching.saying import read_logprob
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

END, OTHER_END = 9, 8


def decoded(model: Sequence[int], ending: Ending) -> list[int]:
    """What is fed of the tokens that a model would say; the batch samples one ahead."""
    says: Iterator[int] = itertools.chain(model, itertools.repeat(0))

    def sample() -> mx.array:
        row = mx.zeros((1, 10))
        row[0, next(says)] = 1.0
        return ending.sample(row)

    told = ending.matcher()
    fed, coming = [], sample()
    while len(fed) < 30:
        now, coming = coming, sample()
        fed.append(now.item())
        if told.advance(fed[-1]):
            return fed
    raise AssertionError("it never ended")


@pytest.mark.parametrize("end", [[END], [END, 5], [END, 5, 6]], ids=str)
@pytest.mark.parametrize("said", range(5))
@pytest.mark.parametrize("room", range(1, 6))
def test_a_reply_is_followed_by_the_end_of_turn(end: list[int], said: int, room: int) -> None:
    ending = Ending(lambda row: mx.argmax(row, axis=-1), StopSequences([[END]]), room, end)
    reply = [1] * min(said, room)
    assert decoded([1] * said + [END], ending) == reply + end
    # The end token counts as one that was said, as in mlx-lm.
    assert ending.reason == ("stop" if said < room else "length")
    assert ending.closed


def test_a_stop_sequence_ends_a_reply_at_once() -> None:
    stops = StopSequences([[END], [OTHER_END], [2, 3]])
    for model in ([1, OTHER_END, 4], [1, 2, 3, 4]):
        ending = Ending(lambda row: mx.argmax(row, axis=-1), stops, 10, [END, 5])
        assert decoded(model, ending) == model[:-1]
        assert ending.reason == "stop" and not ending.closed


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_a_logprob_is_read_as_mlx_would(dtype: mx.Dtype) -> None:
    rows = mx.array(np.linspace(-9.7, -0.01, 14).reshape(2, 7)).astype(dtype)
    row = list(rows)[1]
    mx.eval(row)
    assert [read_logprob(row, i) for i in range(7)] == [row[i].item() for i in range(7)]


def test_who_comes_later_does_not_wait_for_those_before() -> None:
    endless = {"max_tokens": 4000, "logit_bias": {str(i): -100 for i in range(4)}}
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as serving:
        running = [stream(serving, {"messages": [user("hi")]} | endless) for _ in range(5)]
        for answer in running:
            next(answer)
        assert Client(serving.url).chat("hi", max_tokens=2).status == 200
        assert serving.busy >= len(running)  # the one that was answered may still be leaving
        for answer in running:
            answer.close()
