"""Whatever a client sends, the server answers it or refuses it, and goes on."""

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import Fuzzed, Fuzzer
from serving import Client, server

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

# Small, so that no request takes long.
LIMITS = {
    "max_tokens": 2,
    "max_tokens_limit": 16,
    "max_prompt_tokens": 300,
    "max_body_bytes": 60_000,
    "request_timeout": 10.0,
    "wait": 5.0,
}
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"  # to who expects it; the answer follows
FACT, QUESTION = "anna lives in oslo .", "where does anna live ?"


def sent(client: Client, request: Fuzzed) -> bytes:
    """What the server says to these bytes, all of it."""
    address = (client.host, client.port)
    said = b""
    with socket.create_connection(address, timeout=60) as connection:
        try:
            connection.sendall(request.raw)
            if not request.whole:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                said += part
        except ConnectionError:
            pass  # closed before it had taken all
    return said.removeprefix(GO_ON)


def assert_is_an_answer(said: bytes, request: Fuzzed) -> None:
    """A status that is not the server's fault; errors in OpenAI's form."""
    if not said:
        assert not request.whole, request.raw
        return
    head, _, body = said.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 200 <= status < 500, (request.raw, said)
    assert b"Traceback" not in said and b'File "' not in said, (request.raw, said)
    if status >= 400 and not request.raw.startswith(b"HEAD "):
        assert json.loads(body)["error"]["message"], (request.raw, said)


def fuzz(client: Client, seed: int, count: int) -> int:
    """Sends so many requests; returns how many were answered with success."""
    file = client.memory("GET", "kept", "/export").body
    fuzzer, good = Fuzzer(seed, file), 0
    for _ in range(count):
        request = fuzzer.request()
        said = sent(client, request)
        assert_is_an_answer(said, request)
        good += said[9:12] in (b"200", b"201")
    return good


def assert_goes_on(client: Client, folder: Path) -> None:
    """It remembers what it is told, and its folder has memory files only."""
    client.chat(FACT, "after", memory={"reset": True}, max_tokens=2)
    reply = client.chat(QUESTION, "after", memory={"context": "drop"}, max_tokens=12)
    assert "oslo" in reply.text
    files = [path for path in folder.iterdir() if path.name != ".lock"]
    assert len(files) > 1
    for path in files:
        assert re.fullmatch(r"[0-9a-f]{64}\.safetensors", path.name)
        assert path.stat().st_mode & 0o777 == 0o600
        assert read_memory(path).states


def test_odd_requests_are_refused_in_words(tmp_path: Path) -> None:
    pair = dm.load(str(builtin.base_folder()), str(builtin.adapter_folder()))
    settings = ServeSettings(port=0, memory_dir=tmp_path, **LIMITS)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        client.chat(FACT, "kept", max_tokens=2)
        good = fuzz(client, seed=0, count=300)
        assert 30 < good < 200
        assert_goes_on(client, tmp_path)


@pytest.mark.slow
def test_thousands_of_odd_requests_from_many_clients(tmp_path: Path) -> None:
    limits = [f"--{name.replace('_', '-')}={value}" for name, value in LIMITS.items()]
    folder, log = tmp_path / "memories", tmp_path / "log"
    failed: list[BaseException] = []

    def guarded(seed: int) -> Callable[[], None]:
        def run() -> None:
            try:
                fuzz(client, seed, 700)
            except BaseException as error:
                failed.append(error)

        return run

    with server("--memory-dir", folder, "--log-format", "json", *limits, log=log) as (process, url):
        client = Client(url)
        client.chat(FACT, "kept", max_tokens=2)
        threads = [threading.Thread(target=guarded(seed)) for seed in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert process.poll() is None
        assert_goes_on(client, folder)
    lines = log.read_text().splitlines()
    assert len(lines) > 5000
    for line in lines:
        assert "anna" not in line and json.loads(line)["level"] in ("info", "warning"), line
