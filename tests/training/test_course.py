"""The course: from the built-in model to an adapter with its card, whatever stops it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from forked import Nursery
from launching import apart, launch
from tiny_course import BASE, run_tiny

from deltamem_mlx import load
from deltamem_mlx.adapters.publish import prepare
from deltamem_mlx.evals.recall.episodes import Cell
from deltamem_mlx.ranks import Ranks
from deltamem_mlx.training.course import steps
from deltamem_mlx.training.course.course import Course
from deltamem_mlx.training.course.ledger import (
    begin_slower,
    begin_step,
    end_step,
    finished_step,
    halved,
)
from deltamem_mlx.training.course.measures import MeasureSizes
from deltamem_mlx.training.course.pace import MachinePace
from deltamem_mlx.training.course.plan import CoursePlan, plan_for, seconds_of
from deltamem_mlx.training.course.stages import ENGLISH, LITTLE
from deltamem_mlx.training.course.stock import Wanted
from deltamem_mlx.training.course.viewing import Viewer

STEPS = ("write", "start", "facts", "quiet", "silence", "measure")


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a course that has ended."""
    folder = tmp_path_factory.mktemp("course") / "adapter"
    run_tiny(folder)
    return folder


def copied(course: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(course, tmp_path / "adapter"))


def weights(folder: Path) -> dict[str, bytes]:
    tensors = mx.load(str(folder / "adapters.safetensors"))
    return {name: np.array(x).tobytes() for name, x in tensors.items()}


def test_a_course_ends_with_an_adapter_in_float16_and_its_card(course: Path) -> None:
    tensors = mx.load(str(course / "adapters.safetensors"))
    assert {x.dtype for x in tensors.values()} == {mx.float16}
    load(BASE, course)
    card = (course / "README.md").read_text()
    for text in ("| told 1 |", "in the context", "Perplexity of text", "Silence:", "| silence |"):
        assert text in card
    assert re.search(r"seed 0: [\d,]+ tokens written and read", card)
    assert str(Path(BASE).parent) not in card, "a folder of this machine says nothing elsewhere"
    upload = prepare(course, "user/name")
    assert upload.card_is_own and upload.card == card
    folders = sorted(p.name for p in (course / "course").iterdir() if p.is_dir())
    assert folders == [f"{i}-{name}" for i, name in enumerate(STEPS, start=1)]


def test_steps_that_are_done_are_not_taken_again(course: Path, tmp_path: Path) -> None:
    folder = copied(course, tmp_path)
    (folder / "adapters.safetensors").unlink()
    taken: list[str] = []

    class Watch(Viewer):
        def begin(self, step, number, left) -> None:
            taken.append(step.name)

    run_tiny(folder, viewer=Watch())
    assert taken == []
    assert weights(folder) == weights(course)
    # A damaged one is, and so are those that follow from what it had made.
    made = folder / "course" / "6-measure" / "adapters.safetensors"
    made.write_bytes(made.read_bytes()[:-10])
    run_tiny(folder, viewer=Watch())
    assert taken == ["measure"]
    assert weights(folder) == weights(course)


def test_another_course_does_not_go_on_in_the_folder(course: Path, tmp_path: Path) -> None:
    folder = copied(course, tmp_path)
    with pytest.raises(ValueError, match=r"another course \(seed: 0 there, 1 now\)") as error:
        run_tiny(folder, seed=1)
    assert "\n" not in str(error.value)
    assert weights(folder) == weights(course)
    shutil.rmtree(folder / "course")
    with pytest.raises(FileExistsError, match="adapter"):
        run_tiny(folder)


def test_a_step_on_another_adapter_is_not_done(course: Path) -> None:
    place = course / "course" / "3-facts"
    given = json.loads((place / "step.json").read_text())["given"]
    assert finished_step(place, given) is not None
    assert finished_step(place, "another") is None


def test_a_plan_fits_the_hours() -> None:
    pace, sizes = MachinePace(trained=400, judged=1200, spoken=150), (130, 200, 420)
    for hours in (0.5, 3, 8):
        plan = plan_for(hours, pace, sizes, ENGLISH)
        seconds = sum(seconds_of(plan, pace, sizes).values())
        assert 0.6 < seconds / (3600 * hours) < 1.2
    fast = MachinePace(trained=1e6, judged=1e6, spoken=1e6)
    assert plan_for(100, fast, sizes, ENGLISH).iters == tuple(stage.most for stage in ENGLISH)
    slow = MachinePace(trained=1, judged=1, spoken=1)
    assert min(plan_for(1, slow, sizes, ENGLISH).iters) >= 1


def test_a_training_that_diverges_begins_anew_with_half_its_learning_rate(tmp_path: Path) -> None:
    place = tmp_path / "3-facts"
    begin_step(place, "given")
    (place / "training").mkdir()
    (place / "metrics.jsonl").write_text("")
    assert halved(place) == 0
    assert begin_slower(place) == halved(place) == 1
    assert [path.name for path in place.iterdir()] == ["step.json"]
    begin_step(place, "given")
    assert halved(place) == 1, "a run that goes on has what was begun"
    end_step(place, "given", 1.0, {})
    assert halved(place) == 1, "one that is taken again has it, too"
    begin_step(place, "another")
    assert halved(place) == 0


def test_stopped_while_it_begins_slower_a_training_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "3-facts"
    begin_step(place, "given")
    (place / "training").mkdir()
    (place / "metrics.jsonl").write_text("")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        begin_slower(place)
    monkeypatch.undo()
    begin_step(place, "given")
    assert [path.name for path in place.iterdir()] == ["step.json"]


