"""Clients that work on scripted sessions of a server together."""

import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving import CHAT, Client

PLACES = ["oslo", "paris", "rome", "berlin", "madrid", "london"]
# Words of the built-in pair's, one person a session: mlx-lm's prompt cache would answer a session
# from the prompt of another that it cannot tell from it.
NAMES = [
    "adam", "amber", "anna", "ben", "carla", "chris", "daisy", "david", "dora", "emma", "erik",
    "felix", "fiona", "georg", "greta", "hanna", "hugo", "ines", "ivan", "jonas", "julia", "karin",
    "kofi", "lena", "leo", "luna", "marco", "maria", "max", "nils", "nora", "olga", "omar", "oscar",
    "paul", "petra", "quentin", "rita", "rosa", "simon", "sven", "tara", "tom", "vera", "viktor",
    "wanda", "willi", "xenia", "yara", "yusuf", "zoe",
]  # fmt: skip
JOBS = ["doctor", "teacher", "painter", "baker"]
SCRIPT = (
    "{name} lives in {place} .",
    "{friend} is a {job} .",
    "where does {name} live ?",
    "{friend} lives in {other} .",
    "what is the job of {friend} ?",
    "where does {friend} live ?",
    "{name} met {friend} in {place} and they went to {other} .",
    "who lives in {other} ?",
)


@dataclass
class Turn:
    """An answer: what was asked, its token ids, and when the session was busy with it.

    An API that does not say the ids gives its text instead: what it is made of, the replay finds.
    """

    asked: str
    began: float
    ended: float
    usage: dict
    said: tuple[int, ...] | str
    number: int


@dataclass
class Session:
    """A script that several clients work on, one message each at a time.

    Attributes:
        in_order (bool): A message is not sent before the one before it was answered.
        rounds (list[list[Turn]]): What was answered; a round is the script once.
        history (list[dict]): Messages of the present round.
    """

    index: int
    in_order: bool
    rounds: list[list[Turn]] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    sent: int = len(SCRIPT)
    free: float = 0.0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, until: Callable[[], bool]) -> tuple[int, str] | None:
        """The next message and its place in the script; None when the time is up."""
        with self.changed:
            while not until():
                answered = len(self.rounds[-1]) if self.rounds else len(SCRIPT)
                if self.sent == answered == len(SCRIPT):
                    self.rounds.append([])
                    self.history, self.sent, answered = [], 0, 0
                ahead = self.sent - answered
                if self.sent < len(SCRIPT) and (not ahead or (answered and not self.in_order)):
                    self.sent += 1
                    return self.sent - 1, self._text(self.sent - 1)
                self.changed.wait(0.05)
        return None

    def _text(self, place: int) -> str:
        n = self.index + len(self.rounds)
        words = {"place": PLACES[n % 6], "other": PLACES[(n + 1) % 6], "job": JOBS[n % 4]}
        lap, who = divmod(self.index, len(NAMES))
        words |= {"name": NAMES[who], "friend": NAMES[(who + 1 + lap) % len(NAMES)]}
        return SCRIPT[place].format(**words)

    def answered(self, asked: str, reply: dict) -> None:
        """Take note of an answer."""
        now, choice = time.perf_counter(), reply["choices"][0]
        usage, message = reply["usage"], choice["message"]
        with self.changed:
            number = usage.get("memory", {}).get("turns", len(self.rounds[-1]) + 1)
            content, logprobs = message.get("content") or "", choice.get("logprobs")
            ids = logprobs and tuple(token["id"] for token in logprobs["content"])
            self.rounds[-1].append(Turn(asked, self.free, now, usage, ids or content, number))
            said = {"role": "assistant", "content": content}
            self.history += [{"role": "user", "content": asked}, said]
            self.free = now
            self.changed.notify_all()


