"""Names become folders: local ones first, then the Hub's, with a sentence for every failure.

What talks to the Hub runs in a process of its own with the real huggingface_hub, against a server
on 127.0.0.1: HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read when that library is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import HubServer

from deltamem_mlx.forms import FORMS
from deltamem_mlx.hub import ADAPTER_FILES, resolve, without_secrets

# Resolves each [name, options] of its argument and prints what came of it, one JSON line each.
RESOLVE = """
import json, sys
from deltamem_mlx.hub import resolve
for name, options in json.loads(sys.argv[1]):
    try:
        folder = resolve(name, **options)
        found = [file for file in folder.rglob("*") if file.is_file()]
        files = {str(file.relative_to(folder)): file.read_text() for file in found}
        print(json.dumps({"folder": str(folder), "files": files}))
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


def resolved(
    env: dict[str, str], *names: str, cwd: Path, **options: object
) -> tuple[list[dict], str]:
    """The outcome of each name, and what went to stderr."""
    asked = json.dumps([[name, options] for name in names])
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, asked],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    (folder / "extra").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "adapter.npz").write_text("weights")
    (folder / "extra" / "notes.md").write_text("not needed")
    return folder


def test_repository_is_downloaded_whole_or_by_pattern(
    hub: HubServer, repo: Path, tmp_path: Path
) -> None:
    hub.add("user/adapter", repo)
    [whole], said = resolved(hub.env(tmp_path / "a"), "user/adapter", cwd=tmp_path)
    assert whole["files"] == {
        "config.json": "{}",
        "adapter.npz": "weights",
        "extra/notes.md": "not needed",
    }
    assert whole["folder"].startswith(str(tmp_path / "a")), "HF_HOME is where downloads go"
    assert "Fetching 3 files" in said, "huggingface_hub shows its progress"

    patterns = ["*.json", "*.npz"]
    [some], _ = resolved(
        hub.env(tmp_path / "b"), "user/adapter", cwd=tmp_path, allow_patterns=patterns
    )
    assert set(some["files"]) == {"config.json", "adapter.npz"}


def test_a_models_weights_are_not_fetched_in_an_adapters_place(
    hub: HubServer, tmp_path: Path
) -> None:
    """Of an adapter all files of its form are, and of a model what says that it is one."""
    model, adapters = tmp_path / "model", tmp_path / "adapters"
    model.mkdir()
    adapters.mkdir()
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (model / name).write_text("{}")
    for name in [name for form in FORMS for name in form.files]:
        (adapters / name).write_text("{}")
    (adapters / "0000100_adapters.safetensors").write_text("{}")
    hub.add("user/model", model)
    hub.add("user/adapters", adapters)
    names, patterns = ("user/model", "user/adapters"), list(ADAPTER_FILES)
    (one, all_forms), _ = resolved(
        hub.env(tmp_path / "home"), *names, cwd=tmp_path, allow_patterns=patterns
    )
    assert set(one["files"]) == {"config.json"}
    assert set(all_forms["files"]) == {name for form in FORMS for name in form.files}


def test_second_time_no_file_is_fetched_and_offline_nothing_is_asked(
    hub: HubServer, repo: Path, tmp_path: Path
) -> None:
    hub.add("user/adapter", repo)
    home = tmp_path / "home"
    [first], _ = resolved(hub.env(home), "user/adapter", cwd=tmp_path)
    hub.requests.clear()
    [again], _ = resolved(hub.env(home), "user/adapter", cwd=tmp_path)
    assert again == first
    assert not [path for method, path in hub.requests if "/resolve/" in path]
    hub.requests.clear()
    [offline], _ = resolved(hub.env(home, offline=True), "user/adapter", cwd=tmp_path)
    assert offline == first
    assert hub.requests == []


