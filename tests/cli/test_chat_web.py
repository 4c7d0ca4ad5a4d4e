"""`deltamem-mlx chat --web`: the page of a server, with the user's own memories, for one person."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import COMMAND, Nursery
from serving import Client
from typer.testing import CliRunner

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.files.places import memories_folder
from deltamem_mlx.memory.shelf import MemoryShelf

FACT, QUESTION = "anna lives in oslo .", "where does anna live ?"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """One that notes the address it is given: what names it, and where that is."""
    program, opened = tmp_path / "browser", tmp_path / "opened"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    program.chmod(0o700)
    yield {"BROWSER": f"{program} %s"}, opened


@pytest.fixture
def told() -> None:
    """The user has a memory called `me`, which knows where anna lives."""
    session = dm.MemorySession(*dm.load())
    session.remember(FACT)
    memories_folder().mkdir(parents=True)
    session.save(memories_folder() / "me.safetensors", history=1)


def names(client: Client) -> list[str | None]:
    """Of the memories that there are."""
    return [memory["session"] for memory in client.request("GET", "/v1/memories").json["data"]]


@pytest.mark.usefixtures("told")
def test_the_page_opens_with_the_users_own_memories_until_ctrl_c(
    nursery: Nursery, browser: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    env, opened = browser
    with nursery.piped(*COMMAND, "chat", "--web", "--memory", "me", env=env, cwd=tmp_path) as chat:
        address = chat.stdout.readline().strip()
        assert "Ctrl-C ends it" in chat.stderr.readline()
        assert opened.read_text() == address
        url, name = address.split("/#")
        assert (url.rpartition(":")[0], name) == ("http://127.0.0.1", "me")
        client = Client(url)
        assert names(client) == ["me"]
        assert "oslo" in client.chat(QUESTION, "me").text
        client.chat("ben is a doctor .", "ben 2")
        assert client.chat(FACT, "../me").status == 400
        chat.kill(signal.SIGINT)
        assert chat.wait(300) == 0
    assert MemoryShelf().names() == ["ben 2", "me"]
    assert len(MemoryShelf().get("me").file.history) == 2
    assert [path.name for path in tmp_path.glob("*.safetensors")] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "1"], "--web and --seed"),
        (["--system-prompt", "Be brief."], "--web and --system-prompt"),
        (["--memory", "elsewhere/me.safetensors"], "memories import elsewhere/me.safetensors"),
    ],
)
def test_what_the_page_does_not_have_is_refused(flags: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["chat", "--web", *flags])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
