"""Memory files that keep the last turns: gone back over by sessions, commands, servers, in turn."""

import copy
import os
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import ANSWER, FACT, QUESTION, Client, Pair, assistant, builtin_pair, user

import deltamem_mlx as dm
from deltamem_mlx.files import FileChanged
from deltamem_mlx.memory.file import MemoryFile, as_bytes, read_memory, write_memory
from deltamem_mlx.memory.history import HISTORY_BYTES, HISTORY_TURNS, MOST_TURNS
from deltamem_mlx.memory.told import Fingerprints
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

JOB, OTHER = "ben is a doctor .", "anna lives in paris ."
TEXTS = [FACT, JOB, OTHER, QUESTION]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return builtin_pair()


def same(one: MemoryFile, other: MemoryFile) -> bool:
    """Whether two memories are the same, bit for bit, and what was before them."""
    return (
        {i: s.tobytes() for i, s in one.states.items()}
        == {i: s.tobytes() for i, s in other.states.items()}
        and one.tokens_written == other.tokens_written
        and one.told == other.told
        and [t.packed.tobytes() for t in one.history] == [t.packed.tobytes() for t in other.history]
    )


def states(session: dm.MemorySession) -> mx.array:
    return mx.stack(list(dm.memory_state(session.cache).values()))


def test_turns_in_a_file_are_taken_back_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    path, session, before = tmp_path / "me.safetensors", dm.MemorySession(*pair), []
    for text in TEXTS:
        before.append(states(session))
        session.ask(text, max_tokens=4)
        session.save(path, history=3)
    assert len(read_memory(path).history) == 3
    again = dm.MemorySession.restore(path, *pair)
    assert again.stats()["undo_turns"] == 3
    for turn in (3, 2):
        assert again.undo() == []  # a file keeps no text
        assert mx.array_equal(states(again), before[turn])
    memory = dm.undo_memory_file(path, 3)
    assert memory.history == () and same(read_memory(path), memory)
    assert mx.array_equal(states(dm.MemorySession.restore(path, *pair)), before[1])
    with pytest.raises(ValueError, match=r"1 turn cannot be taken back: none is kept"):
        dm.undo_memory_file(path)
    with pytest.raises(ValueError, match="turns is 0"):
        dm.undo_memory_file(path, 0)
    with pytest.raises(FileNotFoundError):
        dm.undo_memory_file(tmp_path / "none.safetensors")


def test_a_file_keeps_turns_only_if_it_is_asked_to(pair: Pair, tmp_path: Path) -> None:
    """What nobody takes back costs nothing: the bytes are those of a file without."""
    session = dm.MemorySession(*pair)
    session.ask(FACT, max_tokens=4)
    session.save(tmp_path / "plain.safetensors")
    dm.save_memory(tmp_path / "cache.safetensors", session.cache, pair[0])
    plain, cache = (tmp_path / f"{name}.safetensors" for name in ("plain", "cache"))
    assert plain.stat().st_size == cache.stat().st_size
    assert read_memory(plain).told is None and not read_memory(plain).history
    session.save(tmp_path / "kept.safetensors", history=5)
    restored = dm.MemorySession.restore(tmp_path / "kept.safetensors", *pair)
    restored.ask(JOB, max_tokens=4)
    restored.save(tmp_path / "kept.safetensors")  # goes on keeping
    assert len(read_memory(tmp_path / "kept.safetensors").history) == 2
    restored.save(tmp_path / "kept.safetensors", history=0)
    assert not read_memory(tmp_path / "kept.safetensors").history
    with pytest.raises(ValueError, match="history is -1"):
        session.save(plain, history=-1)


