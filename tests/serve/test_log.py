"""Log lines of a server process, for people or `--log-format json`; never what is said."""

import io
import json
import logging
import re
from pathlib import Path

import pytest
from serving import FACT, Client, Pair, module, server, until

from deltamem_mlx.serve.log import PACKAGE, JsonLines, TextLines
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


def ask(client: Client) -> None:
    """A turn, a refusal and an address that is not there."""
    assert client.chat(FACT, "secret key").status == 200
    assert client.chat(FACT, "secret key", temperature=-1).status == 400
    assert client.request("GET", "/secret%0Aaddress").status == 404


def lines_in(text: str) -> list[str]:
    assert not any(word in text for word in ("anna", "secret"))
    return text.splitlines()


def lines_of(pair: Pair, lines: logging.Formatter) -> list[str]:
    """What a server logs in this process."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(lines)
    log = logging.getLogger(PACKAGE)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
            ask(Client(serving.url))
            # A request is logged when its client has been answered.
            until(lambda: len(re.findall(r"\brequest\b", handler.stream.getvalue())) == 3)
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    return lines_in(handler.stream.getvalue())


def test_lines_for_people_say_when_what_and_how_it_went(pair: Pair) -> None:
    lines = lines_of(pair, TextLines())
    assert all(re.match(r"\d\d:\d\d:\d\d \w", line) for line in lines)
    said = [line.split(" ", 1)[1] for line in lines]
    assert said[0].startswith("ready address=http://127.0.0.1:") and said[-1] == "stopped"
    turn = next(line for line in said if " 200 " in line)
    assert turn.startswith("request POST /v1/chat/completions 200 seconds=")
    assert re.search(r" memory=[0-9a-f]{12} .*generated_tokens=\d+ tokens_written=\d+$", turn)
    assert any(line.startswith("request GET unknown 404 ") for line in said)


def test_json_lines_say_the_same(pair: Pair) -> None:
    check_json(lines_of(pair, JsonLines()))


@pytest.mark.slow
def test_the_option_gives_json(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with server("--log-format", "json", log=log) as (process, url):
        ask(Client(url))
        process.terminate()
        process.wait(300)
    check_json(lines_in(log.read_text()))


def check_json(raw: list[str]) -> None:
    lines = [json.loads(line) for line in raw]
    assert lines[0]["event"] == "ready" and lines[-1]["event"] == "stopped"
    requests = [line for line in lines if line["event"] == "request"]
    by_status = {line["status"]: line for line in requests}  # a line may come after the next answer
    assert len(requests) == 3 and sorted(by_status) == [200, 400, 404]
    assert {"time", "level", "method", "route", "seconds", "memory"} <= set(by_status[200])


def test_a_format_that_there_is_not_ends_with_a_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with module("deltamem_mlx", "serve", "--log-format", "xml", log=log) as process:
        assert process.wait(300) == 2
    assert "--log-format" in log.read_text()
