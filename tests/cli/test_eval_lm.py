"""`deltamem-mlx eval lm`: lm-eval's own tasks on a patched model, from local files."""

import json
import os
from pathlib import Path

import pytest

os.environ["HF_DATASETS_OFFLINE"] = "1"
pytest.importorskip("lm_eval")

import mlx.core as mx
import mlx_lm
from mlx_lm.evaluate import MLXLM
from mlx_lm.models.cache import make_prompt_cache
from tiny import tiny_model_folder
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.evals.lm import Remembering

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{question}}}}"
{rest}
metadata:
  version: 1.0
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
"""
GENERATE = """\
output_type: generate_until
doc_to_target: "{{choices[label]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
"""
DOCS = [
    {"question": "Which one barks?", "choices": ["a cat", "a dog"], "label": 1},
    {"question": "Two and two?", "choices": ["four", "five"], "label": 0},
    {"question": "Is it wet?", "choices": ["yes", "no"], "label": 0},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model_folder(folder / "base")
    model, _ = mlx_lm.load(str(base))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=4.0), seed=1)
    dm.save_adapter(model, folder / "adapter")
    return "--model", str(base), "--adapter", str(folder / "adapter")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, rest in {"own_choice": CHOICE, "own_text": GENERATE}.items():
        text = TASK.format(name=name, data=data, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["eval", "lm", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def test_conditions_begin_with_their_memory(pair: tuple[str, ...]) -> None:
    model, _ = dm.load(pair[1], pair[3])
    tokens = mx.array([[5, 6, 7, 8, 9]])
    other = make_prompt_cache(model)
    model(tokens, cache=other)
    state = dm.memory_state(other)

    def logits(remembering: Remembering) -> tuple[mx.array, dict]:
        cache = make_prompt_cache(remembering)
        out = remembering(tokens, cache=cache)
        return out, dm.memory_state(cache)

    written, after = logits(Remembering(model, None, write=True))
    shuffled, kept = logits(Remembering(model, state, write=False))
    plain, nothing = logits(Remembering(model, None, write=False))
    assert all(mx.array_equal(kept[i], state[i]) for i in state)
    assert all(mx.array_equal(after[i], state[i]) for i in state)
    assert not any(mx.any(x).item() for x in nothing.values())
    base = dm.detach(model)
    assert mx.allclose(plain, base(tokens), atol=1e-5)
    assert not mx.allclose(written, plain, atol=1e-3)
    assert not mx.allclose(shuffled, plain, atol=1e-3)


def test_tasks_under_every_condition_and_going_on(
    pair: tuple[str, ...], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--tasks", "own_choice,own_text", "--include-path", tasks, *pair, "--batch-size", "2")
    score, scored = MLXLM.loglikelihood, []

    def stops(self: MLXLM, requests: list) -> list:
        scored.append(len(requests))
        if len(scored) == 5:
            raise KeyboardInterrupt
        return score(self, requests)

    monkeypatch.setattr(MLXLM, "loglikelihood", stops)
    out = ("--out", tmp_path / "run")
    assert call(*args, *out).exit_code == 130
    done = call(*args, *out, "--json")
    assert done.exit_code == 0, done.stderr
    assert scored == [2] * (4 + 1 + 5), "two choices each of nine contexts, four of them kept"
    found = json.loads(done.stdout)
    assert [(x["metric"], x["group"], x["questions"]) for x in found["groups"]] == [
        ("acc", "own_choice", 3),
        ("exact_match", "own_text", 3),
    ]
    assert list(found["groups"][0]["scores"]) == ["memory", "none", "shuffled"]
    assert found["answers"] == 3 * (6 + 3)
    monkeypatch.undo()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    table = call(*args)
    assert table.exit_code == 0, table.stderr
    assert "own_choice" in table.stdout and "memory − none" in table.stdout
    assert "batch_generate" not in table.stdout


def test_plain_scores_are_those_of_mlx_lm(
    pair: tuple[str, ...], tasks: Path, tmp_path: Path
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    plain = lm_eval.simple_evaluate(
        model=MLXLM(pair[1]),
        tasks=["own_choice"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=True,
        torch_random_seed=None,
        bootstrap_iters=0,
    )
    args = ("--tasks", "own_choice", "--include-path", tasks, "--condition", "none")
    out = tmp_path / "run"
    found = json.loads(call(*args, *pair, "--out", out, "--json").stdout)
    accuracy = plain["results"]["own_choice"]["acc,none"]
    assert found["groups"][0]["scores"]["none"] == pytest.approx(accuracy)
    rows = [json.loads(line) for line in (out / "questions.jsonl").read_text().splitlines()]
    said = {(row["doc"], row["id"][-1]): row["said"][0] for row in rows}
    for sample in plain["samples"]["own_choice"]:
        for i, (likelihood, _) in enumerate(sample["filtered_resps"]):
            assert said[sample["doc_id"], str(i)] == pytest.approx(likelihood, abs=1e-3)


def test_length_of_answers_cuts_nothing_that_is_scored(
    pair: tuple[str, ...], tasks: Path, tmp_path: Path
) -> None:
    args = ("--tasks", "own_choice,own_text", "--include-path", tasks, "--condition", "none", *pair)
    scored, written = [], []
    for number, more in enumerate(((), ("--max-tokens", "1"))):
        out = tmp_path / str(number)
        done = call(*args, *more, "--out", out)
        assert done.exit_code == 0, done.stderr
        rows = [json.loads(line) for line in (out / "questions.jsonl").read_text().splitlines()]
        scored.append([row for row in rows if row["task"] == "own_choice"])
        written.append([row["said"] for row in rows if row["task"] == "own_text"])
    assert len(scored[0]) == 6 and scored[0] == scored[1]
    assert all(len(short) <= 1 for short in written[1]) and written[0] != written[1]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        pytest.param(
            *(("--tasks", "own_choise"), 1, "no task 'own_choise' (close: own_choice"),
            marks=pytest.mark.slow,  # reads all of lm-eval's tasks
        ),
        (("--tasks", ","), 2, "--tasks: expected names between commas"),
        (("--tasks", "own_text", "--condition", "foreign"), 2, "expected one of memory, none, shu"),
    ],
)
def test_wrong_use(
    pair: tuple[str, ...], tasks: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    done = call(*args, "--include-path", tasks, *pair)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
