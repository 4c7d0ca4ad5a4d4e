"""Log lines of a server process, for people or `--log-format json`; never what is said."""

import json
import re
from pathlib import Path

import pytest
from serving import FACT, Client, module, server


def lines_of(tmp_path: Path, *options: str) -> list[str]:
    """What a server logs of a turn, a refusal and an address that is not there."""
    log = tmp_path / "log"
    with server(*options, log=log) as (process, url):
        client = Client(url)
        assert client.chat(FACT, "secret key").status == 200
        assert client.chat(FACT, "secret key", temperature=-1).status == 400
        assert client.request("GET", "/secret%0Aaddress").status == 404
        process.terminate()
        process.wait(30)
    text = log.read_text()
    assert not any(word in text for word in ("anna", "secret"))
    return text.splitlines()


def test_lines_for_people_say_when_what_and_how_it_went(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    assert all(re.match(r"\d\d:\d\d:\d\d \w", line) for line in lines)
    said = [line.split(" ", 1)[1] for line in lines]
    assert said[0].startswith("ready address=http://127.0.0.1:") and said[-1] == "stopped"
    turn = next(line for line in said if " 200 " in line)
    assert turn.startswith("request POST /v1/chat/completions 200 seconds=")
    assert re.search(r" memory=[0-9a-f]{12} .*generated_tokens=\d+ tokens_written=\d+$", turn)
    assert any(line.startswith("request GET unknown 404 ") for line in said)


def test_json_lines_say_the_same(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in lines_of(tmp_path, "--log-format", "json")]
    assert lines[0]["event"] == "ready" and lines[-1]["event"] == "stopped"
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 400, 404]
    assert {"time", "level", "method", "route", "seconds", "memory"} <= set(requests[0])


@pytest.mark.parametrize(
    "options", [("--log-format", "xml"), ("--session-header", "two words")], ids=str
)
def test_options_that_mean_nothing_end_with_a_sentence(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    log = tmp_path / "log"
    with module("deltamem_mlx", "serve", "--port", 0, *options, log=log) as process:
        assert process.wait(60) == 2
    assert options[0] in log.read_text()
