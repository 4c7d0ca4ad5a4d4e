"""What is at the address itself: the routes, for programs and for people."""

from .wire import Wire

ROUTES = {
    "/v1/chat/completions": {"POST": "OpenAI's chats, with and without a memory"},
    "/v1/completions": {"POST": "OpenAI's completions of a text"},
    "/v1/responses": {"POST": "OpenAI's responses: answers from which one can go on"},
    "/v1/responses/{id}": {"GET": "a response", "DELETE": "forget it"},
    "/v1/responses/{id}/input_items": {"GET": "what it answers"},
    "/v1/conversations": {"POST": "begin a conversation of OpenAI's"},
    "/v1/conversations/{id}": {"GET": "show it", "POST": "its metadata", "DELETE": "forget it"},
    "/v1/conversations/{id}/items": {"GET": "what was said in it", "POST": "say more"},
    "/v1/conversations/{id}/items/{item}": {"GET": "one of these", "DELETE": "leave it out"},
    "/v1/messages": {"POST": "Anthropic's messages, with and without a memory"},
    "/v1/messages/count_tokens": {"POST": "how many tokens a message has"},
    "/v1/models": {"GET": "the model"},
    "/v1/memories": {"GET": "all memories", "DELETE": "forget all"},
    "/v1/memories/{key}": {"GET": "numbers about one", "PUT": "from a file", "DELETE": "forget it"},
    "/v1/memories/{key}/turns": {"GET": "the turns that can be taken back"},
    "/v1/memories/{key}/undo": {"POST": "take back the last ones"},
    "/v1/memories/{key}/fork": {"POST": "copy it"},
    "/v1/memories/{key}/export": {"GET": "its file"},
    "/health": {"GET": "whether the model answers"},
    "/metrics": {"GET": "counters and gauges for Prometheus"},
}


class FrontPage(Wire):
    """The list of routes of a handler."""

    def show_routes(self) -> None:
        """As text for a browser, which asks for a page; else as JSON."""
        if "text/html" not in self.headers.get("Accept", ""):
            self.send_json({"object": "list", "model": self.serving.provider.name, "data": _data()})
            return
        lines = [f"deltamem-mlx serves {self.serving.provider.name}", ""]
        for route, methods in ROUTES.items():
            lines += [f"{method:<7}{route:<38}{does}" for method, does in methods.items()]
        self.send_bytes("\n".join([*lines, ""]).encode(), "text/plain; charset=utf-8")


def _data() -> list[dict[str, object]]:
    return [
        {"route": route, "methods": list(methods), "does": methods}
        for route, methods in ROUTES.items()
    ]
