"""What is at the address itself: the page for a browser, and the routes for programs."""

from functools import partial

from ..page.files import HEADERS, INDEX, page_files
from .management import Actions
from .openapi import description
from .wire import Wire

ROUTES = {
    "/v1/chat/completions": {"POST": "OpenAI's chats, with and without a memory"},
    "/chat/completions": {"POST": "the same, as mlx-lm's server has it too"},
    "/v1/completions": {"POST": "OpenAI's completions of a text"},
    "/v1/responses": {"POST": "OpenAI's responses: answers from which one can go on"},
    "/v1/responses/{id}": {"GET": "a response", "DELETE": "forget it"},
    "/v1/responses/{id}/input_items": {"GET": "what it answers"},
    "/v1/responses/{id}/cancel": {"POST": "refused: none is in the background"},
    "/v1/conversations": {"POST": "begin a conversation of OpenAI's"},
    "/v1/conversations/{id}": {"GET": "show it", "POST": "its metadata", "DELETE": "forget it"},
    "/v1/conversations/{id}/items": {"GET": "what was said in it", "POST": "say more"},
    "/v1/conversations/{id}/items/{item}": {"GET": "one of these", "DELETE": "leave it out"},
    "/v1/messages": {"POST": "Anthropic's messages, with and without a memory"},
    "/v1/messages/count_tokens": {"POST": "how many tokens a message has"},
    "/v1/models": {"GET": "the model"},
    "/v1/models/{name}": {"GET": "the same, if that is its name"},
    "/v1/memories": {"GET": "all memories", "DELETE": "forget all"},
    "/v1/memories/{key}": {"GET": "numbers about one", "PUT": "from a file", "DELETE": "forget it"},
    "/v1/memories/{key}/state": {"GET": "its states, and how like they are to earlier ones"},
    "/v1/memories/{key}/turns": {"GET": "the turns that can be taken back"},
    "/v1/memories/{key}/undo": {"POST": "take back the last ones"},
    "/v1/memories/{key}/redo": {"POST": "put back what was taken back"},
    "/v1/memories/{key}/rename": {"POST": "another key"},
    "/v1/memories/{key}/fork": {"POST": "copy it"},
    "/v1/memories/{key}/export": {"GET": "its file"},
    "/health": {"GET": "whether the model answers"},
    "/metrics": {"GET": "counters and gauges for Prometheus"},
    "/openapi.json": {"GET": "these routes as OpenAPI describes them"},
    "/": {"GET": "the page for a browser, these routes for a program"},
}


class FrontPage(Wire):
    """The page and the list of routes of a handler."""

    def front_actions(self, parts: list[str]) -> Actions:
        """What to do for the parts of an address that is the page's; nothing for another."""
        if parts == [""]:
            self.account.route = "/"
            page = self._accepts("text/html")
            return {"GET": partial(self._show_page, INDEX) if page else self._show_routes}
        if parts == ["openapi.json"]:
            self.account.route = "/openapi.json"
            return {"GET": self._describe}
        if parts[0] == "page" and parts[1:] in [[name] for name in page_files()]:
            self.account.route = "/page"
            return {"GET": partial(self._show_page, parts[1])}
        return {}

    def _describe(self) -> None:
        parts = {f"/page/{name}": {"GET": "a part of the page"} for name in page_files()}
        self.send_json(description(ROUTES | parts))

    def is_page(self, parts: list[str]) -> bool:
        """Whether the address is the page's, which is the same for all and needs no key."""
        return parts[0] == "page" or (parts == [""] and self._accepts("text/html"))

    def _accepts(self, kind: str) -> bool:
        return kind in self.headers.get("Accept", "")

    def _show_page(self, name: str) -> None:
        body, kind = page_files()[name]
        self.send_bytes(body, kind, 200, Vary="Accept", **HEADERS)

    def _show_routes(self) -> None:
        """As JSON, or as text for who asks for that."""
        name = self.serving.provider.name
        if not self._accepts("text/plain"):
            listed = {"object": "list", "model": name, "data": _data()}
            self.send_json(listed, 200, Vary="Accept")
            return
        lines = [f"deltamem-mlx serves {name}", ""]
        for route, methods in ROUTES.items():
            lines += [f"{method:<7}{route:<38}{does}" for method, does in methods.items()]
        text = "\n".join([*lines, ""]).encode()
        self.send_bytes(text, "text/plain; charset=utf-8", 200, Vary="Accept")


def _data() -> list[dict[str, object]]:
    return [
        {"route": route, "methods": list(methods), "does": methods}
        for route, methods in ROUTES.items()
    ]