def test_revisions_are_branches_tags_or_commits(hub: HubServer, repo: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_text('{"v": 1}')
    hub.add("user/adapter", repo)
    commit = hub.add("user/adapter", older, revision="v1")
    names = ["user/adapter@v1", f"user/adapter@{commit}", "user/adapter@main", "user/adapter@v2"]
    (tag, sha, main, missing), _ = resolved(hub.env(tmp_path / "home"), *names, cwd=tmp_path)
    assert tag["files"] == sha["files"] == {"config.json": '{"v": 1}'}
    assert "adapter.npz" in main["files"]
    assert missing["error"] == "FileNotFoundError"
    assert "no revision 'v2'" in missing["text"]


def test_datasets_are_another_namespace(hub: HubServer, repo: Path, tmp_path: Path) -> None:
    hub.add("user/talks", repo, repo_type="dataset")
    env = hub.env(tmp_path / "home")
    [found], _ = resolved(env, "user/talks", cwd=tmp_path, repo_type="dataset")
    assert "config.json" in found["files"]
    [model], _ = resolved(env, "user/talks", cwd=tmp_path)
    assert model["error"] == "FileNotFoundError"


def test_unknown_and_gated_repositories_say_what_to_do(
    hub: HubServer, repo: Path, tmp_path: Path
) -> None:
    hub.add("user/gated", repo, gated=True)
    env = hub.env(tmp_path / "home")
    (unknown, gated), _ = resolved(env, "user/typo", "user/gated", cwd=tmp_path)
    assert unknown["error"] == "FileNotFoundError"
    assert unknown["text"].startswith(
        f"'user/typo' is neither a local folder nor a model repository at {hub.endpoint}."
    )
    assert gated["error"] == "PermissionError"
    assert f"{hub.endpoint}/user/gated" in gated["text"]
    assert "hf auth login" in gated["text"]


def test_no_answer_and_nothing_cached(hub: HubServer, repo: Path, tmp_path: Path) -> None:
    hub.add("user/adapter", repo)
    home = tmp_path / "home"
    [offline], _ = resolved(hub.env(home, offline=True), "user/adapter", cwd=tmp_path)
    assert offline["error"] == "FileNotFoundError"
    assert "HF_HUB_OFFLINE is set" in offline["text"]
    assert str(home) in offline["text"]

    hub.fail_with = 503
    [broken], _ = resolved(hub.env(home), "user/adapter", cwd=tmp_path)
    assert broken["error"] == "ConnectionError"
    assert hub.endpoint in broken["text"]

    env = hub.env(home) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    [closed], _ = resolved(env, "user/adapter", cwd=tmp_path)
    assert closed["error"] == "ConnectionError"
    assert "http://127.0.0.1:9 could not be reached" in closed["text"]


def test_repository_without_the_files_is_refused(
    hub: HubServer, repo: Path, tmp_path: Path
) -> None:
    hub.add("user/adapter", repo)
    [found], _ = resolved(
        hub.env(tmp_path / "home"), "user/adapter", cwd=tmp_path, allow_patterns=["*.safetensors"]
    )
    assert found == {
        "error": "FileNotFoundError",
        "text": "The Hub repository 'user/adapter' has none of the files: *.safetensors.",
    }


def test_local_folder_wins_over_the_hub(
    hub: HubServer, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("user/adapter", repo)
    (tmp_path / "user" / "adapter").mkdir(parents=True)
    [found], _ = resolved(hub.env(tmp_path / "home"), "user/adapter", cwd=tmp_path)
    assert found == {"folder": "user/adapter", "files": {}}
    assert hub.requests == []

    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/user/adapter") == tmp_path / "user" / "adapter"
    assert resolve(".") == Path(".")


@pytest.mark.parametrize(
    "name",
    [
        "./adapter",
        "../user/adapter",
        "/no/such/adapter",
        "~/adapter",
        "~nobody-here/adapter",
        "one/two/three",
        "user/adapter.safetensors",
        "user/delta_mem_config.json",
        "adapter",
        "user/",
        "/repo",
        "user//repo",
        "user/repo@",
        "user/repo@a@b",
        "user /repo",
        "",
        Path("user/adapter"),
    ],
)
def test_what_looks_like_a_path_never_reaches_the_hub(
    name: str | Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def called(*args: object, **kwargs: object) -> None:
        pytest.fail(f"asked the Hub for {args}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", called)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Expected a local folder, or a Hub repository"):
        resolve(name)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="is a file"):
        resolve(file)


SECRET = "http://me:s3cr3t%21@127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Cannot reach '{SECRET}/api/models'.", "Cannot reach 'http://127.0.0.1:9/api/models'."),
        ("https://hub.example/x?token=s3cr3t&a=b failed", "https://hub.example/x failed"),
        ("https://hub.example/x#s3cr3t.", "https://hub.example/x"),
        ("https://s3cr3t@hub.example:8/@user/repo", "https://hub.example:8/@user/repo"),
        ("https://a:p@s3cr3t@hub.example/x", "https://hub.example/x"),
        ("user@example.org reads https://hub.example/x", None),
    ],
)
def test_addresses_are_shown_without_their_secrets(text: str, shown: str | None) -> None:
    assert without_secrets(text) == (shown or text)


@pytest.mark.parametrize("name", ["user/adapter", "user/adapter@v1"])
def test_no_error_shows_the_password_of_the_hubs_address(tmp_path: Path, name: str) -> None:
    env = {"HF_ENDPOINT": SECRET, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    [outcome], _ = resolved(env, name, cwd=tmp_path)
    assert outcome["error"] == "ConnectionError" and "http://127.0.0.1:9" in outcome["text"]
    assert "s3cr3t" not in outcome["text"] and "me:" not in outcome["text"]
