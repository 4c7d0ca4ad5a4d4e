"""What a browser gets at the address itself: files of this server alone, under a strict policy."""

import re
from collections.abc import Iterator

import pytest
from serving import CHAT, HELLO, Client, Pair, Reply

from deltamem_mlx.serve.page.files import page_files
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0)) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0, api_key="secret")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url)


def policy_of(page: Reply) -> dict[str, str]:
    """Directive → its value."""
    parts = (part.split(None, 1) for part in page.headers["content-security-policy"].split(";"))
    return {name: value for name, value in parts}


def test_a_browser_gets_the_page_and_programs_the_routes(client: Client) -> None:
    page, routes = client.request("GET", "/", headers=HTML), client.request("GET", "/")
    assert page.status == routes.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<!doctype html>" in page.body and routes.json["object"] == "list"
    assert page.headers["vary"] == routes.headers["vary"] == "Accept"
    assert client.request("POST", "/", b"{}", HTML).status == 405


def test_nothing_runs_but_the_files_of_this_server(client: Client) -> None:
    page = client.request("GET", "/", headers=HTML)
    policy = policy_of(page)
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    html = page.body.decode()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+=|\sstyle=", html)


def test_every_file_that_the_page_names_is_there_and_from_here(client: Client) -> None:
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    html = client.request("GET", "/", headers=HTML).body.decode()
    left, seen = set(re.findall(r'(?:src|href)="([^"#]+)"', html)), set()
    while left:
        path = left.pop()
        seen.add(path)
        file = client.request("GET", f"/{path}")
        assert file.status == 200 and file.headers["x-content-type-options"] == "nosniff", path
        assert file.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
        imported = re.findall(r'from "\./([\w.]+)"', file.body.decode())
        left |= {f"page/{name}" for name in imported} - seen
    assert {path.rpartition("/")[2] for path in seen} == page_files().keys() - {"index.html"}
    others = {name for name, file in page_files().items() if re.search(rb"https?://", file.body)}
    assert others == {"icon.svg"}  # its namespace


@pytest.mark.parametrize("path", ["/page/", "/page/nothing.js", "/page/..%2ffiles.py", "/page"])
def test_nothing_else_is_sent(client: Client, path: str) -> None:
    assert client.request("GET", path, headers=HTML).status == 404


def test_head_is_answered_as_get_is(client: Client) -> None:
    for path in ("/", "/page/main.js"):
        head, whole = (client.request(method, path, None, HTML) for method in ("HEAD", "GET"))
        assert head.status == 200 and head.body == b"" and whole.body
        assert head.headers["content-length"] == str(len(whole.body))
        assert policy_of(head) == policy_of(whole)


def test_the_page_needs_no_key_and_all_that_it_asks_does(keyed: Server) -> None:
    client = Client(keyed.url)
    for path in ("/", *(f"/page/{name}" for name in page_files())):
        assert client.request("GET", path, headers=HTML).status == 200, path
    for path in ("/", "/v1/models", "/v1/memories", "/v1/memories/me/state"):
        assert client.request("GET", path).code == "invalid_api_key", path
    assert client.request("GET", "/v1/models", headers=KEY).status == 200


def test_a_page_under_another_name_is_not_given_out(client: Client) -> None:
    evil = {"Host": f"evil.example:{client.port}"}
    for path in ("/", "/page/main.js"):
        assert client.request("GET", path, headers=HTML | evil).code == "bad_host", path


def test_the_page_may_call_its_own_server_and_other_origins_may_not(client: Client) -> None:
    def status(origin: str, host: str) -> int:
        return client.request("POST", CHAT, HELLO, {"Origin": origin, "Host": host}).status

    here = f"127.0.0.1:{client.port}"
    assert status(f"http://{here}", here) == 200
    assert status(f"https://{here}", here) == 200  # behind a proxy that has TLS
    assert status(f"http://127.0.0.1:{client.port + 1}", here) == 403
    assert status("http://127.0.0.1", here) == status("null", here) == 403
    assert status("http://evil.example", "evil.example") == 403  # a name made to mean this machine


def test_with_a_key_an_origin_of_its_own_name_may_call_with_the_key_only(keyed: Server) -> None:
    name = {"Origin": "http://my.proxy", "Host": "my.proxy"}
    client = Client(keyed.url)
    assert client.request("POST", CHAT, HELLO, name).code == "invalid_api_key"
    assert client.request("POST", CHAT, HELLO, name | KEY).status == 200
    other = name | KEY | {"Origin": "http://evil.example"}
    assert client.request("POST", CHAT, HELLO, other).code == "bad_origin"
