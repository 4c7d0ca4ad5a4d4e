"""By which the processes of mlx.launch hear of each other's end, whatever they are waiting for.

The first has a connection with each other one, beside those of mlx's engine. Who ends as it should
says so there; where a connection breaks without a word, its process or its machine is gone. mlx's
engine says no more than that some peer is lost, and that only to those who send.
"""

import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltamem_mlx.ranks import Ranks

_PATIENCE = 15.0  # seconds, to connect
_MOMENT = 1.5
_MOST_BYTES = 4096  # of a last word
_DONE = "done"
# A machine without power sends nothing: its silence is noticed after about six seconds.
_ALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPALIVE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 2}
Heard = Callable[[int, str, str], None]


class Lifelines:
    """The connections of this process with the first, or of the first with all others.

    All processes make one at the same time. Where no connection comes about, for a firewall between
    the machines, nothing is heard.

    Args:
        ranks (Ranks): The processes.
        heard (Callable): Called in a thread of its own when another process ends without having
          been done: its rank, its machine's name (empty: this machine) and what it said of the
          reason (empty: nothing).
    """

    def __init__(self, ranks: "Ranks", heard: Heard):
        self._heard, self._mutex = heard, threading.Lock()
        self._parting = False
        listener, token = None, b""
        if ranks.rank == 0:
            listener, token = _listener(), secrets.token_bytes(16)
        address = ranks.share((None if listener is None else listener.getsockname()[:2], token))
        self._lines = (
            _accepted(listener, token, ranks.size)
            if ranks.rank == 0
            else _connected(*address, ranks.rank)
        )
        # One that came too late was hung up on, and is not to take that for an end.
        if ranks.rank not in {0, *ranks.share(sorted(self._lines))}:
            self._lines = {}
        names = ranks.gather(socket.gethostname())
        self._hosts = ["" if name == names[ranks.rank] else name for name in names]
        for rank, line in self._lines.items():
            threading.Thread(target=self._listen, args=(rank, line), daemon=True).start()

    def part(self, word: str = _DONE) -> None:
        """Say that this process ends, done or for which reason; from now on nothing is heard."""
        self._parting = True
        for line in self._lines.values():
            with suppress(OSError):
                line.sendall(word.encode()[:_MOST_BYTES])
                line.shutdown(socket.SHUT_WR)

    def _listen(self, rank: int, line: socket.socket) -> None:
        said = b""
        with suppress(OSError):
            while len(said) < _MOST_BYTES and (data := line.recv(_MOST_BYTES)):
                said += data
        word = said.decode(errors="replace")
        if word not in (_DONE, ""):
            time.sleep(_MOMENT)  # an error that all meet is this one's as well
        with self._mutex:  # what the first of several endings brings about is not said again
            if word != _DONE and not self._parting:
                self.part(word or f"rank {rank} has ended")  # the others do not say it again
                self._heard(rank, self._hosts[rank], word)


def _listener() -> socket.socket | None:
    """Where the first process is to be found by the others; None: it cannot be."""
    host = _first_host(os.environ)
    with suppress(OSError):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, 0), family=family)
    return None


def _first_host(environment: Mapping[str, str]) -> str:
    """The first process's address, as the engine was told of it."""
    with suppress(KeyError, OSError, ValueError, LookupError, TypeError):
        hosts = json.loads(Path(environment["MLX_HOSTFILE"]).read_text())
        return str(hosts[0][0]).rpartition(":")[0].strip("[]")
    if "MLX_JACCL_COORDINATOR" in environment:
        return environment["MLX_JACCL_COORDINATOR"].rpartition(":")[0].strip("[]")
    return environment.get("NCCL_HOST_IP") or socket.gethostname()


def _accepted(listener: socket.socket | None, token: bytes, size: int) -> dict[int, socket.socket]:
    """Rank → connection, of the others that have come in time."""
    lines: dict[int, socket.socket] = {}
    if listener is None:
        return lines
    end = time.monotonic() + _PATIENCE
    with listener, suppress(OSError):
        while len(lines) < size - 1 and (left := end - time.monotonic()) > 0:
            listener.settimeout(left)
            line = listener.accept()[0]
            line.settimeout(left)
            said = b""
            with suppress(OSError):
                said = line.recv(len(token) + 4, socket.MSG_WAITALL)
            rank = int.from_bytes(said[len(token) :])
            if hmac.compare_digest(said[: len(token)], token) and 0 < rank < size:
                lines[rank] = _lasting(line)
            else:
                line.close()
    return lines


def _connected(
    address: tuple[str, int] | None, token: bytes, rank: int
) -> dict[int, socket.socket]:
    """The connection with the first process, if it can be had."""
    if address is None:
        return {}
    with suppress(OSError):
        line = socket.create_connection(address, timeout=_PATIENCE)
        line.sendall(token + rank.to_bytes(4))
        return {0: _lasting(line)}
    return {}


def _lasting(line: socket.socket) -> socket.socket:
    """A connection that stays open in silence, and breaks when the other machine is gone."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            line.setsockopt(socket.IPPROTO_TCP, option, value)
    return line
