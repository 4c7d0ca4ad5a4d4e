"""Talking to a server in tests: requests with the standard library, and what comes back."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from safetensors.numpy import load

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.serve.server import Server

Pair = tuple[nn.Module, TokenizerWrapper]
SESSION = "X-Delta-Mem-Session"
CHAT = "/v1/chat/completions"
FACT, QUESTION, ANSWER = "anna lives in oslo .", "where does anna live ?", "oslo"
UNKNOWN = "do not know"
ENDLESS = {  # an answer that goes on until it has as many tokens
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 4000,
    "logit_bias": {str(i): -100 for i in range(4)},
}
HELLO = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}


def builtin_pair() -> Pair:
    """The model that most of these tests serve."""
    return dm.load(str(builtin.base_folder()), str(builtin.adapter_folder()))


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


class Reply(NamedTuple):
    """A response: status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """What the assistant said."""
        return self.json["choices"][0]["message"]["content"]

    @property
    def memory(self) -> dict:
        """The memory's part of the usage."""
        return self.json["usage"]["memory"]

    @property
    def code(self) -> str | None:
        """The code of an error in OpenAI's form."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error["code"]


class Client:
    """Requests to one server, each on a connection of its own."""

    def __init__(self, url: str, **headers: str):
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port
        self.headers = headers

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> Reply:
        """Send ``body`` as it is if it is bytes, else as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, raw, self.headers | (headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def chat(self, said: object, session: str | None = None, **body: object) -> Reply:
        """Ask with a text or messages; ``memory={...}`` and other fields of the body as given."""
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        if session is not None:
            body["memory"] = {"session": session} | body.get("memory", {})
        body = {"messages": messages, "max_tokens": 24} | body
        return self.request("POST", "/v1/chat/completions", body)

    def memory(self, method: str, key: str, rest: str = "", body: object = None) -> Reply:
        """A request to ``/v1/memories/{key}``."""
        return self.request(method, f"/v1/memories/{quote(key, safe='')}{rest}", body)


def until(found: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 120
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def states_in(file: bytes) -> dict[int, np.ndarray]:
    """Layer index → the states in the bytes of a memory file."""
    names = {name: x for name, x in load(file).items() if name.startswith("state.")}
    return {int(name.removeprefix("state.")): x for name, x in names.items()}


def memory_files(folder: Path) -> list[Path]:
    """The files of a server's memories."""
    return sorted(folder.glob("[0-9a-f]*.safetensors"))


def stream(serving: Server, body: dict) -> Iterator[tuple[float, bytes]]:
    """(time, line) of a streamed answer as the lines arrive."""
    raw = json.dumps({"stream": True} | body).encode()
    with socket.create_connection(serving.http.server_address[:2]) as connection:
        head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        with connection.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"data: "):
                    yield time.monotonic(), line[6:].strip()


@contextmanager
def module(*args: object, log: Path) -> Iterator[subprocess.Popen]:
    """`python -m` these arguments; what it says on stderr goes to a file."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, args)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextmanager
def server(*args: object, log: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """`deltamem-mlx serve` in a process of its own, and its address."""
    with module("deltamem_mlx", "serve", "--port", 0, *args, log=log) as process:
        yield process, process.stdout.readline().strip()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
