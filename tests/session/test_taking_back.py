"""Turns taken back: undone, answered again, edited, branched; and answers that were drafted."""

import json
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import FIXTURES, base_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

import deltamem_mlx as dm
from deltamem_mlx.memory.packing import pack_states, unpack_states

EOS = 2
KINDS = {
    "token": dm.DeltaMemConfig(output_init="random", online_gain=1.0),
    "four states": dm.DeltaMemConfig(output_init="random", online_gain=1.0, num_state_heads=4),
    "messages": dm.DeltaMemConfig(
        output_init="random", online_gain=1.0, memory_write_granularity="message_mean"
    ),
    "sentences": dm.DeltaMemConfig(
        output_init="random", online_gain=1.0, memory_write_granularity="sentence_mean"
    ),
}
SHORT = {"max_tokens": 4}
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    return load_tokenizer(FIXTURES / "tokenizers" / "char96", eos_token_ids=[EOS])


@pytest.fixture(
    scope="module",
    params=["token", "sentences", *map(slow, ("four states", "messages"))],
)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return dm.attach(base_model("models/qwen3-tiny"), KINDS[request.param], seed=3)


@pytest.fixture(scope="module")
def token_model() -> nn.Module:
    return dm.attach(base_model("models/qwen3-tiny"), KINDS["token"], seed=3)


@pytest.fixture
def session(token_model: nn.Module, tokenizer: TokenizerWrapper) -> dm.MemorySession:
    return dm.MemorySession(token_model, tokenizer)


def states(session: dm.MemorySession) -> np.ndarray:
    return np.stack([np.array(state) for state in dm.memory_state(session.cache).values()])


def assert_same(a: dm.MemorySession, b: dm.MemorySession) -> None:
    assert a.messages == b.messages
    assert np.array_equal(states(a), states(b))
    counted = ("turns", "messages", "tokens_written")
    assert {n: a.stats()[n] for n in counted} == {n: b.stats()[n] for n in counted}


# --- one by one


