"""Log lines hold no address, no text and no key, whatever is asked and whatever fails."""

import io
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlx_lm.generate import BatchGenerator
from serving import CHAT, Client, Pair, user

from deltamem_mlx.serve.http.front import ROUTES
from deltamem_mlx.serve.log import JsonLines, TextLines
from deltamem_mlx.serve.memories import contexts, folder
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

KEY, SECRET = "sk-topsecret", "topsecret"
SAID = f"anna lives in {SECRET} ."
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TOPSECRET")


@pytest.fixture
def lines() -> Iterator[list[io.StringIO]]:
    """All that is logged by anything in this process, in both forms."""
    root, before = logging.getLogger(), logging.getLogger("deltamem_mlx.serve").level
    handlers = []
    for formatter in (TextLines(), JsonLines()):
        handlers.append(logging.StreamHandler(io.StringIO()))
        handlers[-1].setFormatter(formatter)
        root.addHandler(handlers[-1])
    logging.getLogger("deltamem_mlx.serve").setLevel(logging.DEBUG)
    yield [handler.stream for handler in handlers]
    logging.getLogger("deltamem_mlx.serve").setLevel(before)
    for handler in handlers:
        root.removeHandler(handler)


def broken(*_: object, **__: object) -> None:
    raise RuntimeError(f"failed over {SAID} {KEY}")


def full(*_: object, **__: object) -> None:
    raise OSError(28, f"No space left for {SAID}", f"/{SECRET}")


def ask_everything(client: Client) -> None:
    """Every route by every method, with secrets in its address, its headers and its body."""
    answer = {"messages": [user(SAID)], "max_tokens": 2, "memory": {"session": SECRET}}
    bodies = (
        None,
        answer,
        {"input": SAID, "max_output_tokens": 2, "conversation": SECRET},
        {"to": f"{SECRET}-2", SECRET: SAID},
        {"messages": SECRET, "temperature": SECRET},
        f'{{"messages": "{SECRET}'.encode(),
    )
    for route in (*ROUTES, "/v1/memories/{key}/%ff", f"/{SECRET}", "/v1/models/{key}"):
        path = route.replace("{key}", SECRET).replace("{id}", SECRET).replace("{item}", SECRET)
        for method in METHODS:
            for body in bodies if method in ("POST", "PUT") else bodies[:1]:
                client.request(method, f"{path}?after={SECRET}", body)
    client.request("GET", "/v1/models", headers={"Authorization": f"Bearer {SECRET}"})
    client.request("GET", "/v1/models", headers={"Origin": f"http://{SECRET}"})
    client.request("POST", CHAT, answer, {"X-Delta-Mem-Session": f"{SECRET}-other"})
    for raw in (f"{SECRET}\r\n\r\n", f"GET /{SECRET} HTTP/9.9\r\n\r\n", f"GET /{SECRET} HT"):
        with socket.create_connection((client.host, client.port)) as connection:
            connection.sendall(raw.encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)


@pytest.mark.parametrize("failing", [None, "the batch", "the disk"])
def test_no_line_holds_a_secret(
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[io.StringIO],
    failing: str | None,
) -> None:
    monkeypatch.setattr(contexts, "QUIET", 0.0)
    if failing == "the batch":
        monkeypatch.setattr(BatchGenerator, "next", broken)
    if failing == "the disk":
        monkeypatch.setattr(folder, "write_memory", full)
        monkeypatch.setattr(contexts, "write_context", full)
    settings = ServeSettings(
        port=0, memory_dir=tmp_path / "m", context_dir=tmp_path / "c", api_key=KEY
    )
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url, Authorization=f"Bearer {KEY}")
        ask_everything(client)
        (tmp_path / "m" / f"{'0' * 64}.safetensors").write_bytes(SECRET.encode())
        assert client.memory("GET", "0" * 64).status == 409
    for stream in lines:
        said = stream.getvalue().replace(serving.url, "")  # its own, in the first line
        assert said.count("\n") > 200
        for secret in (SECRET, "anna", "127.0.0.1", "localhost", str(tmp_path)):
            assert secret not in said.lower()
