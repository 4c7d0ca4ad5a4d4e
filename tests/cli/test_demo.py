"""`deltamem-mlx demo`: a story, its answers with and without memory, and a short table."""

import json
import shutil
from pathlib import Path

import mlx_lm
import pytest
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.cli import demo as command
from deltamem_mlx.cli.main import app
from deltamem_mlx.evals.recall.builtin_data import EPISODES, STORY
from deltamem_mlx.evals.recall.demo import CELLS, CONDITIONS
from deltamem_mlx.evals.recall.episodes import Cell, RecallEpisode, write_episodes


def exchange(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "Ok [b]."}]


TOLD = {
    "tell": [*exchange("Al is in Rome."), *exchange("Bo is a [baker]."), *exchange("Al left.")],
    "other": [*exchange("Al is in Bonn."), *exchange("Bo is a cook.")],
    "questions": [
        {"question": "Where is Al?", "answer": "Rome"},
        {"question": "What is Bo?", "answer": "baker"},
    ],
}
EPISODES_ASKED = [
    RecallEpisode(
        tell=({"role": "user", "content": f"Al {i}."},),
        question="Al?",
        answer="3",
        old="4" if cell.kind == "updated" else None,
        **cell._asdict(),
    )
    for cell in (*CELLS, Cell("told", 16, 0))
    for i in range(3)
]


@pytest.fixture
def pair(qwen3_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the place of the built-in one."""
    shutil.copytree(qwen3_tiny, tmp_path / "base")
    model, _ = mlx_lm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=4.0), seed=1)
    dm.save_adapter(model, tmp_path / "adapter")
    write_episodes(tmp_path / EPISODES, EPISODES_ASKED)
    (tmp_path / STORY).write_text(json.dumps(TOLD))
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(builtin, "_HERE", tmp_path)
    monkeypatch.setattr(command, "MAX_TOKENS", 4)
    monkeypatch.setattr(builtin, "_ADAPTERS", tmp_path)
    return tmp_path


def call(*args: str) -> Result:
    done = CliRunner().invoke(app, ["demo", *args])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def test_answers_are_those_of_sessions(pair: Path) -> None:
    done = call("--json", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["tell"], found["other"]) == (TOLD["tell"], TOLD["other"])
    assert [a["question"] for a in found["answers"]] == ["Where is Al?", "What is Bo?"]
    model, tokenizer = dm.load(str(pair / "base"), str(pair / "adapter"))
    told = {"memory": TOLD["tell"], "none": None, "foreign": TOLD["other"]}
    for answer in found["answers"]:
        for name, messages in told.items():
            session = dm.MemorySession(model, tokenizer)
            if messages is not None:
                session.remember(messages)
                session.forget_context()
                assert session.stats()["memory_bytes"] == found["memory_bytes"]
            with session.read_only():
                said = session.ask(answer["question"], max_tokens=command.MAX_TOKENS)
            assert answer["said"][name] == said.strip(), (answer["question"], name)
            assert answer["correct"][name] is False


def test_short_evaluation(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pair / "base").rename(pair / "mine")
    command.show(pair / "mine", pair / "adapter", each=2, as_json=True)
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(c["kind"], c["facts"], c["questions"]) for c in cells] == [(*c[:2], 2) for c in CELLS]
    assert all(list(cell["conditions"]) == list(CONDITIONS) for cell in cells)


def test_text(pair: Path) -> None:
    done = call()
    assert done.exit_code == 0, done.stderr
    for said in ("Al is in Rome.", "Bo is a [baker].", "Al is in Bonn.", "What is Bo?"):
        assert said in done.stdout
    lines = done.stdout.splitlines()
    for name in ("1 fact told", "one of 4 facts changed later", 'asked beyond 4 facts: "I do not'):
        line = next(line for line in lines if name in line)
        assert line.split()[-6:] == ["0", "%"] * 3
    assert "deltamem-mlx chat --model" in lines[-1]
    assert done.stderr.strip().endswith(" s.")


@pytest.mark.parametrize("missing", ["base", "adapter", STORY, EPISODES])
def test_missing_files_are_one_sentence(pair: Path, missing: str) -> None:
    (pair / missing).rename(pair / "elsewhere")
    done = call()
    assert (done.exit_code, done.stdout) == (1, "")
    assert "built-in demo pair is not in this copy of deltamem-mlx" in done.stderr
    assert done.stderr.count("\n") == 1
