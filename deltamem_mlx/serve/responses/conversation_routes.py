"""The routes under ``/v1/conversations``."""

from dataclasses import replace
from functools import partial

from ...memory.shelf import id_of
from ..errors import ApiError, refuse
from ..http.management import Actions
from ..http.wire import Wire
from ..kept.conversations import KeptConversation
from ..kept.items import Item, new_id, read_items
from ..requests.bodies import check_key, parse
from ..requests.fields import Fields
from .pages import page_of
from .request import read_metadata

_PREFIX = "conv"


class ConversationRoutes(Wire):
    """OpenAI's Conversations of a handler."""

    def conversation_actions(self, rest: list[str]) -> Actions:
        """What to do, for what follows ``/v1/conversations`` in an address."""
        self.account.route = "/v1/conversations" + "/{id}" * bool(rest)
        match rest:
            case []:
                return {"POST": self._create_conversation}
            case [id]:
                return {
                    "GET": partial(self._show_conversation, id),
                    "POST": partial(self._update_conversation, id),
                    "DELETE": partial(self._delete_conversation, id),
                }
            case [id, "items"]:
                self.account.route += "/items"
                return {"GET": partial(self._items, id), "POST": partial(self._add_items, id)}
            case [id, "items", item]:
                self.account.route += "/items/{item}"
                return {
                    "GET": partial(self._show_item, id, item),
                    "DELETE": partial(self._delete_item, id, item),
                }
        return {}

    def known_conversation(self, id: str) -> KeptConversation:
        """What is kept of a conversation, or what follows from its memory.

        Raises:
            ApiError: If there is neither.
        """
        check_key(id, "the id in the address")
        found = self.serving.conversations.find(id)
        if found is not None:
            return found
        try:
            self.serving.memories.look(id)
        except ApiError as error:
            if error.code == "memory_not_found":
                raise _no_conversation() from None
            raise
        return KeptConversation(id, self.serving.started)

    def check_conversation(self, id: str | None) -> None:
        """Raises ApiError for an id that a server gave, of a conversation that is not there.

        Other names are a client's own, and begin with the first response.
        """
        if id is not None and id.startswith(f"{_PREFIX}_"):
            self.known_conversation(id)

    def _create_conversation(self) -> None:
        raw = self.read_body() if "Content-Length" in self.headers else b""
        fields = Fields(parse(raw) if raw else {})
        _check_names(fields, {"items", "metadata"})
        notes, items = read_metadata(fields), _new_items(fields, least=0)
        made = self.serving.conversations.change(
            new_id(_PREFIX), lambda new: replace(new, metadata=notes).with_items(items)
        )
        self.send_json(made.as_json())

    def _show_conversation(self, id: str) -> None:
        self.send_json(self.known_conversation(id).as_json())

    def _update_conversation(self, id: str) -> None:
        fields = Fields(parse(self.read_body()))
        _check_names(fields, {"metadata"})
        notes, known = read_metadata(fields), self.known_conversation(id)
        changed = self.serving.conversations.change(
            id, lambda kept: replace(kept, created=known.created, metadata=notes)
        )
        self.send_json(changed.as_json())

    def _delete_conversation(self, id: str) -> None:
        self.known_conversation(id)
        try:
            self.serving.memories.delete(id)
        except ApiError as error:
            if error.code != "memory_not_found":
                raise
        self.serving.responses.forget(id_of(id))
        self.serving.conversations.forget(id_of(id))
        self.send_json({"id": id, "object": "conversation.deleted", "deleted": True})

    def _items(self, id: str) -> None:
        self.send_json(page_of(self.known_conversation(id).items, self.query))

    def _add_items(self, id: str) -> None:
        fields = Fields(parse(self.read_body()))
        _check_names(fields, {"items"})
        items = _new_items(fields, least=1)
        self.known_conversation(id)
        self.serving.conversations.change(id, lambda kept: kept.with_items(items))
        self.send_json(page_of(items, {"order": "asc", "limit": "100"}))

    def _show_item(self, id: str, item: str) -> None:
        self.send_json(self.known_conversation(id).find(item))

    def _delete_item(self, id: str, item: str) -> None:
        self.known_conversation(id)
        changed = self.serving.conversations.change(id, lambda kept: kept.without(item))
        self.send_json(changed.as_json())


def _check_names(fields: Fields, known: set[str]) -> None:
    for name in fields.values:
        if name not in known:
            refuse(name[:40], f"nothing but {' and '.join(sorted(known))} here")


def _new_items(fields: Fields, least: int) -> list[Item]:
    items = read_items(fields.values.get("items", []), "items")
    if not least <= len(items) <= 20:
        refuse("items", f"a list of {least} to 20 items")
    return items


def _no_conversation() -> ApiError:
    return ApiError(404, "There is no conversation of this id.", code="conversation_not_found")