def test_undo_leaves_no_trace(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    session, fresh = (dm.MemorySession(model, tokenizer, system_prompt="Be terse.") for _ in "ab")
    for each in (session, fresh):
        each.remember("Miso is a cat.")
        each.ask("Who is Miso?", **SHORT)
    session.ask("Miso is a dog.", **SHORT)
    session.remember("No, a fox.")
    taken = session.undo(2)
    assert [message["content"] for message in taken] == ["Miso is a dog.", "No, a fox."]
    assert_same(session, fresh)
    assert session.ask("And?", **SHORT) == fresh.ask("And?", **SHORT)
    assert_same(session, fresh)


def test_what_was_undone_is_put_back_until_the_next_turn(
    model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    session = dm.MemorySession(model, tokenizer, system_prompt="Be terse.")
    session.remember("Miso is a cat.")
    session.ask("Who is Miso?", **SHORT)
    session.reset()
    session.remember("Miso is a dog.")
    kept = session.fork()
    session.undo()
    session.undo(2)
    assert session.redo() == 3
    assert_same(session, kept)
    assert session.undoable() == kept.undoable()
    assert session.undo(4)
    assert session.fork().redo() == 4
    session.remember("Miso is a fox.")
    with pytest.raises(ValueError, match="There is nothing to put back"):
        session.redo()


def test_a_turn_that_fails_leaves_what_was_undone(session: dm.MemorySession) -> None:
    session.ask("b", **SHORT)
    kept = session.fork()
    session.undo()
    with pytest.raises(TypeError):
        session.ask("c", no_such_argument=1)
    assert session.redo() == 1
    assert_same(session, kept)


def test_everything_can_be_undone_and_nothing_more(session: dm.MemorySession) -> None:
    session.remember("a")
    session.ask("b", **SHORT)
    session.undo(2)
    assert not states(session).any()
    assert session.messages == []
    with pytest.raises(ValueError, match=r"1 turn cannot be taken back: none is kept"):
        session.undo()


@pytest.mark.parametrize("turns", [0, -1])
def test_how_many_turns_is_checked(session: dm.MemorySession, turns: int) -> None:
    session.remember("a")
    with pytest.raises(ValueError, match=f"turns is {turns}; expected 1 or more"):
        session.undo(turns)
    assert session.stats()["undo_turns"] == 1


def test_a_reset_and_a_rewrite_can_be_undone(session: dm.MemorySession) -> None:
    session.remember("Miso is a cat.")
    told = session.fork()
    session.reset()
    assert not states(session).any()
    session.undo()
    assert_same(session, told)
    session.rewrite([{"role": "user", "content": "other"}])
    session.ask("hm", **SHORT)
    session.undo(2)
    assert_same(session, told)


def test_regenerate_answers_the_same_question_from_before_it(session: dm.MemorySession) -> None:
    session.remember("Miso is a cat.")
    other = session.fork()
    first = session.ask("Who?", **SHORT)
    again = session.regenerate(max_tokens=7)
    assert again == other.ask("Who?", max_tokens=7)
    assert again.startswith(first)
    assert_same(session, other)


def test_regenerate_needs_an_answer(session: dm.MemorySession) -> None:
    with pytest.raises(ValueError, match="nothing to regenerate"):
        session.regenerate()
    session.remember("a")
    with pytest.raises(ValueError, match="nothing to regenerate"):
        session.regenerate()
    assert session.stats()["undo_turns"] == 1


def test_a_read_only_answer_stays_read_only_when_it_is_made_anew(
    session: dm.MemorySession,
) -> None:
    session.remember("Miso is a cat.")
    before = states(session)
    with session.read_only():
        session.ask("Who?", **SHORT)
    session.regenerate(**SHORT)
    assert np.array_equal(states(session), before)


@pytest.mark.parametrize("i", [0, 1, 2, -1, -3])
def test_an_edited_message_is_answered_as_if_nothing_had_followed(
    model: nn.Module, tokenizer: TokenizerWrapper, i: int
) -> None:
    session, fresh = (dm.MemorySession(model, tokenizer) for _ in "ab")
    words = ["one", "two", "three"]
    for word in words:
        session.ask(word, **SHORT)
    for word in words[:i]:
        fresh.ask(word, **SHORT)
    assert session.edit(i, "other", **SHORT) == fresh.ask("other", **SHORT)
    assert_same(session, fresh)
    assert session.ask("next", **SHORT) == fresh.ask("next", **SHORT)


def test_a_message_in_the_middle_of_a_turn_can_be_edited(
    token_model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    session, fresh = (dm.MemorySession(token_model, tokenizer) for _ in "ab")
    user = [{"role": "user", "content": f"u{i}"} for i in range(3)]
    reply = {"role": "assistant", "content": "a"}
    session.remember([user[0], reply, user[1], reply, user[2]])
    session.edit(1, "new", **SHORT)
    fresh.ask([user[0], reply, {"role": "user", "content": "new"}], **SHORT)
    assert np.array_equal(states(session), states(fresh))
    assert session.messages == fresh.messages


def test_a_message_that_is_still_to_be_fed_can_be_edited(
    token_model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    opening = [{"role": "user", "content": word} for word in ("one", "two")]
    session = dm.MemorySession(token_model, tokenizer, messages=opening)
    session.edit(1, "other", **SHORT)
    said = [message["content"] for message in session.messages if message["role"] == "user"]
    assert said == ["one", "other"]


@pytest.mark.parametrize("what", ["0", 0.0, True, None, [0], "x" * 5000])
def test_what_is_no_number_of_turns_or_messages_is_named(
    session: dm.MemorySession, what: object
) -> None:
    session.ask("a", max_tokens=1)
    before = session.messages
    calls: list[tuple[str, Callable[[], object]]] = [
        ("turns", lambda: session.undo(what)),
        ("i", lambda: session.edit(what, "b")),
        ("i", lambda: session.branch(what)),
    ]
    for name, call in calls:
        with pytest.raises(TypeError, match=f"^{name} is .{{1,90}}, expected a whole number"):
            call()
    assert session.messages == before
    assert session.undo(np.int32(1))


@pytest.mark.parametrize("i", [3, -4, 100])
def test_a_message_that_is_not_there_cannot_be_edited(session: dm.MemorySession, i: int) -> None:
    for word in ("one", "two", "three"):
        session.remember(word)
    kept = session.fork()
    for act in (lambda: session.edit(i, "x"), lambda: session.branch(i)):
        with pytest.raises(IndexError, match="There is no user message"):
            act()
    assert_same(session, kept)


def test_branches_are_independent(session: dm.MemorySession) -> None:
    session.ask("one", **SHORT)
    early = session.fork()
    session.ask("two", **SHORT)
    kept = session.fork()
    branch = session.branch(1)
    assert_same(branch, early)
    branch.ask("other", **SHORT)
    branch.undo()
    assert_same(session, kept)
    session.ask("three", **SHORT)
    assert_same(branch, early)


class Failing(RuntimeError):
    pass


def fail(_: mx.array) -> mx.array:
    raise Failing


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.regenerate(sampler=fail),
        lambda s: s.edit(0, "x", sampler=fail),
        lambda s: s.edit(1, "x", sampler=fail),
    ],
    ids=["regenerate", "edit the first", "edit the last"],
)
def test_what_was_taken_back_returns_where_the_new_answer_fails(
    session: dm.MemorySession, act: Callable[[dm.MemorySession], object]
) -> None:
    session.ask("one", **SHORT)
    session.ask("two", **SHORT)
    kept = session.fork()
    with pytest.raises(Failing):
        act(session)
    assert_same(session, kept)
    assert session.stats()["undo_turns"] == kept.stats()["undo_turns"] == 2
    session.undo()
    kept.undo()
    assert_same(session, kept)


def test_only_so_many_turns_are_kept(token_model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    session = dm.MemorySession(token_model, tokenizer, undo_turns=2)
    for word in ("one", "two", "three"):
        session.remember(word)
    assert session.stats()["undo_turns"] == 2
    with pytest.raises(ValueError, match=r"further back than the turns that are kept \(2\)"):
        session.edit(0, "x")
    with pytest.raises(ValueError, match=r"3 turns cannot be taken back: 2 are kept\.$"):
        session.undo(3)
    session.undo(2)
    assert [m["content"] for m in session.messages] == ["one"]
    one = session.stats()["memory_bytes"]
    small = dm.MemorySession(token_model, tokenizer, undo_bytes=2 * one)
    for word in ("one", "two", "three", "four"):
        small.remember(word)
    assert small.stats()["undo_turns"] == 2
    none = dm.MemorySession(token_model, tokenizer, undo_turns=0)
    none.remember("one")
    assert none.stats()["undo_turns"] == 0
    for bad in ({"undo_turns": -1}, {"undo_bytes": -1}):
        with pytest.raises(ValueError, match="expected 0 or more"):
            dm.MemorySession(token_model, tokenizer, **bad)


def test_64_turns_of_qwen3_4bs_memory_take_less_than_700_kilobytes() -> None:
    turn = 36 * 8 * 8 * 4
    assert 64 * turn < 700_000


def test_a_turn_that_makes_the_memory_overflow_is_taken_back(session: dm.MemorySession) -> None:
    session.remember("Miso is a cat.")
    huge = {i: mx.full(state.shape, 3e38) for i, state in dm.memory_state(session.cache).items()}
    dm.set_memory_state(session.cache, huge)
    kept = session.fork()
    for act in (session.remember, session.ask):
        with pytest.raises(ValueError, match="After this turn the memory was not finite"):
            act("more")
        assert_same(session, kept)
    session.undo()
    assert session.ask("fine again?", **SHORT)


# --- random programs against a replay of what survives

ACTIONS = st.one_of(
    st.tuples(st.just("tell"), st.sampled_from("abcde")),
    st.tuples(st.just("ask"), st.sampled_from("abcde")),
    st.tuples(st.just("undo"), st.integers(1, 3)),
    st.tuples(st.just("redo"), st.lists(st.integers(1, 2), min_size=1, max_size=2)),
    st.tuples(st.just("edit"), st.integers(-3, 3)),
    st.tuples(st.just("branch"), st.integers(-3, 3)),
    st.tuples(st.just("regenerate"), st.none()),
    st.tuples(st.just("fork"), st.none()),
    st.tuples(st.just("reload"), st.none()),
    st.tuples(st.just("reset"), st.none()),
)
Action = tuple[str, object]


def replay(model: nn.Module, tokenizer: TokenizerWrapper, turns: list[Action]) -> dm.MemorySession:
    session = dm.MemorySession(model, tokenizer)
    for what, text in turns:
        if what == "reset":
            session.reset()
        else:
            {"tell": session.remember, "ask": partial(session.ask, **SHORT)}.get(
                what, lambda _: session.forget_context()
            )(text)
    return session


def fed(turns: list[Action]) -> list[int]:
    """Places of the turns that can be taken back."""
    return [i for i, turn in enumerate(turns) if turn[0] != "forget"]


def asked(turns: list[Action]) -> list[int]:
    """Places of the turns whose messages are still said: those after the last reset."""
    start = max((i + 1 for i, turn in enumerate(turns) if turn[0] == "reset"), default=0)
    return [i for i in fed(turns) if i >= start]


def carried_out(
    session: dm.MemorySession, turns: list[Action], action: Action, folder: Path
) -> dm.MemorySession:
    """Does it to the session, and to the turns that it is to be like."""
    what, value = action
    if what in ("tell", "ask"):
        turns.append(action)
        session.remember(value) if what == "tell" else session.ask(value, **SHORT)
    elif what == "undo" and value <= len(fed(turns)):
        first = fed(turns)[-value]
        gone = any(turn[0] in ("reset", "forget") for turn in turns[first:])
        del turns[first:]
        session.undo(value)
        if gone:  # what is visible would be fed again, unwritten: as a replay cannot have it
            session.forget_context()
            turns.append(("forget", ""))
    elif what == "redo" and sum(value) <= len(fed(turns)):
        for count in value:
            session.undo(count)
        assert session.redo() == sum(value)
        session.forget_context()
        turns.append(("forget", ""))
    elif what == "reset":
        turns.append(action)
        session.reset()
    elif what in ("edit", "branch") and -len(asked(turns)) <= value < len(asked(turns)):
        del turns[asked(turns)[value] :]
        if what == "branch":
            return session.branch(value)
        turns.append(("ask", "edited"))
        session.edit(value, "edited", **SHORT)
    elif what == "regenerate" and turns and turns[-1][0] == "ask":
        session.regenerate(**SHORT)
    elif what == "fork":
        return session.fork()
    elif what == "reload":
        folder = folder / secrets.token_hex(4)
        session.save(folder)
        return dm.MemorySession.restore(folder, session.model, session.tokenizer)
    return session


def check_program(
    model: nn.Module, tokenizer: TokenizerWrapper, program: list[Action], folder: Path
) -> None:
    session, turns = dm.MemorySession(model, tokenizer), []
    for action in program:
        session = carried_out(session, turns, action, folder)
    oracle = replay(model, tokenizer, turns)
    assert_same(session, oracle)
    assert session.ask("next", **SHORT) == oracle.ask("next", **SHORT)
    assert_same(session, oracle)


PROGRAMS = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=15,
)


@PROGRAMS
@given(program=st.lists(ACTIONS, max_size=12))
def test_any_program_is_like_a_replay_of_what_survives(
    model: nn.Module, tokenizer: TokenizerWrapper, program: list[Action], tmp_path: Path
) -> None:
    check_program(model, tokenizer, program, tmp_path / "s")


@pytest.mark.slow
@settings(PROGRAMS, max_examples=400)
@given(program=st.lists(ACTIONS, max_size=20))
def test_any_of_many_programs_is_like_a_replay_of_what_survives(
    model: nn.Module, tokenizer: TokenizerWrapper, program: list[Action], tmp_path: Path
) -> None:
    check_program(model, tokenizer, program, tmp_path / "s")


def test_undo_over_a_forgotten_context_gives_the_memory_and_what_was_visible(
    session: dm.MemorySession,
) -> None:
    session.remember("one")
    session.remember("two")
    kept = states(session)
    session.forget_context()
    session.remember("three")
    session.undo()
    assert np.array_equal(states(session), kept)
    session.undo()
    assert [m["content"] for m in session.messages] == ["one"]
    assert session.ask("who?", **SHORT)


# --- on disk


def test_a_restored_session_can_be_taken_back_as_far(
    model: nn.Module, tokenizer: TokenizerWrapper, tmp_path: Path
) -> None:
    session = dm.MemorySession(model, tokenizer, system_prompt="Be terse.")
    marks = []
    for word in ("one", "two", "three"):
        marks.append(states(session))
        session.ask(word, **SHORT)
    session.save(tmp_path / "s")
    restored = dm.MemorySession.restore(tmp_path / "s", model, tokenizer)
    for mark in reversed(marks):
        restored.undo()
        assert np.array_equal(states(restored), mark)
    with pytest.raises(ValueError, match="none is kept"):
        restored.undo()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda turns: turns[0].update(messages=10**6), "beyond"),
        (lambda turns: turns[0].update(written=[-1]), "written"),
        (lambda turns: turns[1].update(new=["0"]), "new"),
        (lambda turns: turns[1].pop("here"), "here: missing"),
        (lambda turns: turns.append(5), "not an object"),
        (lambda turns: turns.append(dict(turns[-1])), "no states of these turns"),
        (lambda turns: turns[0].update(length=2**40), "length"),
    ],
    ids=["beyond", "count", "place", "missing", "kind", "one too many", "length"],
)
def test_forged_turns_are_refused(
    session: dm.MemorySession, tmp_path: Path, change: Callable[[list], object], said: str
) -> None:
    from deltamem_mlx.session import file

    session.remember("one")
    session.remember("two")
    session.save(tmp_path / "s")
    path = tmp_path / "s" / "session.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    change(values["past"]["turns"])
    path.write_text(json.dumps(values | {"checksum": file._checksum(values)}))
    with pytest.raises(ValueError, match=said):
        dm.MemorySession.restore(tmp_path / "s", session.model, session.tokenizer)


