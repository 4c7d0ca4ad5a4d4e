"""Looking at memories, copying and deleting them."""

from collections.abc import Callable, Mapping
from functools import partial

from ..errors import ApiError
from ..requests.bodies import check_key, parse
from ..requests.fields import Fields
from .wire import Wire

Actions = Mapping[str, Callable[[], None]]  # by method


class Management(Wire):
    """The routes under ``/v1/memories`` of a handler."""

    def memory_actions(self, rest: list[str]) -> Actions:
        """What to do, for what follows ``/v1/memories`` in an address."""
        self.account.route = "/v1/memories" + "/{key}" * bool(rest)
        match rest:
            case []:
                return {"GET": self._list, "DELETE": self._delete_all}
            case [name]:
                key = _key(name)
                return {
                    "GET": partial(self._show, key),
                    "PUT": partial(self._put, key),
                    "DELETE": partial(self._delete, key),
                }
            case [name, "fork"]:
                self.account.route += "/fork"
                return {"POST": partial(self._fork, _key(name))}
            case [name, "rename"]:
                self.account.route += "/rename"
                return {"POST": partial(self._rename, _key(name))}
            case [name, "turns"]:
                self.account.route += "/turns"
                return {"GET": partial(self._turns, _key(name))}
            case [name, "state"]:
                self.account.route += "/state"
                return {"GET": partial(self._state, _key(name))}
            case [name, "undo"]:
                self.account.route += "/undo"
                return {"POST": partial(self._undo, _key(name))}
            case [name, "redo"]:
                self.account.route += "/redo"
                return {"POST": partial(self._redo, _key(name))}
            case [name, "export"]:
                self.account.route += "/export"
                return {"GET": partial(self._export, _key(name))}
        return {}

    def _list(self) -> None:
        self.send_json({"object": "list", "data": self.serving.memories.listed()})

    def _show(self, key: str) -> None:
        self.send_json(self.serving.memories.find(key).stats())

    def _state(self, key: str) -> None:
        self.send_json(self.serving.memories.find(key).state())

    def _turns(self, key: str) -> None:
        turns = self.serving.memories.find(key).turns()
        self.send_json({"object": "list", "data": turns})

    def _undo(self, key: str) -> None:
        raw = self.read_body() if "Content-Length" in self.headers else b""
        fields = Fields(parse(raw) if raw else {})
        if set(fields.values) - {"turns"}:
            raise ApiError(400, 'The body is {"turns": N}.', param="turns", code="invalid_value")
        memory = self.serving.memories.undo(key, fields.whole("turns", 1, 1))
        self.send_json(memory.stats())

    def _redo(self, key: str) -> None:
        if "Content-Length" in self.headers and (raw := self.read_body()) and parse(raw):
            what = "The body is {}: all is put back that was taken back."
            raise ApiError(400, what, code="invalid_value")
        self.send_json(self.serving.memories.redo(key).stats())

    def _export(self, key: str) -> None:
        self.send_bytes(self.serving.memories.export(key), "application/octet-stream")

    def _delete(self, key: str) -> None:
        id = self.serving.memories.delete(key)
        self.serving.responses.forget(id)
        self.serving.conversations.forget(id)
        self.send_json({"object": "memory.deleted", "session": key, "deleted": True})

    def _delete_all(self) -> None:
        count = self.serving.memories.delete_all()
        self.serving.responses.clear()
        self.serving.conversations.clear()
        self.send_json({"object": "list.deleted", "deleted": count})

    def _put(self, key: str) -> None:
        memory, new = self.serving.memories.put(key, self.read_body())
        self.send_json(memory.stats(), 201 if new else 200)

    def _fork(self, key: str) -> None:
        memory = self.serving.memories.fork(key, self._to())
        self.send_json(memory.stats(), 201)

    def _rename(self, key: str) -> None:
        to = self._to()
        memory, before = self.serving.memories.rename(key, to)
        self.serving.responses.rename(before, to)
        self.serving.conversations.rename(before, to)
        self.send_json(memory.stats())

    def _to(self) -> str:
        """The new key in a body."""
        body = parse(self.read_body())
        if set(body) != {"to"}:
            raise ApiError(400, 'The body is {"to": KEY}.', param="to", code="invalid_value")
        return check_key(body["to"], "to")


def _key(text: str) -> str:
    """A part of an address as the key of a memory."""
    return check_key(text, "the key in the address")
