"""Requests that no client would send, and some that one would: from a seed, as bytes."""

import json
import random
from typing import NamedTuple
from urllib.parse import quote

KEYS = (
    "a", "b", "../../x", "/etc/passwd", "..", ".", "%00", "\x00", "a/b", "ключ 鍵 🗝", "'; --",
    "a" * 512, "a" * 513, "", " ", "\n", "CON", "~", "*", "a.safetensors", "é",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "BREW", "get", "X" * 300)
ROUTES = (
    "/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/models",
    "/v1/models/{key}", "/v1/memories", "/v1/memories/{key}", "/v1/memories/{key}/fork",
    "/v1/memories/{key}/export", "/health", "/metrics",
)  # fmt: skip
USUAL = {
    "/v1/chat/completions": "POST", "/chat/completions": "POST", "/v1/completions": "POST",
    "/v1/memories/{key}/fork": "POST", "/v1/memories/{key}": "PUT",
}  # fmt: skip
ODD = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 10**30, -(2**63), "", "x", "hi", "\x00",
    "🗝" * 9, "{", "[]", [], {}, [[]], [None], ["a"], [{}], {"a": 1}, {"type": "text"}, "a" * 5000,
    {"text": "hi"}, {"1": 5}, {"999999": 1}, [{"role": "user"}], {"session": "b"}, "../../x",
)  # fmt: skip
CHAT = {
    "model": "default_model",
    "messages": [{"role": "user", "content": "where does anna live ?"}],
    "max_tokens": 2,
    "temperature": 0.0,
    "stop": ["."],
    "stream": False,
    "memory": {"session": "a", "read_only": False, "remember": ["ben is a doctor ."]},
}
FIELDS = (
    "messages", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
    "min_p", "seed", "stop", "stream", "stream_options", "logit_bias", "logprobs", "top_logprobs",
    "tools", "tool_choice", "chat_template_kwargs", "role_mapping", "memory", "attention_state",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "xtc_probability", "adapters",
    "draft_model", "num_draft_tokens", "n", "prompt", "user", "repetition_context_size",
)  # fmt: skip
HEADERS = (
    ("X-Delta-Mem-Session", KEYS),
    ("X-Delta-Mem-Session-Key", KEYS),
    ("X-Delta-Attention-State", ("anna", '["anna"]', "[", "[" * 2000, '{"text": 1}')),
    ("Origin", ("https://evil.example", "null", "")),
    ("Authorization", ("Bearer x", "Basic eA==", "", "Bearer é")),
    ("Content-Type", ("application/json", "text/plain", "multipart/form-data", "x" * 300)),
    ("Content-Encoding", ("gzip", "identity")),
    ("Expect", ("100-continue", "200-ok")),
    ("Connection", ("keep-alive", "close", "upgrade")),
    ("Range", ("bytes=0-1", "bytes=-9")),
    ("Cookie", ("a=b", "\x01")),
)


class Fuzzed(NamedTuple):
    """A request: its bytes, and whether all of it is there."""

    raw: bytes
    whole: bool


class Fuzzer:
    """Requests from a seed.

    Args:
        seed (int): The same gives the same requests.
        file (bytes): A memory file that the server would take.
    """

    def __init__(self, seed: int, file: bytes):
        self.random, self.file = random.Random(seed), file

    def request(self) -> Fuzzed:
        """The next one."""
        pick = self.random
        if pick.random() < 0.03:
            return Fuzzed(self._cut(pick.randbytes(pick.randrange(1, 200))) + b"\r\n\r\n", False)
        route = pick.choice(ROUTES)
        usual = USUAL.get(route, "GET")
        method = usual if pick.random() < 0.7 else pick.choice(METHODS)
        body = self._body(route) if method in ("POST", "PUT") or pick.random() < 0.1 else b""
        head, whole = self._head(f"{method} {self._path(route)}", body)
        return Fuzzed(head + body, whole)

    def _path(self, route: str) -> str:
        pick = self.random
        if pick.random() < 0.05:
            return "/" + quote(pick.randbytes(pick.randrange(40)), safe="/%.:@")
        key = quote(pick.choice(KEYS), safe="/." if pick.random() < 0.1 else "")
        path = route.format(key=key)
        if pick.random() < 0.1:
            path += pick.choice(("/", "//", "/..", "/%2e%2e", "%ff", "%", "#x"))
        if pick.random() < 0.2:
            path += "?" + quote(pick.randbytes(pick.randrange(30)), safe="=&%/?")
        return path

    def _head(self, line: str, body: bytes) -> tuple[bytes, bool]:
        pick = self.random
        headers = [(name, pick.choice(of)) for name, of in HEADERS if pick.random() < 0.04]
        length, whole = str(len(body)), True
        if pick.random() < 0.1:
            length, whole = pick.choice(
                (
                    (str(len(body) + pick.randrange(1, 99)), False),
                    (str(len(body) // 2), True),
                    ("-1", True), ("1e3", True), ("٣", True), ("9" * 40, True), ("", True),
                )
            )  # fmt: skip
        if pick.random() < 0.97:
            headers.append(("Content-Length", length))
        if pick.random() < 0.03:
            headers.append(("Transfer-Encoding", pick.choice(("chunked", "gzip", "x"))))
        lines = [f"{line} HTTP/1.{pick.choice('01')}"]
        lines += [f"{name}: {value}".replace("\n", " ") for name, value in headers]
        return "\r\n".join([*lines, "", ""]).encode(), whole

    def _body(self, route: str) -> bytes:
        pick = self.random
        if pick.random() < 0.08:
            return pick.choice((b"[" * 9000, b'{"a":' * 3000, b"\xff\xfe{}", pick.randbytes(300)))
        if route == "/v1/memories/{key}":
            file = self.file
            return self._cut(file) if pick.random() < 0.7 else file
        if route.endswith("/fork"):
            body = {"to": pick.choice((*KEYS, *ODD))}
        elif route == "/v1/completions":
            body = self._changed({"prompt": "anna lives in", "max_tokens": 2})
        else:
            body = self._changed(CHAT)
        raw = json.dumps(body, ensure_ascii=pick.random() < 0.5).encode()
        return self._cut(raw) if pick.random() < 0.1 else raw

    def _changed(self, body: dict) -> dict:
        """With some fields another value, somewhere in it."""
        pick = self.random
        body = json.loads(json.dumps(body))
        for _ in range(pick.randrange(3)):
            body[pick.choice(FIELDS)] = pick.choice(ODD)
        for inner in ("memory", "messages"):
            value = body.get(inner)
            if pick.random() < 0.2 and isinstance(value, list) and isinstance(value[:1], list):
                value = value[0] if value else None
            if pick.random() < 0.3 and isinstance(value, dict):
                names = ("session", "read_only", "remember", "reset", "context", "keep_partial",
                         "role", "content", "tool_calls", "name", "x")  # fmt: skip
                value[pick.choice(names)] = pick.choice((*ODD, *KEYS, "drop", "assistant"))
        if isinstance(body.get("memory"), dict) and pick.random() < 0.5:
            body["memory"]["session"] = pick.choice(KEYS)
        if pick.random() < 0.2:
            body.pop("memory", None)
        return body

    def _cut(self, raw: bytes) -> bytes:
        """With bytes missing at the end, or some of them others."""
        pick = self.random
        if pick.random() < 0.5:
            return raw[: pick.randrange(len(raw) + 1)]
        changed = bytearray(raw)
        for _ in range(pick.randrange(1, 4)):
            changed[pick.randrange(len(changed))] = pick.randrange(256)
        return bytes(changed)