def test_a_memory_taken_back_to_its_beginning_is_new(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    session = dm.MemorySession(*pair, system_prompt="be brief .")
    session.ask(FACT, max_tokens=4)
    session.save(path, history=1)
    assert dm.undo_memory_file(path).tokens_written == [0]
    fresh = dm.MemorySession(*pair, system_prompt="be brief .")
    again = dm.MemorySession.restore(path, *pair, system_prompt="be brief .")
    for one in (fresh, again):
        one.ask(FACT, max_tokens=4)
    assert mx.array_equal(states(again), states(session))
    assert again.stats()["tokens_written"] == fresh.stats()["tokens_written"]


def test_a_reset_is_undone_from_a_file(pair: Pair, tmp_path: Path) -> None:
    path, session = tmp_path / "me.safetensors", dm.MemorySession(*pair)
    session.ask(FACT, max_tokens=4)
    before = states(session)
    session.reset()
    session.ask(QUESTION, max_tokens=4)
    session.save(path, history=HISTORY_TURNS)
    assert dm.undo_memory_file(path).is_new
    dm.undo_memory_file(path)
    assert mx.array_equal(states(dm.MemorySession.restore(path, *pair)), before)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 6))]
)
def test_what_was_filed_before_is_filed_as_if_anew(pair: Pair, tmp_path: Path, seed: int) -> None:
    """A save packs only the turns since the last one; whatever was done in between."""
    choices, path = random.Random(seed), tmp_path / "me.safetensors"
    session = dm.MemorySession(*pair, undo_turns=5)
    for step in range(14):
        what = choices.choice(["ask", "ask", "remember", "undo", "reset", "set", "save", "load"])
        if what == "ask":
            session.ask(choices.choice(TEXTS), max_tokens=2)
        elif what == "remember":
            session.remember(choices.choice(TEXTS))
        elif what == "undo" and (most := session.stats()["undo_turns"]):
            session.undo(choices.randint(1, min(3, most)))
        elif what == "reset":
            session.reset()
        elif what == "set":
            held = dm.memory_state(session.cache)
            dm.set_memory_state(session.cache, {i: state * 0.5 for i, state in held.items()})
        elif what == "save":
            session.save(path, history=4)
        elif what == "load" and path.exists():
            session = dm.MemorySession.restore(path, *pair, undo_turns=5)
        session.save(path, history=4)
        by_and_by = read_memory(path)
        again = session.fork()
        again._conversation.filing = None
        again.save(tmp_path / f"{step}.safetensors", history=4)
        anew = read_memory(tmp_path / f"{step}.safetensors")
        assert len(anew.history) <= len(by_and_by.history) <= 4
        for back in range(len(anew.history) + 1):
            one, other = by_and_by.before(back), anew.before(back)
            assert same(replace(one, history=()), replace(other, history=()))


@pytest.fixture
def served(pair: Pair, tmp_path: Path) -> Callable[[list[dict]], MemoryFile]:
    """Answers each of some histories, and returns what the memory's file then holds."""

    def answer(*said: list[dict] | str, **memory: object) -> MemoryFile:
        settings = ServeSettings(port=0, memory_dir=tmp_path)
        with Server(*pair, "builtin", settings) as serving:
            client = Client(serving.url)
            for one in said:
                reply = client.chat(one, "me", memory=memory)
                assert reply.status == 200, reply.body
                answer.reply = reply
        (path,) = tmp_path.glob("[0-9a-f]*.safetensors")
        answer.path = path
        return read_memory(path)

    return answer


def test_a_session_keeps_what_a_server_stored_and_adds_to_it(pair: Pair, served) -> None:
    by_server = served(FACT)
    session = dm.MemorySession.restore(served.path, *pair)
    answer = session.ask(JOB, max_tokens=24)
    session.save(served.path)
    by_session = read_memory(served.path)
    assert by_session.told.messages[:2] == by_server.told.messages
    assert len(by_session.told.messages) == 4 and by_session.told.turns == 2
    assert same(by_session.before(), replace(by_server, note=""))
    # The server knows again what it told itself, and what the session was told after it.
    first = {"role": "assistant", "content": served.reply.text}
    said = [user(FACT), first, user(JOB), assistant(answer), user(QUESTION)]
    served(said)
    assert served.reply.memory["messages_known"] == 4 and ANSWER in served.reply.text
    served([*said[:4], user(OTHER)])  # and goes back to there
    assert served.reply.memory["turns_taken_back"] == 1
    assert same(read_memory(served.path).before(), by_session)


def test_a_session_that_goes_back_over_a_servers_turn_is_believed(pair: Pair, served) -> None:
    first = served(FACT)
    served([user(FACT), assistant(served.reply.text), user(JOB)])
    session = dm.MemorySession.restore(served.path, *pair)
    session.undo()
    session.save(served.path)
    assert same(read_memory(served.path), first)
    session.ask(OTHER, max_tokens=4)
    session.undo(2)
    session.reset()
    session.ask(OTHER, max_tokens=4)
    session.save(served.path)
    kept = read_memory(served.path)
    assert len(kept.told.messages) == 2 and kept.told.salt == first.told.salt
    assert kept.told.messages[0] == kept.told.fingerprint(user(OTHER))


