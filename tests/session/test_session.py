"""A conversation turn by turn: what is fed and written, forgotten, undone and shared."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import FIXTURES, GOLDEN, TOLERANCE, base_model, read_case
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.session import context

EOS, NEWLINE = 2, 67
SYSTEM = "Be terse."
GRANULARITIES = ("token", "message_mean", "sentence_mean")

Call = list[int]


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    return load_tokenizer(FIXTURES / "tokenizers" / "char96", eos_token_ids=[EOS])


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Tiny models by granularity, with random adapters that change what they say."""
    return {granularity: adapted(granularity) for granularity in GRANULARITIES}


@pytest.fixture(scope="module")
def model(models: dict[str, nn.Module]) -> nn.Module:
    return models["token"]


def adapted(granularity: str = "token", base: nn.Module | None = None) -> nn.Module:
    config = dm.DeltaMemConfig(
        output_init="random", online_gain=1.0, memory_write_granularity=granularity
    )
    return dm.attach(base or base_model("models/qwen3-tiny"), config, seed=3)


@pytest.fixture
def session(model: nn.Module, tokenizer: TokenizerWrapper) -> dm.MemorySession:
    return dm.MemorySession(model, tokenizer)


def states(session: dm.MemorySession) -> np.ndarray:
    return np.stack([np.array(state) for state in dm.memory_state(session.cache).values()])


def distance(a: dm.MemorySession, b: dm.MemorySession) -> float:
    return float(np.abs(states(a) - states(b)).max())


def same(a: dm.MemorySession, b: dm.MemorySession) -> bool:
    return np.array_equal(states(a), states(b))


def end_after(n: int) -> Callable[[mx.array], mx.array]:
    """A greedy sampler that generates the end token after ``n`` others."""
    count = iter(range(10**6))
    return lambda logprobs: greedy_sampler(logprobs) if next(count) < n else mx.array([EOS])


