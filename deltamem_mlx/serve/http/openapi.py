"""The routes as OpenAPI 3.1 describes them, at ``/openapi.json``."""

import re
from collections.abc import Mapping

from ..._version import __version__
from ..requests.bodies import MAX_KEY

Schema = dict[str, object]

_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
_FLAG: Schema = {"type": "boolean"}
_MEMORY: Schema = {
    "type": "object",
    "properties": {
        "session": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
        "read_only": _FLAG,
        "reset": _FLAG,
        "remember": {"type": ["string", "array"], "items": _TEXT},
        "context": {"enum": ["keep", "drop"]},
        "keep_partial": _FLAG,
        "one_chat": _FLAG,
    },
}
_SHARED: Schema = {
    "model": {"type": "string", "default": "default_model"},
    "stream": _FLAG,
    "temperature": {"type": "number", "minimum": 0},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": -1},
}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool"]},
        "content": {"type": ["string", "array"], "items": _OBJECT},
    },
    "required": ["role", "content"],
}
_MESSAGES: Schema = {"type": "array", "items": _MESSAGE, "minItems": 1}
_TOOLS: Schema = {"tools": {"type": "array", "items": _OBJECT}}
_MOST: Schema = {"type": "integer", "minimum": 1}
_STOP: Schema = {"type": ["string", "array"], "items": _TEXT}


def _body(required: tuple[str, ...] = (), **properties: object) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


_ITEMS: Schema = {"type": "array", "items": _OBJECT, "maxItems": 20}
_BODIES: dict[str, Schema] = {
    "POST /v1/chat/completions": _body(
        ("messages",), messages=_MESSAGES, max_tokens=_MOST, stop=_STOP, memory=_MEMORY,
        response_format=_OBJECT, tool_choice={"type": ["string", "object"]},
        max_completion_tokens=_MOST, parallel_tool_calls=_FLAG, reasoning_effort=_TEXT,
        logprobs=_FLAG, top_logprobs={"type": "integer"},
        logit_bias={"type": "object", "additionalProperties": {"type": "number"}},
        chat_template_kwargs=_OBJECT, stream_options=_OBJECT, **_TOOLS, **_SHARED,
    ),
    "POST /v1/completions": _body(
        ("prompt",), prompt=_TEXT, max_tokens=_MOST, stop=_STOP, logprobs=_FLAG, **_SHARED
    ),
    "POST /v1/responses": _body(
        ("input",), input={"type": ["string", "array"], "items": _OBJECT}, instructions=_TEXT,
        previous_response_id=_TEXT, conversation={"type": ["string", "object"]}, store=_FLAG,
        max_output_tokens=_MOST, parallel_tool_calls=_FLAG, text=_OBJECT, reasoning=_OBJECT,
        metadata=_OBJECT, memory=_MEMORY, **_TOOLS, **_SHARED,
    ),
    "POST /v1/conversations": _body(items=_ITEMS, metadata=_OBJECT),
    "POST /v1/conversations/{id}": _body(metadata=_OBJECT),
    "POST /v1/conversations/{id}/items": _body(("items",), items=_ITEMS),
    "POST /v1/messages": _body(
        ("messages", "max_tokens"), messages=_MESSAGES, max_tokens=_MOST, system=_TEXT,
        stop_sequences={"type": "array", "items": _TEXT}, tool_choice=_OBJECT, memory=_MEMORY,
        output_config=_OBJECT, thinking=_OBJECT,
        **_TOOLS, **_SHARED,
    ),
    "POST /v1/messages/count_tokens": _body(("messages",), messages=_MESSAGES, **_TOOLS),
    "POST /v1/memories/{key}/undo": _body(turns={"type": "integer", "minimum": 1}),
    "POST /v1/memories/{key}/redo": _body(),
    "POST /v1/memories/{key}/fork": _body(("to",), to=_TEXT),
    "POST /v1/memories/{key}/rename": _body(("to",), to=_TEXT),
}  # fmt: skip
_BODIES["POST /chat/completions"] = _BODIES["POST /v1/chat/completions"]
_ANSWERING = {
    "/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
}  # fmt: skip
_MADE = {
    "POST /v1/memories/{key}/fork": ("201",),
    "PUT /v1/memories/{key}": ("200", "201"),
}
_WHY = {
    "200": "done",
    "201": "made",
    "400": "the request cannot be used",
    "401": "the API key is missing or wrong",
    "403": "a web page, or a name in Host, that may not call",
    "404": "there is no such thing",
    "405": "the address takes other methods: one ends at a # that is not written as %23",
    "408": "the body did not come in time",
    "409": "the memory is busy, or is not what the request takes it to be",
    "411": "no Content-Length",
    "413": "the body is too large",
    "429": "too many requests wait or run already",
    "500": "a bug, or a full disk: the memory is as it was before",
    "503": "the server is shutting down, or cannot generate",
}
_KINDS = {
    "/metrics": ("text/plain",),
    "/": ("application/json", "text/plain", "text/html"),
    "/v1/memories/{key}/export": ("application/octet-stream",),
}
_PAGES = (
    ("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
    ("order", {"enum": ["asc", "desc"]}),
    ("after", _TEXT),
)


def description(routes: Mapping[str, Mapping[str, str]]) -> Schema:
    """All routes and what they answer, as an OpenAPI document.

    Args:
        routes (Mapping): Address → method → what it does.
    """
    paths = {
        route: {method.lower(): _operation(route, method, does) for method, does in methods.items()}
        for route, methods in routes.items()
    }
    error = {"type": "object", "properties": {"error": _OBJECT}, "required": ["error"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "deltamem-mlx", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: str, method: str, does: str) -> Schema:
    names = re.findall(r"\{(\w+)\}", route)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in names
    ]
    if method == "GET" and route.endswith("items"):
        parameters += [{"name": n, "in": "query", "schema": schema} for n, schema in _PAGES]
    usual = "*/*" if route.startswith("/page/") else "application/json"
    kinds = _KINDS.get(route, (usual,))
    kinds += ("text/event-stream",) if route in _ANSWERING else ()
    good = _MADE.get(f"{method} {route}", ("200",))
    operation: Schema = {
        "summary": does,
        "parameters": parameters,
        "responses": {
            status: {"description": why, "content": _content(status, kinds)}
            for status, why in _WHY.items()
            if status >= "400" or status in good
        },
    }
    if method == "PUT":
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    elif (body := _BODIES.get(f"{method} {route}")) is not None:
        required = bool(body["required"])
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": required, "content": content}
    return operation


def _content(status: str, kinds: tuple[str, ...]) -> Schema:
    if status >= "400":
        return {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {kind: {"schema": _OBJECT} if kind == "application/json" else {} for kind in kinds}