@given(
    count=st.integers(0, 5),
    seed=st.integers(0, 100),
    shape=st.sampled_from([(1, 1, 8, 8), (1, 4, 2, 2), (1, 1, 1, 1)]),
)
def test_states_are_packed_bit_for_bit(count: int, seed: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    kept = [random.normal(size=shape).astype(np.float32) for _ in range(count)]
    found = unpack_states(pack_states(kept), count, shape)
    assert all(np.array_equal(a, b) for a, b in zip(kept, found, strict=True))


def test_what_was_not_packed_is_not_unpacked() -> None:
    packed = pack_states([np.zeros((1, 1, 8, 8), np.float32)] * 3)
    for count, shape in ((2, (1, 1, 8, 8)), (4, (1, 1, 8, 8)), (3, (1, 1, 4, 4))):
        with pytest.raises(ValueError, match="another size"):
            unpack_states(packed, count, shape)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack_states(np.arange(50, dtype=np.uint8), 1, (1, 1, 8, 8))


@pytest.mark.parametrize("anew", ["reset", "rewrite"])
def test_a_session_is_saved_that_can_go_back_to_before_it_began_anew(
    session: dm.MemorySession, tmp_path: Path, anew: str
) -> None:
    """The messages from before are no part of what is said, and are kept all the same."""
    session.remember("one")
    session.ask("two", **SHORT)
    told = session.fork()
    session.reset() if anew == "reset" else session.rewrite([{"role": "user", "content": "new"}])
    session.ask("three", **SHORT)
    session.save(tmp_path / "s")
    restored = dm.MemorySession.restore(tmp_path / "s", session.model, session.tokenizer)
    assert_same(restored, session)
    restored.undo(2)
    assert_same(restored, told)
    restored.undo(2)
    assert restored.messages == []
    path = tmp_path / "s" / "session.json"
    values = json.loads(path.read_text())
    values["past"]["dropped"] = [5]
    from deltamem_mlx.session import file

    del values["checksum"]
    path.write_text(json.dumps(values | {"checksum": file._checksum(values)}))
    with pytest.raises(ValueError, match="dropped"):
        dm.MemorySession.restore(tmp_path / "s", session.model, session.tokenizer)


def test_a_message_still_to_be_fed_is_there_again_where_its_edit_fails(
    token_model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    opening = [{"role": "user", "content": word} for word in ("one", "two")]
    session = dm.MemorySession(token_model, tokenizer, messages=opening)
    with pytest.raises(Failing):
        session.edit(0, "other", sampler=fail)
    assert session.messages == opening


def test_an_edit_that_is_interrupted_is_kept_as_far_as_it_was_said(
    session: dm.MemorySession,
) -> None:
    for word in ("one", "two", "three"):
        session.ask(word, **SHORT)
    count = iter(range(100))

    def interrupted(logprobs: mx.array) -> mx.array:
        if next(count) == 3:
            raise KeyboardInterrupt
        return greedy_sampler(logprobs)

    with pytest.raises(KeyboardInterrupt):
        session.edit(0, "other", max_tokens=20, sampler=interrupted)
    said = [message["content"] for message in session.messages if message["role"] == "user"]
    assert said == ["other"]


# --- files


def test_a_path_is_read_and_a_files_name_is_no_text(
    session: dm.MemorySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Miso is a cat.")
    other = session.fork()
    for name in ("notes.txt", str(tmp_path / "notes.txt")):
        with pytest.raises(ValueError, match=r"notes.txt is a file"):
            session.remember(name)
    assert session.messages == []
    session.remember(tmp_path / "notes.txt")
    other.remember("Miso is a cat.")
    assert_same(session, other)
    session.remember("gone.txt is what I deleted.txt")


# --- drafts


def cut(layers: int) -> nn.Module:
    draft = base_model("models/qwen3-tiny")
    draft.model.layers = draft.model.layers[:layers]
    return draft


def stop_after(n: int) -> Callable[[mx.array], mx.array]:
    """Greedy, but an end token instead of what the model finds most likely after ``n`` tokens."""
    return lambda logprobs: mx.where(
        greedy_sampler(logprobs) % n == 0, mx.array([EOS]), greedy_sampler(logprobs)
    )


@pytest.mark.parametrize("layers", [1, 2, 99], ids=["one layer", "two layers", "the whole"])
@pytest.mark.parametrize("k", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 5))])
@pytest.mark.parametrize("sampler", [greedy_sampler, stop_after(3)], ids=["to the end", "stops"])
def test_a_drafted_conversation_is_the_plain_one(
    model: nn.Module, tokenizer: TokenizerWrapper, layers: int, k: int, sampler: Callable
) -> None:
    plain = dm.MemorySession(model, tokenizer, system_prompt="Be terse.")
    drafted = dm.MemorySession(model, tokenizer, system_prompt="Be terse.", draft_model=cut(layers))
    for text in ("Miso is a cat.", "Who is Miso?", "And Al?"):
        expected = plain.ask(text, max_tokens=12, sampler=sampler)
        found = drafted.ask(text, max_tokens=12, num_draft_tokens=k, sampler=sampler)
        assert found == expected
        assert drafted.stats()["tokens_written"] == plain.stats()["tokens_written"]
        assert np.allclose(states(drafted), states(plain), atol=1e-5)
    plain.forget_context()
    drafted.forget_context()
    assert drafted.ask("Who?", max_tokens=6, num_draft_tokens=k) == plain.ask("Who?", max_tokens=6)


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_drafted_answer_that_is_left_early_is_kept_as_far(
    model: nn.Module, tokenizer: TokenizerWrapper, pieces: int
) -> None:
    plain = dm.MemorySession(model, tokenizer)
    drafted = dm.MemorySession(model, tokenizer, draft_model=cut(99))
    for each in (plain, drafted):
        answer = each.stream("Hello.", max_tokens=12)
        for _ in range(pieces):
            next(answer)
        answer.close()
    assert drafted.messages == plain.messages
    assert np.allclose(states(drafted), states(plain), atol=1e-5)
    assert drafted.ask("more", max_tokens=5) == plain.ask("more", max_tokens=5)