def test_a_server_keeps_the_note_and_the_turns_of_a_session(pair: Pair, served) -> None:
    served(FACT)
    session = dm.MemorySession.restore(served.path, *pair)
    session.ask(JOB, max_tokens=4)
    session.save(served.path, note="a note")
    by_session = read_memory(served.path)
    by_server = served(QUESTION)
    assert by_server.note == "a note" and len(by_server.history) == 3
    assert same(by_server.before(), by_session)
    again = dm.MemorySession.restore(served.path, *pair)
    again.save(served.path)
    assert read_memory(served.path).note == "a note"
    assert same(read_memory(served.path), by_server)


def test_commands_keep_what_a_server_stored(served, call_cli) -> None:
    served(FACT)
    asked = call_cli("generate", "--memory", served.path, "--prompt", JOB, "-m", "24")
    assert asked.returncode == 0, asked.stderr
    told = read_memory(served.path)
    assert told.told.turns == 2 and len(told.history) == 2
    first = assistant(served.reply.text)
    served([user(FACT), first, user(JOB), assistant(asked.stdout.strip()), user(QUESTION)])
    assert served.reply.memory["messages_known"] == 4


def test_generate_keeps_its_last_turns_in_the_file(call_cli, tmp_path: Path, pair: Pair) -> None:
    path = tmp_path / "me.safetensors"
    for number, text in enumerate((FACT, JOB), start=1):
        assert call_cli("generate", "--memory", path, "--prompt", text).returncode == 0
        assert len(read_memory(path).history) == number
    first = copy.copy(read_memory(path)).before()
    assert same(dm.undo_memory_file(path), first)
    session = dm.MemorySession(*pair)
    session.ask(FACT, max_tokens=256)
    held = np.stack(list(first.states.values()))
    assert np.allclose(np.array(states(session)), held, atol=1e-5)


def test_a_chat_takes_back_what_a_former_one_told(call_cli, tmp_path: Path) -> None:
    path, kept = tmp_path / "me.safetensors", []
    for text in (FACT, OTHER):
        assert call_cli("chat", "--memory", path, input=f"{text}\n").returncode == 0
        kept.append(read_memory(path))
    refused = call_cli("chat", "--memory", path, input="/retry\n/edit ben is a doctor .\n")
    assert refused.stderr.count("in this chat; /undo goes back before it.") == 2
    assert same(read_memory(path), kept[1])
    undone = call_cli("chat", "--memory", path, input=f"/undo\n/undo\n{QUESTION}\n")
    assert "oslo" in undone.stdout and "1 more can be" in undone.stderr
    assert same(read_memory(path).before(), kept[0])


def test_a_file_that_changes_while_turns_are_taken_back_is_left(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltamem_mlx.memory import undo

    path, session = tmp_path / "me.safetensors", dm.MemorySession(*pair)
    session.ask(FACT, max_tokens=4)
    session.save(path, history=1)

    def read_late(name: Path) -> MemoryFile:
        found = read_memory(name)
        os.utime(name, ns=(1, 1))
        return found

    monkeypatch.setattr(undo, "read_memory", read_late)
    with pytest.raises(FileChanged):
        dm.undo_memory_file(path)
    assert len(read_memory(path).history) == 1


def made(rows: int, layers: dict[int, tuple[int, int]], seed: int) -> MemoryFile:
    numbers = np.random.default_rng(seed)
    found = {
        i: numbers.normal(size=(rows, h, r, r)).astype(np.float32) for i, (h, r) in layers.items()
    }
    return MemoryFile(
        found, "adapter", {"name": "m"}, [7 + seed] * rows, "2026-01-01", "", Fingerprints("0" * 16)
    )


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.integers(1, 3),
    layers=st.dictionaries(
        st.integers(0, 40), st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=4
    ),
    turns=st.integers(0, 9),
    kept=st.integers(0, 9),
    said=st.integers(0, 3),
)
def test_any_memory_goes_back_as_far_as_it_keeps(
    tmp_path: Path, rows: int, layers: dict, turns: int, kept: int, said: int
) -> None:
    memory = made(rows, layers, 0)
    path, chain = tmp_path / "any.safetensors", [memory]
    for seed in range(1, turns + 1):
        new = [{"role": "user", "content": f"{seed} {i}"} for i in range(said)]
        after = replace(made(rows, layers, seed), told=chain[-1].told.after([], new))
        chain.append(after.keeping(chain[-1], turns=kept))
    write_memory(path, chain[-1])
    found = read_memory(path)
    assert same(found, chain[-1]) and len(found.history) == min(turns, kept)
    for back in range(len(found.history) + 1):
        was = chain[turns - back]
        now = found.before(back)
        assert same(replace(now, history=()), replace(was, history=()))
        assert now.created == was.created
    with pytest.raises(ValueError, match="cannot be taken back"):
        found.before(len(found.history) + 1)


