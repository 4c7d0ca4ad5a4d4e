"""Looking at memories, copying and deleting them."""

from collections.abc import Callable

from .bodies import check_key, parse
from .errors import ApiError

_FILE = "application/octet-stream"


class Management:
    """The routes under ``/v1/memories`` of a handler."""

    def memory_actions(self, rest: list[str]) -> dict[str, Callable[[], None]]:
        """Method → what to do, for what follows ``/v1/memories`` in an address."""
        self.route = "/v1/memories" + "/{key}" * bool(rest)
        memories = self.serving.memories
        match rest:
            case []:
                return {"GET": self._list, "DELETE": self._delete_all}
            case [name]:
                key = self.key(name)
                return {
                    "GET": lambda: self.send_json(memories.look(key).stats()),
                    "PUT": lambda: self._put(key),
                    "DELETE": lambda: self._delete(key),
                }
            case [name, "fork"]:
                self.route += "/fork"
                return {"POST": lambda: self._fork(self.key(name))}
            case [name, "export"]:
                self.route += "/export"
                return {"GET": lambda: self.send_bytes(memories.export(self.key(name)), _FILE)}
        return {}

    def _list(self) -> None:
        self.send_json({"object": "list", "data": self.serving.memories.listed()})

    def _delete(self, key: str) -> None:
        self.serving.memories.delete(key)
        self.send_json({"object": "memory.deleted", "session": key, "deleted": True})

    def _delete_all(self) -> None:
        count = self.serving.memories.delete_all()
        self.send_json({"object": "list.deleted", "deleted": count})

    def _put(self, key: str) -> None:
        memory, new = self.serving.memories.put(key, self.read_body())
        self.send_json(memory.stats(), 201 if new else 200)

    def _fork(self, key: str) -> None:
        body = parse(self.read_body())
        if set(body) != {"to"}:
            raise ApiError(400, 'The body is {"to": KEY}.', param="to", code="invalid_value")
        memory = self.serving.memories.fork(key, check_key(body["to"], "to"))
        self.send_json(memory.stats(), 201)