@dataclass
class Load:
    """Clients of one server.

    Attributes:
        ours (bool): It has sessions.
        apis (tuple[str, ...]): What clients speak, in turn: ``chat``, ``responses``, ``messages``.
        tokens (int): Length of an answer; ``ends`` are the tokens that would end it sooner.
        windows (list): From when to when it was measured.
        used (list): CPU seconds and completion tokens of each of these, last answers included.
        sizes (list[int]): RSS of the server within the windows, four times a second.
    """

    name: str
    client: Client
    pid: int
    ours: bool
    sessions: list[Session]
    clients: int
    tokens: int
    ends: list[int]
    apis: tuple[str, ...] = ("chat",)
    errors: list[str] = field(default_factory=list)
    again: int = 0
    asked: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)
    windows: list[tuple[float, float]] = field(default_factory=list)
    used: list[tuple[float, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def run(self, until: Callable[[], bool]) -> None:
        """Keep all clients asking until then, and wait for their last answers."""
        began = time.perf_counter()
        for session in self.sessions:
            session.free = began
        threads = [
            threading.Thread(target=self._ask, args=(self.sessions[i % len(self.sessions)], until))
            for i in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def measure(self, seconds: float) -> None:
        """Run for so long; the last answers are waited for and counted in part."""
        cpu, tokens = self.cpu(), self.generated()
        began = time.perf_counter()
        end = began + seconds
        self.windows.append((began, end))
        watch = threading.Thread(target=self._watch, args=(end,))
        watch.start()
        self.run(lambda: time.perf_counter() >= end)
        watch.join()
        self.used.append((self.cpu() - cpu, self.generated() - tokens))

    def _watch(self, end: float) -> None:
        while time.perf_counter() < end:
            self.sizes.append(self.rss())
            time.sleep(0.25)

    def warm_up(self) -> None:
        """Run until every session has been through its script."""
        self.run(lambda: self.errors or all(len(s.rounds) > 1 for s in self.sessions))

    def _ask(self, session: Session, until: Callable[[], bool]) -> None:
        while not self.errors and (taken := session.take(until)):
            place, text = taken
            reply = self._send(session, text, first=place == 0)
            if reply is not None:
                session.answered(text, reply)

    def _send(self, session: Session, text: str, *, first: bool) -> dict | None:
        api = self.apis[self._next() % len(self.apis)]
        path, body = self._request(api, session, text, first=first)
        while True:
            try:
                reply = self.client.request("POST", path, body, timeout=600)
            except OSError as error:
                if not self.ours and isinstance(error, ConnectionError):
                    self.again += 1  # its queue of connections holds 5: many at once are reset
                    continue
                self.errors.append(repr(error))
                return None
            if reply.status == 409 and reply.code == "memory_busy":
                self.again += 1  # as documented
                continue
            if reply.status != 200:
                self.errors.append(f"{reply.status} {reply.body[:200]!r}")
                return None
            return self._as_chat(api, reply.json)

    def _next(self) -> int:
        with self.mutex:
            self.asked += 1
            return self.asked

    def _request(
        self, api: str, session: Session, text: str, *, first: bool
    ) -> tuple[str, dict[str, object]]:
        """Where a message is sent, and as what."""
        said = {"role": "user", "content": text}
        body: dict[str, object] = {"temperature": 0.0}
        body["logit_bias"] = {str(token): -1e4 for token in self.ends}
        if self.ours:
            body["memory"] = {"session": f"{self.name} {session.index}", "reset": first}
        if api == "chat":
            messages = [said] if self.ours else [*session.history, said]
            more = {"messages": messages, "max_tokens": self.tokens, "logprobs": True}
            return CHAT, body | more
        if api == "responses":
            return "/v1/responses", body | {"input": [said], "max_output_tokens": self.tokens}
        return "/v1/messages", body | {"messages": [said], "max_tokens": self.tokens}

    def _as_chat(self, api: str, reply: dict) -> dict:
        """An answer in the form of the chat route."""
        if api == "chat":
            return reply
        parts = reply["output"][0]["content"] if api == "responses" else reply["content"]
        text, usage = "".join(part["text"] for part in parts), reply["usage"]
        cached = usage.get("input_tokens_details", {}).get("cached_tokens", 0)
        before = usage.get("cache_read_input_tokens", 0)  # which Anthropic's do not count twice
        return {
            "choices": [{"message": {"content": text}}],
            "usage": {
                "prompt_tokens": usage["input_tokens"] + before,
                "completion_tokens": usage["output_tokens"],
                "prompt_tokens_details": {"cached_tokens": cached + before},
                "memory": usage["memory"],
            },
        }

    @property
    def turns(self) -> list[Turn]:
        """All answers."""
        return [t for session in self.sessions for round in session.rounds for t in round]

    def tokens_a_second(self) -> float:
        """Completion tokens within the windows; an answer's are spread evenly over its time."""
        total = 0.0
        for turn in self.turns:
            for began, end in self.windows:
                shared = min(turn.ended, end) - max(turn.began, began)
                share = max(shared, 0.0) / (turn.ended - turn.began)
                total += share * turn.usage["completion_tokens"]
        return total / sum(end - began for began, end in self.windows)

    def generated(self) -> int:
        """Completion tokens so far."""
        return sum(turn.usage["completion_tokens"] for turn in self.turns)

    def cpu_a_token(self) -> float:
        """CPU seconds of the server's process: what it costs, whatever else the machine does."""
        return sum(cpu for cpu, _ in self.used) / sum(tokens for _, tokens in self.used)

    def cpu(self) -> float:
        """CPU seconds of the server's process so far; NaN where the system does not say."""
        stat = Path(f"/proc/{self.pid}/stat")
        if not stat.exists():
            return math.nan
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Bytes of RAM that the server's process has."""
        pages = Path(f"/proc/{self.pid}/statm")
        if pages.exists():
            return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True)
        return int(told.stdout) * 1024


def floors(sizes: Sequence[int]) -> tuple[int, int]:
    """The smallest size in the first third, and in the last.

    Answers that run and buffers that are kept for the next come and go, so that one reading tells
    little. What is never let go is in all of them.
    """
    third = max(1, len(sizes) // 3)
    return min(sizes[:third]), min(sizes[-third:])
