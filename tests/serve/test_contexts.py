"""Contexts that outlive the server: the same answers, and next to nothing is fed again."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from serving import (
    ANSWER,
    CHAT,
    FACT,
    QUESTION,
    Client,
    Pair,
    Reply,
    assistant,
    memory_files,
    server,
    until,
    user,
)

from deltamem_mlx.files import FolderInUse
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.serve.memories import contexts
from deltamem_mlx.serve.memories.context_file import ContextTerms, identity, read_context
from deltamem_mlx.serve.provider import ServedPair
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings, SettingsError

OTHER = "ben is a doctor ."
LONG = " ".join([FACT] * 25)  # 125 tokens


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "QUIET", 0.02)


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return ServeSettings(
        port=0, memory_dir=tmp_path / "memories", context_dir=tmp_path / "contexts"
    )


@contextmanager
def served(pair: Pair, settings: ServeSettings) -> Iterator[Client]:
    with Server(*pair, "builtin", settings) as serving:
        yield Client(serving.url)


def cached(reply: Reply) -> int:
    """Tokens of the prompt that were not fed for this answer."""
    return reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]


def fed(reply: Reply) -> int:
    return reply.json["usage"]["prompt_tokens"] - cached(reply)


def files(settings: ServeSettings) -> list[Path]:
    return sorted(settings.context_dir.glob("context-*"))


def told(client: Client, facts: int) -> Reply:
    """The answer to a message of so many facts, five tokens each."""
    body = {"messages": [user(" ".join([FACT] * facts))], "max_tokens": 8}
    body["memory"] = {"session": "me"}
    return client.request("POST", CHAT, body, timeout=600)


@pytest.mark.parametrize("facts", [25, pytest.param(800, marks=pytest.mark.slow)])
def test_after_a_restart_a_long_context_is_not_fed_again(
    pair: Pair, settings: ServeSettings, facts: int
) -> None:
    plain = replace(settings, memory_dir=None, context_dir=None)
    with served(pair, plain) as client:
        told(client, facts)
        want = client.chat(QUESTION, "me", logprobs=True, top_logprobs=3)
    with served(pair, settings) as client:
        told(client, facts)
    assert len(files(settings)) == 1 and files(settings)[0].stat().st_mode & 0o777 == 0o600
    with served(pair, settings) as client:
        found = client.chat(QUESTION, "me", logprobs=True, top_logprobs=3)
        assert found.json["choices"] == want.json["choices"]
        assert cached(found) > 5 * facts and 10 * fed(found) < cached(found)
        assert "deltamem_context_restored 1\n" in client.request("GET", "/metrics").body.decode()


@pytest.mark.slow
def test_killed_it_has_the_contexts_of_all_who_were_quiet(
    settings: ServeSettings, tmp_path: Path
) -> None:
    folders = ("--memory-dir", settings.memory_dir, "--context-dir", settings.context_dir)
    with server(*folders, log=tmp_path / "log") as (process, url):
        told(Client(url), 800)
        until(lambda: files(settings))
        process.kill()
        process.wait()
    with server(*folders, log=tmp_path / "log") as (process, url):
        found = Client(url).chat(QUESTION, "me")
        assert cached(found) > 4000 and 10 * fed(found) < cached(found)
        process.terminate()
        assert process.wait(300) == 0
    assert "dropped" not in (tmp_path / "log").read_text()


def test_answers_can_be_asked_for_again_after_a_restart(
    pair: Pair, settings: ServeSettings
) -> None:
    said = []
    with served(pair, settings) as client:
        for text in (FACT, OTHER, QUESTION):
            said.append(user(text))
            said.append(assistant(client.chat(said, "me").text))
    with served(pair, settings) as client:
        again = client.chat(said[:-1], "me")
        assert again.memory["turns_taken_back"] == 1 and again.text == said[-1]["content"]
        assert cached(again) > 20  # the turns before are in sight
        edited = client.chat([*said[:2], user(QUESTION)], "me")
        assert edited.memory["turns_taken_back"] == 2 and ANSWER in edited.text
        assert 0 < cached(edited) < cached(again)


def test_a_response_is_gone_on_from_with_its_context(pair: Pair, settings: ServeSettings) -> None:
    with served(pair, settings) as client:
        asked = {"input": LONG, "max_output_tokens": 8}
        told = client.request("POST", "/v1/responses", asked).json
    with served(pair, settings) as client:
        asked = {"input": QUESTION, "previous_response_id": told["id"], "max_output_tokens": 8}
        usage = client.request("POST", "/v1/responses", asked).json["usage"]
        assert usage["input_tokens_details"]["cached_tokens"] > 125


def test_a_context_that_left_ram_is_read_again(pair: Pair, settings: ServeSettings) -> None:
    small = replace(settings, memory_bytes=1)  # whatever nobody holds leaves
    with served(pair, small) as client:
        client.chat(FACT, "me")
        until(lambda: files(settings))
        client.chat(FACT, "other")
        assert cached(client.chat(QUESTION, "me")) > 0


@pytest.mark.parametrize("change", ["the memory", "another memory's", "the model"])
def test_a_context_that_does_not_fit_is_dropped(
    pair: Pair, settings: ServeSettings, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    with served(pair, settings) as client:
        client.chat(FACT, "me")
        client.chat(OTHER, "other")
    if change == "the memory":
        with served(pair, replace(settings, context_dir=None)) as client:
            client.chat(OTHER, "me", memory={"context": "drop"})
    if change == "another memory's":
        one, other = files(settings)
        one.write_bytes(other.read_bytes())
        other.unlink()
    if change == "the model":
        model = pair[0]
        weights = model.model.embed_tokens.weight
        model.model.embed_tokens.weight = weights + mx.array(1e-6)
    try:
        with served(pair, settings) as client:
            for key in ("me", "other"):
                assert client.memory("GET", key).json["context_tokens"] == 0
                found = client.chat(QUESTION, key)
                if key == "me" or change != "the memory":
                    assert cached(found) == 0
        left = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
        assert left and set(left) == {"a context that does not fit its memory was dropped"}
    finally:
        if change == "the model":
            model.model.embed_tokens.weight = weights


def test_a_damaged_file_is_dropped_with_a_line_in_the_log_and_others_are_left_alone(
    pair: Pair, settings: ServeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with served(pair, settings) as client:
        client.chat(FACT, "me")
    (file,) = files(settings)
    whole, names = file.read_bytes(), ("context-me.safetensors", "a.safetensors", ".note")
    for name in names:
        (settings.context_dir / name).write_bytes(b"a stranger's")
    file.write_bytes(whole[:-1] + b"0")
    with served(pair, settings) as client:
        id = client.memory("GET", "me").json["id"]
        assert cached(client.chat(QUESTION, "me", memory={"read_only": True})) == 0
    (line,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert line.getMessage() == "a context that is damaged was dropped" and line.memory in id
    assert {p.name for p in settings.context_dir.iterdir()} >= set(names)
    assert (settings.context_dir / "a.safetensors").read_bytes() == b"a stranger's"


def test_no_byte_of_a_file_may_be_another(pair: Pair, settings: ServeSettings) -> None:
    with served(pair, settings) as client:
        client.chat(FACT, "me")
    (file,), (kept,) = files(settings), memory_files(settings.memory_dir)
    served_pair = ServedPair.of(*pair, {})
    about = (served_pair, read_memory(kept), identity(served_pair), ContextTerms(100, 1))
    whole = file.read_bytes()
    read_context(file, *about)
    places = [*range(0, 4000, 37), len(whole) // 2, len(whole) - 1]
    changed = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    for content in (*changed, b"", whole[:-1], whole + b"0", b"{}", bytes(64)):
        file.write_bytes(content)
        with pytest.raises(ValueError):
            read_context(file, *about)


def test_nothing_is_left_of_a_memory_that_is_deleted_or_begun_anew(
    pair: Pair, settings: ServeSettings
) -> None:
    with served(pair, settings) as client:
        for key in ("gone", "anew", "undone"):
            client.chat(FACT, key)
        until(lambda: len(files(settings)) == 3)
        assert any(b"oslo" in file.read_bytes() for file in files(settings))
        client.memory("DELETE", "gone")
        client.memory("POST", "undone", "/undo")
        assert len(files(settings)) == 1
        client.chat(OTHER, "anew", memory={"reset": True})
    assert [b"oslo" in file.read_bytes() for file in files(settings)] == [False]


def test_nothing_is_left_of_a_memory_whose_file_was_removed(
    pair: Pair, settings: ServeSettings
) -> None:
    small = replace(settings, memory_bytes=1)  # whatever nobody holds leaves RAM
    with served(pair, settings) as client:
        client.chat(FACT, "me")
        until(lambda: files(settings))
        memory_files(settings.memory_dir)[0].unlink()
        assert client.memory("GET", "me").status == 404 and not files(settings)
        client.chat(FACT, "me")
    assert files(settings)
    memory_files(settings.memory_dir)[0].unlink()
    with served(pair, small) as client:
        assert not files(settings)
        client.chat(FACT, "me")
        until(lambda: files(settings))
        (mine,) = memory_files(settings.memory_dir)
        client.chat(FACT, "other")
        until(lambda: len(files(settings)) == 2)
        mine.unlink()
        client.request("DELETE", "/v1/memories")
        assert not files(settings)


def test_beyond_the_budget_the_least_recently_used_goes(
    pair: Pair, settings: ServeSettings
) -> None:
    with served(pair, settings) as client:
        client.chat(FACT, "a")
    size = files(settings)[0].stat().st_size
    with served(pair, replace(settings, context_bytes=int(3.9 * size))) as client:
        for count, key in enumerate("bc", start=2):
            client.chat(FACT, key)
            until(lambda count=count: len(files(settings)) == count)
        client.chat(FACT, "a", memory={"read_only": True})  # used again
        until(lambda: "a" in keys(client, settings))
        client.chat(FACT, "d")
        until(lambda: "d" in keys(client, settings))
        assert keys(client, settings) == {"a", "c", "d"}
    with served(pair, replace(settings, context_bytes=2 * size)) as client:
        assert len(files(settings)) == 1
        client.chat(LONG, "d")
    assert not files(settings)  # larger than all that there is room for


def keys(client: Client, settings: ServeSettings) -> set[str]:
    """Whose contexts are in files."""
    names = {file.stem.removeprefix("context-") for file in files(settings)}
    return {key for key in "abcd" if client.memory("GET", key).json.get("id") in names}


def test_a_full_disk_loses_the_context_only(
    pair: Pair,
    settings: ServeSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.context_dir.mkdir()
    with served(pair, settings) as client:
        settings.context_dir.chmod(0o500)
        monkeypatch.setattr(contexts, "write_context", full)
        client.chat(FACT, "me")
        until(lambda: "a context could not be saved" in caplog.text)
        assert ANSWER in client.chat(QUESTION, "me").text
    settings.context_dir.chmod(0o700)
    assert not files(settings)
    with served(pair, settings) as client:
        assert ANSWER in client.chat(QUESTION, "me").text


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_folders_that_cannot_be_used_are_refused(pair: Pair, settings: ServeSettings) -> None:
    with pytest.raises(SettingsError, match="without --memory-dir"):
        replace(settings, memory_dir=None)
    with pytest.raises(SettingsError, match="another folder"):
        replace(settings, context_dir=settings.memory_dir / ".." / "memories")
    with served(pair, settings):
        other = replace(settings, memory_dir=settings.memory_dir.with_name("others"))
        with pytest.raises(FolderInUse, match=r"contexts is in use by a server \(process"):
            Server(*pair, "builtin", other)
    with served(pair, other), pytest.raises(FolderInUse, match="others is in use"):
        Server(*pair, "builtin", other)