def test_a_drafted_answer_that_is_interrupted_is_kept_as_far(
    token_model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    count = iter(range(100))

    def interrupted(logprobs: mx.array) -> mx.array:
        if next(count) == 9:
            raise KeyboardInterrupt
        return greedy_sampler(logprobs)

    drafted = dm.MemorySession(token_model, tokenizer, draft_model=cut(1))
    with pytest.raises(KeyboardInterrupt):
        drafted.ask("Hello.", max_tokens=30, sampler=interrupted)
    said = drafted.messages[-1]
    assert said["role"] == "assistant"
    plain = dm.MemorySession(token_model, tokenizer)
    answer, text = plain.stream("Hello.", max_tokens=30), ""
    while text != said["content"]:
        text += next(answer).text
    answer.close()
    assert np.allclose(states(drafted), states(plain), atol=1e-5)
    assert drafted.ask("more", max_tokens=5) == plain.ask("more", max_tokens=5)


def test_a_draft_is_not_used_where_guesses_could_not_be_taken_back(
    token_model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    """A sliding window that fills up."""
    plain = dm.MemorySession(token_model, tokenizer, max_kv_size=64)
    drafted = dm.MemorySession(token_model, tokenizer, max_kv_size=64, draft_model=cut(1))
    for text in ("Miso is a cat of mine.", "Who is Miso, and what?", "And who is Al?"):
        assert drafted.ask(text, max_tokens=12) == plain.ask(text, max_tokens=12)
        assert np.allclose(states(drafted), states(plain), atol=1e-5)


def test_a_draft_and_a_quantized_cache_do_not_go_together(
    token_model: nn.Module, tokenizer: TokenizerWrapper
) -> None:
    drafted = dm.MemorySession(token_model, tokenizer, draft_model=cut(1))
    with pytest.raises(ValueError, match="leave out kv_bits"):
        drafted.ask("hi", kv_bits=4)


def test_drafted_turns_can_be_undone(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    drafted = dm.MemorySession(model, tokenizer, draft_model=cut(1))
    drafted.ask("one", max_tokens=8)
    kept = states(drafted)
    drafted.ask("two", max_tokens=8)
    drafted.undo()
    assert np.array_equal(states(drafted), kept)
    again = drafted.fork()
    assert drafted.ask("two", max_tokens=8) == again.ask("two", max_tokens=8)
