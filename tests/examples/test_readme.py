"""The README: short, its links lead somewhere, and what it shows without a download runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, RunCli

import deltamem_mlx as dm

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_it_is_read_in_a_minute() -> None:
    assert len(README.encode()) < 7000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_its_python_runs_as_it_stands(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "anna lives in oslo.", done.stderr
    assert (tmp_path / "anna.safetensors").stat().st_size < 10_000


def test_the_page_on_python_runs_and_has_every_public_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    own = [name for name in dir(dm.MemorySession) if not name.startswith("_")]
    names = [f"dm.{name}" for name in dm.__all__ if name != "__version__"]
    names += [f"{'MemorySession' if name == 'restore' else 'session'}.{name}" for name in own]
    assert [name for name in names if not re.search(rf"`{re.escape(name)}\b", page)] == []
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "python.md", "exec"), {})
    assert capsys.readouterr().out == "anna lives in oslo.\n"
    assert (tmp_path / "copy.safetensors").exists()


@pytest.mark.parametrize("page, commands", [("README.md", 2), ("docs/daily.md", 9)])
def test_its_commands_say_what_it_shows(
    page: str, commands: int, call_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r"^\$ deltamem-mlx ([^\n]*)\n((?:[^\n$`][^\n]*\n)+)", text, re.M)
    assert len(shown) == commands
    for command, answer in shown:
        words = re.findall(r'"[^"]*"|\S+', command)
        done = call_cli(*(word.strip('"') for word in words))
        # How long it took, and where, is another's.
        assert _but_for_times(done.stdout.strip()) == _but_for_times(answer.strip())


def _but_for_times(text: str) -> str:
    text = re.sub(r"[\d.]+ s \([\d,]+ a second\)", "", text)
    return re.sub(r"^\S*/(?=\w+\.safetensors)", "", text)
