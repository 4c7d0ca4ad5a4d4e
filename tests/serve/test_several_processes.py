"""A server whose model lies in several processes."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import ranks_of, started
from serving import CHAT, Client, free_port, memory_files
from tiny import strong_pair, tiny_model_folder

import deltamem_mlx as dm
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

TURNS = [f"I am at {place}." for place in ("home", "sea", "work")]
FLAGS = [pytest.param([], marks=pytest.mark.slow), ["--pipeline"]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and an adapter."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_model_folder(folder / "model", "qwen3_moe", num_hidden_layers=4)
    dm.save_adapter(strong_pair(folder / "model")[0], folder / "adapter")
    return folder


@contextmanager
def serving(
    pair: Path, memories: Path, *flags: str
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A server in two processes, and a client of it."""
    words = ["--model", pair / "model", "--adapter", pair / "adapter", "--memory-dir", memories]
    port = free_port()
    with started("-m", "deltamem_mlx", "serve", "--port", str(port), *words, *flags) as program:
        assert program.stdout is not None
        assert program.stdout.readline().strip() == f"http://127.0.0.1:{port}"
        yield program, Client(f"http://127.0.0.1:{port}")


def talk(client: Client, session: str, said: dict[str, list]) -> None:
    """A few turns of one session."""
    for text in TURNS:
        reply = client.chat(f"{session}: {text}", session, max_tokens=8, temperature=0.0)
        assert reply.status == 200, reply.body
        said.setdefault(session, []).append((reply.text, reply.memory["total_tokens_written"]))


def everyone(client: Client, *, together: bool) -> dict[str, list]:
    """What all sessions are answered, at once or one after another."""
    said: dict[str, list] = {}
    threads = [
        threading.Thread(target=talk, args=(client, name, said)) for name in ("a", "b", "c", "d")
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


@pytest.mark.parametrize("flags", FLAGS)
def test_a_server_in_two_processes_answers_as_one_does(
    flags: list[str], pair: Path, tmp_path: Path
) -> None:
    with serving(pair, tmp_path, *flags) as (program, client):
        answered = everyone(client, together=True)
        leave_early(client)
        began = time.monotonic()
        assert client.chat("Still there?", "a", max_tokens=4).status == 200
        assert time.monotonic() - began < 20
        assert client.chat("No memory.", max_tokens=4).status == 200
        processes = ranks_of(program.pid)
        os.kill(processes[0], signal.SIGINT)
        _, notes = program.communicate(timeout=30)
        assert "Error" not in notes
    files = memory_files(tmp_path)
    assert len(files) == 4  # who left early has none
    model, tokenizer = dm.load(pair / "model", pair / "adapter")
    for path in files:
        dm.load_memory(path, model)
    settings = ServeSettings(port=0)
    with Server(model, tokenizer, "model", settings) as one:
        assert everyone(Client(one.url), together=False) == answered


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--pipeline"]])
def test_where_a_process_dies_the_server_ends_and_what_was_acknowledged_is_kept(
    flags: list[str], pair: Path, tmp_path: Path
) -> None:
    with serving(pair, tmp_path, *flags) as (program, client):
        reply = client.chat("I am Ann.", "ann", max_tokens=8)
        assert reply.status == 200
        asking = threading.Thread(target=answered_or_not, args=(client,))
        asking.start()
        time.sleep(1.0)
        os.kill(ranks_of(program.pid)[1], signal.SIGKILL)
        began = time.monotonic()
        _, notes = program.communicate(timeout=60)
        assert time.monotonic() - began < 10
        asking.join()
        assert notes.count("Error: ") == 1, notes
        assert "rocess" in notes
    (file,) = memory_files(tmp_path)
    assert read_memory(file).tokens_written == [reply.memory["total_tokens_written"]]


def answered_or_not(client: Client) -> None:
    """Ask for a long answer, which is not to come."""
    try:
        client.chat("On and on.", "ann", max_tokens=3000)
    except OSError:
        return