def test_stopped_while_an_older_course_is_cleared_away_it_is_still_that_course(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its steps would be taken for the new one's."""
    folder = copied(course, tmp_path)
    removed: list[Path] = []

    def killed(path: Path, *_: object, **__: object) -> None:
        removed.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(folder, overwrite=True)
    assert removed and (folder / "course" / "course.json").exists()


def test_a_model_that_can_think_answers_at_once_unless_told_to(tmp_path: Path) -> None:
    model, tokenizer = load(BASE)

    class Thinking:
        has_thinking = True

        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

    def template(**given: bool) -> dict[str, object]:
        made = Course(model, Thinking(), tmp_path, name=BASE, template_kwargs=given)
        return dict(made.chat.template_kwargs)

    assert template() == {"enable_thinking": False}
    assert template(enable_thinking=True) == {"enable_thinking": True}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_three_places_and_resumed_it_has_the_same_weights(tmp_path: Path) -> None:
    """In the middle of a training, as soon as one begins, and while it is measured."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "tiny_course.py")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_tiny(whole, 4)
    for sign in (
        "3-facts/0000002_adapters.safetensors",
        "5-silence/step.json",
        "6-measure/step.json",
    ):
        process = subprocess.Popen([*command, str(killed), "4"])
        while not (killed / "course" / sign).exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "adapters.safetensors").exists()
    subprocess.run([*command, str(killed), "4"], check=True)
    assert weights(killed) == weights(whole)
    cards = [(f / "README.md").read_text() for f in (whole, killed)]
    figures = [text.partition("## What it remembers")[2].partition("## How")[0] for text in cards]
    assert figures[0] == figures[1]


def close(one: Path, other: Path) -> bool:
    """Whether two folders have the same weights but for the order of sums, and float16."""
    found = [mx.load(str(folder / "adapters.safetensors")) for folder in (one, other)]
    return all(mx.abs(x - found[1][name]).max() < 2e-3 for name, x in found[0].items())


def test_in_two_processes_a_course_comes_to_the_same(
    course: Path, tmp_path: Path, nursery: Nursery
) -> None:
    done = launch(nursery, ROOT / "tests/helpers/tiny_course.py", tmp_path / "two")
    assert not done.returncode, done.stderr[-3000:]
    two = tmp_path / "two"
    assert close(two, course) and (two / "README.md").is_file()
    ledgers = [json.loads((f / "course" / "course.json").read_text()) for f in (two, course)]
    assert ledgers[0]["settings"].pop("processes") == 2
    assert ledgers[0]["settings"] == ledgers[1]["settings"]
    with pytest.raises(ValueError, match="processes: 2 there, None now"):
        run_tiny(two)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_killed_or_interrupted_go_on_to_the_same_weights(
    tmp_path: Path, nursery: Nursery
) -> None:
    command = ROOT / "tests/helpers/tiny_course.py"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert not launch(nursery, command, whole, "12").returncode
    for sign, number in (
        ("3-facts/0000002_adapters.safetensors", signal.SIGKILL),
        ("5-silence/0000002_adapters.safetensors", signal.SIGINT),
    ):
        with apart(nursery, command, stopped, "12") as ranks:
            while not (stopped / "course" / sign).exists():
                assert ranks[0].returncode is None
                time.sleep(0.01)
            ranks[0].kill(number)
            if number == signal.SIGINT:
                said = [rank.communicate(120) for rank in ranks]
                assert "Stopped" in said[0][1]
                assert not ranks[1].returncode  # it trained along, and was let go
        assert not (stopped / "adapters.safetensors").exists()
    assert not launch(nursery, command, stopped, "12").returncode
    assert weights(stopped) == weights(whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_course_of_minutes_is_about_as_good_as_the_built_in_pair(tmp_path: Path) -> None:
    """Of the iterations that an idle CPU does in some minutes."""
    cells = tuple(Cell("told", facts, 0) for facts in (1, 2, 4))
    plan = CoursePlan(
        wanted=Wanted(talk=24, texts=0, asked=24),
        recorded=300,
        judged=32,
        stages=LITTLE,
        iters=(280, 240, 100),
        measured=MeasureSizes(64, windows=2, histories=2, chat_tokens=300, cells=cells),
    )
    model, tokenizer = load(BASE)
    found = Course(model, tokenizer, tmp_path / "adapter", name=BASE, plan=plan).run()
    told = {
        cell["facts"]: cell["conditions"] for cell in found.results["measure"]["result"]["recall"]
    }
    for facts, pair in {1: 0.99, 2: 0.99, 4: 0.98}.items():
        assert told[facts]["memory"]["accuracy"] >= pair - 0.05
        assert told[facts]["foreign"]["accuracy"] < 0.2


def test_a_training_has_as_many_iterations_as_fit_its_time_and_keeps_to_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model has written may be longer, and more of it to be learned, than was planned."""
    stage, notes, asked = ENGLISH[1], [], []
    work = SimpleNamespace(
        seconds={stage.name: 240.0},
        before=tmp_path,
        viewer=SimpleNamespace(note=notes.append),
        settings=lambda stage: stage.settings(50, 0),
        episodes=lambda stage, count: [],
        adapted=lambda folder: nullcontext(),
        ranks=Ranks(),
    )

    def took(*_: object) -> float:
        asked.append(1)
        return 10.0

    monkeypatch.setattr(steps, "seconds_an_iteration", took)
    place = tmp_path / "5-mixed"
    begin_step(place, "given")
    assert steps._iterations(work, place, stage) == 20  # with what validations take
    assert "mixed: 20 iterations fit in its time, not 50." in notes
    monkeypatch.setattr(steps, "seconds_an_iteration", lambda *_: 1.0)
    assert steps._iterations(work, place, stage) == 20, "one that goes on is as long"
    work.seconds = {}
    assert steps._iterations(work, place, stage) == 50, "a plan that is given is kept to"
    assert asked == [1]
