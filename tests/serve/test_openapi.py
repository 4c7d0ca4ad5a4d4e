"""/openapi.json describes what the server does: every route, and what each may answer."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Client, builtin_pair

import deltamem_mlx
from deltamem_mlx.serve.http.front import ROUTES
from deltamem_mlx.serve.http.openapi import description
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

SERVE = Path(deltamem_mlx.__file__).parent / "serve"
UNDER = {
    "memory_actions": "/v1/memories",
    "response_actions": "/v1/responses",
    "conversation_actions": "/v1/conversations",
    "message_actions": "/v1/messages",
    "_actions": "",
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        yield Client(server.url)


def matched(case: ast.match_case) -> Iterator[tuple[int, tuple[str, ...]]]:
    """How many parts an address of a ``case`` has, and those of them that are fixed."""
    either = case.pattern.patterns if isinstance(case.pattern, ast.MatchOr) else [case.pattern]
    for pattern in either:
        assert isinstance(pattern, ast.MatchSequence)
        if not any(isinstance(part, ast.MatchStar) for part in pattern.patterns):
            fixed = [p.value.value for p in pattern.patterns if isinstance(p, ast.MatchValue)]
            yield len(pattern.patterns), tuple(fixed)


def handled() -> set[tuple[str, int, tuple[str, ...]]]:
    """All that the handler's ``match`` statements know: beginning, length, fixed parts."""
    return {
        (UNDER[node.name], *found)
        for path in SERVE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in UNDER
        for case in ast.walk(node)
        if isinstance(case, ast.match_case)
        for found in matched(case)
    }


def described() -> set[tuple[str, int, tuple[str, ...]]]:
    found = set()
    for route in ROUTES:
        under = next((b for b in UNDER.values() if b and f"{route}/".startswith(f"{b}/")), "")
        parts = route[len(under) :].removeprefix("/").split("/")
        parts = parts if parts != [""] or not under else []
        fixed = tuple(part for part in parts if not part.startswith("{"))
        found.add((under, len(parts), fixed))
    return found


def test_every_route_of_the_handler_is_described_and_no_other() -> None:
    # The parts of the address that a `case` leaves open: models, and the page's own files.
    open_ones = {("", 2, ("v1", "models")), ("", 3, ("v1", "models"))}
    open_ones |= {("", 1, ("openapi.json",))}
    assert handled() - described() == set()
    assert described() - handled() <= open_ones


def test_what_is_described_is_what_is_listed_and_the_pages_parts(client: Client) -> None:
    told = client.request("GET", "/openapi.json").json
    assert told["openapi"].startswith("3.1") and told["info"]["title"] == "deltamem-mlx"
    listed = {e["route"]: set(e["methods"]) for e in client.request("GET", "/").json["data"]}
    found = {route: {m.upper() for m in methods} for route, methods in told["paths"].items()}
    parts = {route for route in found if route.startswith("/page/")}
    assert parts and {r: m for r, m in found.items() if r not in parts} == listed
    for part in parts:
        assert client.request("GET", part).status == 200


@pytest.mark.parametrize(
    "status", ["400", "401", "403", "404", "405", "409", "411", "413", "429", "500"]
)
def test_every_refusal_is_described_in_the_form_that_it_has(status: str) -> None:
    for methods in description(ROUTES)["paths"].values():
        for operation in methods.values():
            content = operation["responses"][status]["content"]
            assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}


def test_statuses_and_types_of_answers_are_among_those_described(client: Client) -> None:
    client.chat("anna lives in oslo .", "a")
    paths = client.request("GET", "/openapi.json").json["paths"]
    for route, methods in paths.items():
        for method, operation in methods.items():
            path = route.replace("{key}", "a").replace("{", "").replace("}", "")
            reply = client.request(method.upper(), path)
            told = operation["responses"][str(reply.status)]
            kind = reply.headers["content-type"].partition(";")[0]
            assert kind in told["content"] or "*/*" in told["content"], (route, method)