def test_a_history_is_bounded_in_bytes() -> None:
    memory = made(1, {i: (4, 64) for i in range(4)}, 0)
    for seed in range(1, 30):
        memory = made(1, {i: (4, 64) for i in range(4)}, seed).keeping(memory)
    assert 1 < len(memory.history) < 29
    assert sum(turn.nbytes for turn in memory.history) <= HISTORY_BYTES


def test_no_file_keeps_more_turns_than_are_read_again(tmp_path: Path) -> None:
    memory = made(1, {0: (1, 2)}, 0)
    for seed in range(1, MOST_TURNS + 5):
        memory = made(1, {0: (1, 2)}, seed).keeping(memory, turns=2 * MOST_TURNS)
    write_memory(tmp_path / "me.safetensors", memory)
    assert len(read_memory(tmp_path / "me.safetensors").history) == MOST_TURNS


def test_sixty_four_turns_of_a_qwen3_4b_are_small() -> None:
    """Its adapter has 36 layers with one state of 8 by 8 numbers."""
    shape = {i: (1, 8) for i in range(36)}
    memory = made(1, shape, 0)
    for seed in range(1, 80):
        memory = made(1, shape, seed).keeping(memory)
    assert len(memory.history) == HISTORY_TURNS
    assert sum(turn.nbytes for turn in memory.history) <= 700_000
    session = 64 * sum(state.nbytes for state in memory.states.values())  # as a session keeps them
    assert session <= 700_000


@pytest.fixture
def kept(pair: Pair, tmp_path: Path) -> Path:
    path, session = tmp_path / "kept.safetensors", dm.MemorySession(*pair)
    session.ask(FACT, max_tokens=2)
    session.ask(JOB, max_tokens=2)
    session.save(path, history=2)
    return path


def test_a_damaged_history_is_refused(kept: Path) -> None:
    whole = kept.read_bytes()
    memory = read_memory(kept)
    size = struct.unpack("<Q", whole[:8])[0]
    for place in range(8 + size, len(whole), 97):
        changed = bytearray(whole)
        changed[place] ^= 1
        kept.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match="altered or damaged"):
            read_memory(kept)
    # Meant so, and yet no history of this memory.
    wrong = {
        "unpacked": replace(memory.history[1], packed=np.zeros(3, np.uint8)),
        "larger": replace(
            memory.history[1],
            packed=made(1, {0: (2, 64)}, 1).keeping(made(1, {0: (2, 64)}, 2)).history[0].packed,
        ),
        "infinite": replace(
            memory.history[1],
            packed=replace(
                memory, states={i: np.full_like(s, np.inf) for i, s in memory.states.items()}
            )
            .keeping(memory)
            .history[-1]
            .packed,
        ),
    }
    for turn in wrong.values():
        kept.write_bytes(as_bytes(replace(memory, history=(memory.history[0], turn))))
        with pytest.raises(ValueError, match=r"damaged|finite"):
            dm.undo_memory_file(kept)
    for bad in ({"added": -1}, {"turns": "1"}, {"lost": ("x",)}, {"tokens_written": (1, 2)}):
        forged = replace(memory, history=(replace(memory.history[0], **bad),))
        kept.write_bytes(as_bytes(forged))
        with pytest.raises(ValueError, match=r"damaged: history\[0\]"):
            read_memory(kept)
