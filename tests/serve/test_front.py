"""What is at the address itself: the routes, which are all there."""

import pytest
from serving import FACT, Client

METHODS = ("GET", "POST", "PUT", "DELETE")


def test_every_route_takes_the_methods_that_are_listed_and_no_others(client: Client) -> None:
    listed = client.request("GET", "/").json
    assert listed["model"] == "builtin" and len(listed["data"]) > 15
    for entry in listed["data"]:
        path = entry["route"].replace("{", "").replace("}", "")
        for method in METHODS:
            reply = client.request(method, path, b"" if method in ("POST", "PUT") else None)
            unknown = reply.status == 404 and b"nothing at this address" in reply.body
            assert not unknown, path
            assert (reply.status != 405) == (method in entry["methods"]), (method, path)


def test_who_asks_for_text_gets_the_list_as_text(client: Client) -> None:
    page = client.request("GET", "/", headers={"Accept": "text/plain"})
    assert page.headers["content-type"].startswith("text/plain")
    assert "POST   /v1/chat/completions" in page.body.decode()


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/memories", "/health", "/metrics"])
def test_where_get_is_head_is_too(client: Client, path: str) -> None:
    head, whole = client.request("HEAD", path), client.request("GET", path)
    assert head.status == whole.status == 200 and head.body == b""
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_no_head_where_there_is_no_get(client: Client) -> None:
    assert client.request("HEAD", "/v1/chat/completions").status == 405
    client.chat(FACT, "me")
    assert client.memory("HEAD", "me").status == 200
    assert client.memory("HEAD", "nobody").status == 404
