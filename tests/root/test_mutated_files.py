"""Files that were cut, changed or forged: every reader refuses them by one error, or reads them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import AGENT, HOTPOTQA, LOCOMO, written
from typer.testing import CliRunner

import deltamem_mlx as dm
from deltamem_mlx.adapters.files import read_adapter
from deltamem_mlx.cli.main import app
from deltamem_mlx.evals.benchmarks.hotpotqa import load_hotpotqa
from deltamem_mlx.evals.benchmarks.locomo import load_locomo
from deltamem_mlx.evals.benchmarks.memoryagentbench import load_memoryagentbench
from deltamem_mlx.evals.journal import Journal
from deltamem_mlx.evals.recall.episodes import read_episodes
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.text.datasets import load_conversations
from deltamem_mlx.training.checkpoint import read_checkpoint

FORGED = [
    *(b"-1", b"1e999", b"null", b"[]", b"{}", b'"x"', b"true", b"\\ud800"),
    *(b"99999999999999999999", b"\x00", b"\xff"),
]
TALK = {"messages": [{"role": r, "content": "hi"} for r in ("user", "assistant")]}
EPISODE = {"tell": TALK["messages"][:1], "question": "b", "answer": "c", "facts": 1}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with up to eight bits, bytes or stretches changed, cut out or put in."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(changed) + 1)
        how = draw.randrange(6)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            changed[at : at + 1] = draw.randbytes(1)
        elif how == 2:
            del changed[at : at + draw.choice([1, 4, 100])]
        elif how == 3:
            changed[at:at] = draw.randbytes(draw.choice([1, 4, 40]))
        elif how == 4:
            del changed[at:]
        else:
            changed[at : at + draw.choice([0, 1, 3])] = draw.choice(FORGED)
    return bytes(changed)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Callable]]:
    """What is read, by name: a file, and what reads it."""
    folder = tmp_path_factory.mktemp("files")
    pair = dm.load("builtin")
    session = dm.MemorySession(*pair)
    session.ask("anna lives in oslo .", max_tokens=3)
    session.save(folder / "memory.safetensors")
    session.save(folder / "session")
    dm.save_adapter(pair[0], folder / "adapter")
    dm.convert_adapter(folder / "adapter", folder / "published", form="published")
    (folder / "data").mkdir()
    for name in ("train", "valid"):
        written(folder / "data" / f"{name}.jsonl", [TALK] * 3)
    words = ["train", "--model", "builtin", "--data", str(folder / "data"), "--iters", "1", "-q"]
    done = CliRunner().invoke(app, [*words, "--adapter-path", str(folder / "run")])
    assert done.exit_code == 0, done.stderr
    Journal(folder / "journal", {"a": 1}).add([{"id": "x", "said": "y"}])
    files: dict[str, tuple[str, Callable]] = {
        "memory.safetensors": ("memory", lambda: read_memory(folder / "memory.safetensors")),
        "data/train.jsonl": ("rows", lambda: load_conversations(str(folder / "data"), seed=0)),
        "journal/questions.jsonl": ("answers", lambda: Journal(folder / "journal", {"a": 1})),
        "journal/run.json": ("settings", lambda: Journal(folder / "journal", {"a": 1})),
    }
    for parent, read in (
        ("session", lambda: dm.MemorySession.restore(folder / "session", *pair)),
        ("adapter", lambda: read_adapter(folder / "adapter")),
        ("published", lambda: read_adapter(folder / "published")),
    ):
        for path in (folder / parent).iterdir():
            if path.is_file() and not path.name.startswith("."):
                files[f"{parent}/{path.name}"] = (f"{parent} {path.suffix}", read)
    state = next((folder / "run").rglob("state*"))
    files[str(state.relative_to(folder))] = ("state", lambda: read_checkpoint(folder / "run"))
    for name, rows, load in (
        ("locomo.json", LOCOMO, load_locomo),
        ("hotpot.jsonl", HOTPOTQA, load_hotpotqa),
        ("agent.json", AGENT, load_memoryagentbench),
        ("episodes.jsonl", [EPISODE], read_episodes),
    ):
        path = written(folder / name, rows)
        files[name] = (name, lambda load=load, path=path: load(str(path)))
    pyarrow = pytest.importorskip("pyarrow")
    table, parquet = pyarrow.Table.from_pylist(HOTPOTQA), folder / "hotpot.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(table, parquet)
    files["hotpot.parquet"] = ("parquet", lambda: load_hotpotqa(str(parquet)))
    return {
        f"{what} {i}": (folder / name, read)
        for i, (name, (what, read)) in enumerate(sorted(files.items()))
    }


@pytest.mark.slow
def test_ten_thousand_mutated_files(readers: dict[str, tuple[Path, Callable]]) -> None:
    draw, wrong, seen = random.Random(0), [], 0
    for name, (path, read) in readers.items():
        good = path.read_bytes()
        read()
        for _ in range(600):
            path.write_bytes(mutated(good, draw))
            seen += 1
            try:
                read()
            except (ValueError, TypeError, OSError) as error:
                text = str(error)
                short = max(map(len, text.splitlines() or [""])) < 600
                if str(path.parent) not in text or not short or isinstance(error, UnicodeError):
                    wrong.append((name, type(error).__name__, text[:200]))
            except Exception as error:
                wrong.append((name, type(error).__name__, str(error)[:200]))
        path.write_bytes(good)
    assert seen >= 10_000
    assert not wrong, json.dumps(wrong[:10], indent=1)