class Recorder:
    """The tokens of every model call, and the ids of every ingest."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[Call] = []
        self.ids: list[tuple[list[list[int]], list[list[int]] | None]] = []
        forward, spans = type(model).__call__, context.write_spans

        def call(model: nn.Module, tokens: mx.array, **kwargs: object) -> mx.array:
            self.calls.append(tokens[0].tolist())
            return forward(model, tokens, **kwargs)

        def write_spans(cache: list, message_ids: list, sentence_ids: list | None) -> object:
            self.ids.append((message_ids, sentence_ids))
            return spans(cache, message_ids, sentence_ids)

        monkeypatch.setattr(type(model), "__call__", call)
        monkeypatch.setattr(context, "write_spans", write_spans)

    @property
    def tokens(self) -> Call:
        return [token for call in self.calls for token in call]

    def clear(self) -> None:
        self.calls.clear()
        self.ids.clear()


# --- the authors' sessions


@pytest.mark.parametrize("name", ["session_token", "ssw_message_mean", "ssw_sentence_mean"])
def test_golden_session(
    name: str, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, expected = read_case(name)
    model = dm.load_adapter(base_model(case["model"]), GOLDEN / name / "adapter")
    fed = Recorder(model, monkeypatch)
    talk = case["session"]
    session = dm.MemorySession(model, tokenizer, messages=talk["opening_messages"])
    done = 0
    for turn in talk["turns"]:
        if "user" in turn:
            with nullcontext() if turn["write_enabled"] else session.read_only():
                reply = session.ask(turn["user"], max_tokens=turn["max_new_tokens"])
            assert reply == turn["generated_text"]
            steps = case["steps"][done : done + turn["steps"]]
        else:
            messages = session.messages
            messages[turn["edited_message_index"]]["content"] = turn["new_content"]
            session.rewrite(messages[:-1])
            session.remember(messages[-1])
            steps = case["steps"][done:]
        assert fed.tokens == [token for step in steps for token in step["input_ids"][0]]
        ingests = [step for step in steps if len(step["input_ids"][0]) > 1]
        sentences = name == "ssw_sentence_mean"
        assert fed.ids == [
            (step["write_message_ids"], step["write_sentence_ids"] if sentences else None)
            for step in ingests
            if name != "session_token"
        ]
        for layer, state in dm.memory_state(session.cache).items():
            wanted = expected[f"{steps[-1]['name']}.layer{layer}.state"]
            error = np.abs(np.array(state)[:, 0] - wanted).max()
            assert error <= TOLERANCE["forward"]["state_abs"], (turn, layer)
        done += len(steps)
        fed.clear()
    assert done == len(case["steps"])
    assert session.messages == talk["final_messages"]


# --- what a turn feeds


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("length", [0, 1, 4])
def test_an_end_token_is_written_as_part_of_the_end(
    length: int, granularity: str, models: dict[str, nn.Module], tokenizer: TokenizerWrapper
) -> None:
    model = models[granularity]
    ended = dm.MemorySession(model, tokenizer)
    text = ended.ask("Hi.", sampler=end_after(length))
    assert ended.messages[-1] == {"role": "assistant", "content": text}
    by_hand = dm.MemorySession(model, tokenizer)
    prompt = dm.message_spans(
        tokenizer, ended.messages[:1], add_generation_prompt=True, sentences=True
    )
    cache = by_hand.cache
    with dm.write_spans(cache, [prompt.message_ids], [prompt.sentence_ids]):
        model(mx.array([prompt.token_ids]), cache=cache)
    for token in tokenizer.encode(text, add_special_tokens=False):
        model(mx.array([[token]]), cache=cache)
    with dm.write_spans(cache, [[1, 1]], [[-1, -1]]):
        model(mx.array([[EOS, NEWLINE]]), cache=cache)
    assert distance(ended, by_hand) < 2e-5
    assert cache[0].kv.offset == ended.cache[0].kv.offset
    if granularity == "message_mean":
        # One-token writes instead of one mean: this is how much that would matter.
        model(mx.array([[EOS]]), cache=cache)
        assert distance(ended, by_hand) > 1e-3


def test_each_token_is_fed_once(
    model: nn.Module, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Recorder(model, monkeypatch)
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM)
    for question in ("My name is Al.", "Who?", "Sure?"):
        session.ask(question, max_tokens=3)
    spans = dm.message_spans(tokenizer, session.messages)
    assert fed.tokens == spans.token_ids
    assert session.stats()["tokens_written"] == session.stats()["context_tokens"] == len(fed.tokens)


def test_a_reply_that_tokenizes_otherwise_is_not_fed_again(
    model: nn.Module, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = tokenizer.unk_token_id  # shown as a token name, which reads as several characters
    session = dm.MemorySession(model, tokenizer)
    session.ask("Hi.", max_tokens=2, sampler=lambda _: mx.array([unknown]))
    fed = Recorder(model, monkeypatch)
    session.ask("Who?", max_tokens=1)
    new = dm.message_spans(
        tokenizer, [{"role": "user", "content": "Who?"}], add_generation_prompt=True
    )
    assert fed.tokens[: len(new.token_ids)] == new.token_ids


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_chunks_of_the_prompt_change_nothing(
    granularity: str, models: dict[str, nn.Module], tokenizer: TokenizerWrapper
) -> None:
    text = "One. Two? Three!"
    whole, cut = (dm.MemorySession(models[granularity], tokenizer) for _ in range(2))
    whole.remember(text)
    whole.ask(text, max_tokens=3)
    cut.remember(text, prefill_step_size=5)
    cut.ask(text, max_tokens=3, prefill_step_size=3)
    assert cut.messages == whole.messages
    assert distance(whole, cut) < 1e-4


def test_messages_can_be_results_of_tools(session: dm.MemorySession) -> None:
    session.ask("Weather?", max_tokens=2)
    session.ask([{"role": "tool", "content": "rain"}], max_tokens=2)
    assert [m["role"] for m in session.messages] == ["user", "assistant", "tool", "assistant"]


# --- the memory outlives the context


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_forgetting_keeps_the_memory_and_the_system_prompt(
    granularity: str,
    models: dict[str, nn.Module],
    tokenizer: TokenizerWrapper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models[granularity]
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM)
    session.ask("My name is Al.", max_tokens=3)
    before = states(session)
    by_hand = make_prompt_cache(model)
    dm.set_memory_state(by_hand, dm.memory_state(session.cache))
    session.forget_context()
    assert np.array_equal(states(session), before)
    assert session.stats()["context_tokens"] == 0
    fed = Recorder(model, monkeypatch)
    session.remember("I live in Rome. It rains.")
    system = [{"role": "system", "content": SYSTEM}]
    spans = dm.message_spans(tokenizer, [*system, session.messages[-1]], sentences=True)
    assert fed.tokens == spans.token_ids
    assert len(session.messages) == 4
    # The system prompt is read, not written a second time.
    start = len(dm.message_spans(tokenizer, system).token_ids)
    new = spans.tail(start)
    with dm.read_only(by_hand):
        model(mx.array([spans.token_ids[:start]]), cache=by_hand)
    with dm.write_spans(by_hand, [new.message_ids], [new.sentence_ids]):
        model(mx.array([new.token_ids]), cache=by_hand)
    for layer, state in dm.memory_state(by_hand).items():
        assert mx.allclose(state, dm.memory_state(session.cache)[layer], atol=2e-5)


def test_remembered_text_is_answered_from_the_memory(
    model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    told, untold = (dm.MemorySession(model, tokenizer) for _ in range(2))
    assert told.remember("My cat is Miso.") == told.stats()["tokens_written"]
    told.forget_context()
    with told.read_only(), untold.read_only():
        first = [next(session.stream("Who?")).logprobs for session in (told, untold)]
    assert mx.abs(first[0] - first[1]).max().item() > 0.1


def test_a_context_budget_keeps_the_newest_turns(
    model: nn.Module, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM, max_context=160)
    fed = Recorder(model, monkeypatch)
    lengths, forgotten = [], 0
    for i in range(12):
        fed.clear()
        session.ask(f"Turn {i}.", max_tokens=2)
        lengths.append(session.stats()["context_tokens"])
        if fed.tokens[0] == 1 and "system" in tokenizer.decode(fed.tokens) and i:
            forgotten += 1
            text = tokenizer.decode(fed.tokens)
            assert f"Turn {i - 1}." in text
            assert "Turn 0." not in text
    assert forgotten >= 2
    assert max(lengths) <= 160
    # Nothing is written twice: all that was said, once.
    spans = dm.message_spans(tokenizer, session.messages)
    assert session.stats()["tokens_written"] == len(spans.token_ids)


def test_a_message_larger_than_the_budget_is_fed_alone(
    model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    session = dm.MemorySession(model, tokenizer, max_context=20)
    session.ask("Hi.", max_tokens=2)
    session.ask("A long question, longer than the budget?", max_tokens=2)
    assert session.stats()["turns"] == 2


def test_sliding_window(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    session = dm.MemorySession(model, tokenizer, max_kv_size=24)
    for _ in range(3):
        session.ask("Who is that? Who?", max_tokens=4, sampler=end_after(3))
    assert session.cache[0].kv.size() == 24
    assert session.stats()["tokens_written"] == len(
        dm.message_spans(tokenizer, session.messages).token_ids
    )


def test_quantized_kv_cache(tokenizer: TokenizerWrapper) -> None:
    session = dm.MemorySession(adapted(base=tiny_model(head_dim=32)), tokenizer)
    for _ in range(2):
        session.ask("Who?", max_tokens=3, kv_bits=8, kv_group_size=32, quantized_kv_start=0)
    assert isinstance(session.cache[0].kv, QuantizedKVCache)
    session.forget_context()
    assert session.ask("Who?", max_tokens=3)
    assert np.isfinite(states(session)).all()


# --- reading, branching, beginning again


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_read_only_turns_leave_no_trace_in_the_memory(
    granularity: str, models: dict[str, nn.Module], tokenizer: TokenizerWrapper
) -> None:
    session = dm.MemorySession(models[granularity], tokenizer)
    session.ask("My name is Al.", max_tokens=3)
    before, context = states(session), session.stats()["context_tokens"]
    with session.read_only():
        session.ask("Who?", max_tokens=4, sampler=end_after(2))
        session.remember("Not this.")
    assert np.array_equal(states(session), before)
    assert session.stats()["context_tokens"] > context
    session.remember("But this.")
    assert not np.array_equal(states(session), before)


def test_what_was_said_read_only_is_never_written(
    model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM, max_context=150)
    with session.read_only():
        session.ask("Secret one.", max_tokens=2)
    for text in ("Two.", "Three.", "Four."):  # the budget has the context fed again
        session.ask(text, max_tokens=2)
    open_messages = [m for m in session.messages[3:]]
    written = len(dm.message_spans(tokenizer, open_messages).token_ids)
    assert session.stats()["tokens_written"] == written


def test_a_fork_is_independent(session: dm.MemorySession) -> None:
    session.ask("My name is Al.", max_tokens=3)
    before, messages = states(session), session.messages
    fork = session.fork()
    assert same(fork, session)
    first = fork.ask("Who?", max_tokens=6)
    assert np.array_equal(states(session), before)
    assert session.messages == messages
    assert session.ask("Who?", max_tokens=6) == first
    assert same(fork, session)


def test_a_fork_of_a_fresh_session_keeps_its_opening(
    model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM)
    fork = session.fork()
    session.ask("Hi.", max_tokens=2)
    fork.ask("Hi.", max_tokens=2)
    assert fork.messages == session.messages
    assert same(fork, session)


def test_reset_begins_anew(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM)
    first = session.ask("Hi.", max_tokens=4)
    session.reset()
    assert session.messages == [{"role": "system", "content": SYSTEM}]
    assert not states(session).any()
    assert session.ask("Hi.", max_tokens=4) == first


def test_correct_tells_the_new_fact_last(session: dm.MemorySession) -> None:
    session.correct("Al lives in Rome.", "Al lives in Oslo.")
    assert session.messages[-1]["content"].endswith("Al lives in Oslo.")


def test_goes_on_with_the_memory_of_a_prompt_cache(
    model: nn.Module, tokenizer: TokenizerWrapper, session: dm.MemorySession
) -> None:
    session.remember("My cat is Miso.")
    cache = make_prompt_cache(model)
    dm.set_memory_state(cache, dm.memory_state(session.cache))
    session.forget_context()
    going_on = dm.MemorySession(model, tokenizer, prompt_cache=cache)
    assert going_on.ask("Who?", max_tokens=5) == session.ask("Who?", max_tokens=5)
    with pytest.raises(ValueError, match="forget_context"):
        dm.MemorySession(model, tokenizer, prompt_cache=going_on.cache)


def test_stats(session: dm.MemorySession) -> None:
    assert session.stats()["memory_bytes"] == 0
    session.ask("Hi.", max_tokens=2)
    stats = session.stats()
    assert (stats["turns"], stats["messages"]) == (1, 2)
    assert stats["memory_bytes"] == 3 * 8 * 8 * 4
    for layer, numbers in stats["layers"].items():
        state = np.array(dm.memory_state(session.cache)[layer])
        assert numbers["norm"] == pytest.approx(np.linalg.norm(state), rel=1e-5)
        assert 1 <= numbers["effective_rank"] <= 8


# --- interrupted and failed turns


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_closing_early_keeps_what_was_said(
    granularity: str, models: dict[str, nn.Module], tokenizer: TokenizerWrapper
) -> None:
    model = models[granularity]
    closed, whole = (dm.MemorySession(model, tokenizer) for _ in range(2))
    said = ""
    for n, response in enumerate(closed.stream("Hi.", max_tokens=20)):
        said += response.text
        if n == 2:
            break
    whole.ask("Hi.", max_tokens=3)
    assert closed.messages == whole.messages
    assert closed.messages[-1]["content"] == said
    assert same(closed, whole)
    assert closed.ask("Who?", max_tokens=4) == whole.ask("Who?", max_tokens=4)


def test_a_stream_left_open_is_closed_by_the_next_turn(session: dm.MemorySession) -> None:
    stream = session.stream("Hi.", max_tokens=20)
    first = next(stream).text
    session.ask("Who?", max_tokens=2)
    assert [m["content"] for m in session.messages[:3]] == ["Hi.", first, "Who?"]
    assert list(stream) == []
    session.ask("Who?", max_tokens=2)


def test_a_stream_never_begun_says_nothing(session: dm.MemorySession) -> None:
    session.stream("Hi.")
    assert session.messages == []
    assert session.ask("Hi.", max_tokens=2)


def failing(error: BaseException, after: int) -> Callable[[mx.array], mx.array]:
    count = iter(range(10**6))

    def sample(logprobs: mx.array) -> mx.array:
        if next(count) == after:
            raise error
        return greedy_sampler(logprobs)

    return sample


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_failed_turn_is_undone(
    after: int, granularity: str, models: dict[str, nn.Module], tokenizer: TokenizerWrapper
) -> None:
    model = models[granularity]
    failed, other = (dm.MemorySession(model, tokenizer, system_prompt=SYSTEM) for _ in range(2))
    for session in (failed, other):
        session.ask("My name is Al.", max_tokens=3)
    with pytest.raises(OSError, match="disk"):
        failed.ask("Who?", sampler=failing(OSError("disk"), after))
    assert failed.messages == other.messages
    assert same(failed, other)
    assert failed.ask("Who?", max_tokens=4) == other.ask("Who?", max_tokens=4)
    assert same(failed, other)


def test_a_failed_first_turn_is_undone(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    failed, other = (dm.MemorySession(model, tokenizer, system_prompt=SYSTEM) for _ in range(2))
    with pytest.raises(OSError, match="disk"):
        failed.ask("Who?", sampler=failing(OSError("disk"), 2))
    assert failed.messages == [{"role": "system", "content": SYSTEM}]
    assert failed.ask("Hi.", max_tokens=4) == other.ask("Hi.", max_tokens=4)
    assert same(failed, other)


def test_a_turn_that_made_room_and_failed_is_undone(
    model: nn.Module, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = lambda: dm.MemorySession(model, tokenizer, max_context=200)  # noqa: E731
    failed, other = make(), make()
    for session in (failed, other):
        for text in ("My name is Al.", "I live in Rome."):
            session.ask(text, max_tokens=3)
    with pytest.raises(OSError, match="disk"):
        failed.ask("x" * 100, max_tokens=20, sampler=failing(OSError("disk"), 2))
    assert same(failed, other)
    assert failed.messages == other.messages
    # What was visible before is fed again.
    fed = Recorder(model, monkeypatch)
    failed.ask("Who?", max_tokens=3)
    assert fed.tokens == dm.message_spans(tokenizer, failed.messages).token_ids


@pytest.mark.parametrize("window", [None, 24])
def test_a_key_pressed_in_the_middle_of_a_step(
    window: int | None, model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    stopped, whole = (dm.MemorySession(model, tokenizer, max_kv_size=window) for _ in range(2))
    for session in (stopped, whole):
        session.ask("My name is Al.", max_tokens=3)
    with pytest.raises(KeyboardInterrupt):
        stopped.ask("Who?", sampler=failing(KeyboardInterrupt(), 4))
    whole.ask("Who?", max_tokens=3)
    assert stopped.messages == whole.messages
    if window is None:
        assert same(stopped, whole)
    # A full window cannot go back: all that is visible is fed again.
    assert stopped.ask("Sure?", max_tokens=3)
    spans = dm.message_spans(tokenizer, stopped.messages)
    assert stopped.stats()["context_tokens"] == len(spans.token_ids)


def test_a_hybrid_model_goes_on_after_an_error(tokenizer: TokenizerWrapper) -> None:
    model = adapted(base=tiny_model("qwen3_next"))
    failed, other = (dm.MemorySession(model, tokenizer) for _ in range(2))
    for session in (failed, other):
        session.ask("My name is Al.", max_tokens=3)
    with pytest.raises(OSError, match="disk"):
        failed.ask("Who?", sampler=failing(OSError("disk"), 1))
    assert same(failed, other)
    failed.ask("Who?", max_tokens=4)
    other.ask("Who?", max_tokens=4)
    assert failed.messages == other.messages
    assert distance(failed, other) < 1e-4


def test_bad_arguments_leave_the_session_usable(session: dm.MemorySession) -> None:
    with pytest.raises(TypeError, match="wombat"):
        session.ask("Hi.", wombat=1)
    with pytest.raises(ValueError, match="max_kv_size"):
        session.stream("Hi.", max_kv_size=8)
    for nothing in ("", " \n", []):
        with pytest.raises(ValueError, match="empty"):
            session.stream(nothing)
    with pytest.raises(TypeError, match=r"messages\[0\].content"):
        session.remember([{"role": "user", "content": 7}])
    assert session.messages == []
    assert session.ask("Hi.", max_tokens=2)


def test_constructor_refuses(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    with pytest.raises(ValueError, match="no δ-mem adapter"):
        dm.MemorySession(base_model("models/qwen3-tiny"), tokenizer)
    with pytest.raises(ValueError, match="max_context is 0"):
        dm.MemorySession(model, tokenizer, max_context=0)
    both = [{"role": "system", "content": "b"}]
    with pytest.raises(ValueError, match="one of them"):
        dm.MemorySession(model, tokenizer, system_prompt="a", messages=both)


# --- several at once


def talk(session: dm.MemorySession, n: int) -> Iterator[str]:
    yield session.ask(f"I am number {n}.", max_tokens=6)
    session.remember(f"Number {n} likes {'abcdefgh'[n]}.")
    yield session.ask("Who?", max_tokens=6)
    session.forget_context()
    yield session.ask("Which number?", max_tokens=6)


@pytest.mark.parametrize(
    "granularity", ["token", pytest.param("message_mean", marks=pytest.mark.slow)]
)
def test_sessions_in_threads_answer_as_one_after_the_other(
    granularity: str, tokenizer: TokenizerWrapper
) -> None:
    model = adapted(granularity)
    make = lambda: dm.MemorySession(model, tokenizer, system_prompt=SYSTEM)  # noqa: E731
    threaded = [make() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: list(talk(threaded[n], n)), range(8)))
    alone = [make() for _ in range(8)]
    assert answers == [list(talk(session, n)) for n, session in enumerate(alone)]
    assert all(map(same, threaded, alone))
    assert not any(map(same, threaded[1:], threaded))


def test_sessions_interleaved_token_by_token(session: dm.MemorySession) -> None:
    other = session.fork()
    alone = [session.fork().ask(text, max_tokens=6) for text in ("I am Al.", "I am Bo.")]
    streams = [session.stream("I am Al.", max_tokens=6), other.stream("I am Bo.", max_tokens=6)]
    pieces = list(zip(*streams, strict=True))
    texts = ["".join(r.text for r in column) for column in zip(*pieces, strict=True)]
    assert texts == alone


def test_threads_wait_for_each_others_turns(session: dm.MemorySession) -> None:
    stream = session.stream("Hi.", max_tokens=4)
    said = [next(stream).text]
    asking = threading.Thread(target=session.ask, args=("Who?",), kwargs={"max_tokens": 2})
    asking.start()
    asking.join(0.3)
    assert asking.is_alive()
    said += [response.text for response in stream]
    asking.join(300)
    assert [m["content"] for m in session.messages[:3]] == ["Hi.", "".join(said), "Who?"]
    assert session.stats()["turns"] == 2


def test_looking_on_does_not_end_a_turn(session: dm.MemorySession) -> None:
    turns = [session.stats()["turns"] for _ in session.stream("Hi.", max_tokens=4)]
    assert turns == [0] * 4


# --- long conversations


def test_many_turns_stay_in_bounds(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM, max_context=256)
    for n in range(60):
        session.ask(f"Turn {n}.", max_tokens=2)
        assert session.stats()["context_tokens"] <= 256
    assert np.isfinite(states(session)).all()
    assert session.cache[0].kv.keys.shape[2] <= 512


DEMANDS_TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.filterwarnings("ignore:.*they are merged")
def test_texts_are_told_one_after_another_though_the_template_demands_turns(
    granularity: str, models: dict[str, nn.Module]
) -> None:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "char96", eos_token_ids=[EOS])
    tokenizer.chat_template = DEMANDS_TURNS
    session = dm.MemorySession(models[granularity], tokenizer)
    texts = ["Anna: Oslo.", "Ben: Rome.", "Cleo: Bonn."]
    written = []
    for new in ([{"role": "user", "content": text} for text in texts[:2]], texts[2]):
        assert session.remember(new) > len(texts[2])
        written.append((session.stats()["tokens_written"], states(session)))
    session.ask("Who is where?", max_tokens=3)
    written.append((session.stats()["tokens_written"], states(session)))
    assert written[0][0] < written[1][0] < written[2][0]
    assert not any(np.array_equal(a, b) for (_, a), (_, b) in pairwise(written))
    session.forget_context()
    session.ask("Who?", max_tokens=3)
    assert [m["content"] for m in session.messages if m["role"] == "user"][:3] == texts
