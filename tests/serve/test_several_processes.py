"""A server whose model lies in several processes."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from forked import Nursery
from launching import apart, free_ports, ranks_of, started
from serving import CHAT, Client, Reply, memory_files
from tiny import strong_pair, tiny_model_folder

import deltamem_mlx as dm
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

TURNS = [f"I am at {place}." for place in ("home", "sea")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and an adapter."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_model_folder(folder / "model", "qwen3_moe", num_hidden_layers=4)
    lower = strong_pair(folder / "model", layers=(0, 1))[0]  # a first process without a memory
    dm.save_adapter(lower, folder / "adapter")
    return folder


@contextmanager
def serving(
    pair: Path, memories: Path, *flags: str
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A server in two processes, and a client of it."""
    words = ["--model", pair / "model", "--adapter", pair / "adapter", "--memory-dir", memories]
    port = free_ports(1)
    with started("-m", "deltamem_mlx", "serve", "--port", str(port), *words, *flags) as program:
        assert program.stdout is not None
        assert program.stdout.readline().strip() == f"http://127.0.0.1:{port}"
        yield program, Client(f"http://127.0.0.1:{port}")


def talk(client: Client, session: str, said: dict[str, list], memory: dict) -> None:
    """A few turns of one session."""
    asked = {"max_tokens": 8, "temperature": 0.0, "memory": memory}
    for text in TURNS:
        reply = client.chat(f"{session}: {text}", session, **asked)
        assert reply.status == 200, reply.body
        written = reply.memory.get("strengths", [])
        words = [(message["role"], word) for message in written for word, _ in message["pieces"]]
        strengths = [strength for message in written for _, strength in message["pieces"]]
        told = reply.text, reply.memory["total_tokens_written"], words, strengths
        said.setdefault(session, []).append(told)


def everyone(client: Client, *, together: bool, **memory: bool) -> dict[str, list]:
    """What all sessions are answered, at once or one after another."""
    said: dict[str, list] = {}
    threads = [
        threading.Thread(target=talk, args=(client, name, said, memory)) for name in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
        if not together:
            thread.join()
    for thread in threads:
        thread.join()
    return said


def leave_early(client: Client) -> None:
    """Begin an answer that would go on for long, and go."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3000, "stream": True}
    body["memory"] = {"session": "left"}
    raw = json.dumps(body).encode()
    with socket.create_connection((client.host, client.port)) as connection:
        head = f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        assert connection.recv(20)
        time.sleep(0.5)


def answers_of_one_process(pair: Path, **memory: bool) -> dict[str, list]:
    model, tokenizer = dm.load(pair / "model", pair / "adapter")
    with Server(model, tokenizer, "model", ServeSettings(port=0)) as one:
        return everyone(Client(one.url), together=False, **memory)


def assert_same_answers(found: dict[str, list], expected: dict[str, list]) -> None:
    """Strengths are sums, which several processes form in another order."""
    assert found.keys() == expected.keys()
    for session, turns in expected.items():
        for (*said, strengths), (*theirs, their_strengths) in zip(
            found[session], turns, strict=True
        ):
            assert said == theirs
            ours, others = (np.array(x, float) for x in (strengths, their_strengths))
            np.testing.assert_allclose(ours, others, atol=2e-4)


def assert_kept(folder: Path, acknowledged: dict[str, int]) -> None:
    """What each memory's file holds: all turns that a client was told are over, and no others."""
    kept = sorted(read_memory(file).tokens_written for file in memory_files(folder))
    assert kept == sorted([count] for count in acknowledged.values())


def test_a_server_in_two_processes_answers_as_one_does_until_one_dies(
    pair: Path, tmp_path: Path
) -> None:
    with serving(pair, tmp_path, "--pipeline") as (program, client):
        answered = everyone(client, together=True, strengths=True)
        counts = {session: turns[-1][1] for session, turns in answered.items()}
        leave_early(client)
        reply = client.chat("Still there?", "a", max_tokens=4)
        assert reply.status == client.chat("No memory.", max_tokens=4).status == 200
        asking = threading.Thread(target=answered_or_not, args=(client,))
        asking.start()
        time.sleep(1.0)
        os.kill(ranks_of(program.pid)[1], signal.SIGKILL)
        _, notes = program.communicate(timeout=120)
        asking.join()
    assert notes.count("Error: rank 1 of this run has ended") == notes.count("Error: ") == 1, notes
    assert_kept(tmp_path, counts | {"a": reply.memory["total_tokens_written"]})
    assert_same_answers(answers_of_one_process(pair, strengths=True), answered)


@pytest.mark.slow
def test_a_server_under_tensor_parallelism_answers_as_one_process_and_ends_gracefully(
    pair: Path, tmp_path: Path
) -> None:
    with serving(pair, tmp_path) as (program, client):
        answered = everyone(client, together=True)
        leave_early(client)
        assert client.chat("No memory.", max_tokens=4).status == 200
        os.kill(ranks_of(program.pid)[0], signal.SIGINT)
        _, notes = program.communicate(timeout=120)
        assert "Error" not in notes
    assert_kept(tmp_path, {session: turns[-1][1] for session, turns in answered.items()})
    assert answers_of_one_process(pair) == answered


# Where the second process kills itself: a function that it calls, and the call.
PREFILL = "deltamem_mlx.model.attention:read_and_write", "50"
SAVE = "deltamem_mlx.serve.turns.turn:memory_state", "3"
NEVER = "deltamem_mlx.serve.turns.turn:memory_state", "1000"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "flags"),
    [
        (PREFILL, ["--pipeline"]),
        (PREFILL, []),
        (SAVE, ["--pipeline"]),
        (SAVE, []),
        (NEVER, ["--pipeline"]),
        (NEVER, []),
    ],
)
def test_whenever_a_process_dies_the_server_ends_and_what_was_acknowledged_is_kept(
    when: tuple[str, str], flags: list[str], pair: Path, tmp_path: Path, nursery: Nursery
) -> None:
    words = ["--model", pair / "model", "--adapter", pair / "adapter", "--memory-dir", tmp_path]
    flags = [*flags, "--prefill-step-size", "8", "--port", "0"]
    program = ROOT / "tests/helpers/dying.py"
    with apart(nursery, program, 1, *when, "serve", *words, *flags) as (first, second):
        assert first.stdout is not None
        client = Client(first.stdout.readline().strip())
        replies = [client.chat(f"Turn {i}.", "ann", max_tokens=4) for i in range(2)]
        assert [reply.status for reply in replies] == [200, 200]
        if when is NEVER:
            time.sleep(1.0)  # with nothing to do
            second.kill()
        else:
            late = answered_or_not(client, "x" * (100 if when is PREFILL else 10), most=40)
            if late is not None and late.status == 200:
                # By tensor parallelism the first process has all of a memory: where the other
                # dies as it saves, the turn may be over for the client.
                assert when is SAVE and "--pipeline" not in flags
                replies.append(late)
        assert second.wait(timeout=120) == -signal.SIGKILL
        notes = first.communicate(timeout=120)[1]
        assert first.returncode == 1
    assert notes.count("Error: rank 1 of this run has ended") == notes.count("Error: ") == 1, notes
    assert_kept(tmp_path, {"ann": replies[-1].memory["total_tokens_written"]})


def answered_or_not(client: Client, text: str = "On and on.", most: int = 3000) -> Reply | None:
    """Ask for an answer, which may not come; a long one unless ``most`` is few tokens."""
    with suppress(OSError):
        return client.chat(text, "ann", max_tokens=most)
    return None
