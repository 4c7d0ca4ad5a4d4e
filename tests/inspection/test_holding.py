"""What a memory still holds of a text: by its strongest words, in words and as a picture."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from typer.testing import CliRunner

import deltamem_mlx as dm
from deltamem_mlx.cli.frame.held import words_of_its_own
from deltamem_mlx.cli.main import app
from deltamem_mlx.inspection.holding import HELD, held_words
from deltamem_mlx.inspection.memory_contents import inspect_memory
from deltamem_mlx.views.columns import up_to

TOLD = ["anna lives in oslo .", "ben is a doctor .", "anna lives in paris ."]
NEVER = "maria lives in rome ."


def messages(*texts: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text} for text in texts]


def test_what_was_told_is_held_and_what_was_told_otherwise_since_is_not(tmp_path: Path) -> None:
    model, tokenizer = dm.load()
    session = dm.MemorySession(model, tokenizer)
    for fact in TOLD:
        session.remember(fact)
        session.forget_context()
    session.save(tmp_path / "me.safetensors", history=8)
    state = dm.memory_state(session.cache)
    before = {i: mx.array(one) for i, one in state.items()}
    seen: list[tuple[int, int]] = []
    found = held_words(
        model, tokenizer, state, messages(*TOLD, NEVER, TOLD[1]), progress=lambda *n: seen.append(n)
    )
    assert seen == [(n, 5) for n in range(1, 6)]
    gains = {word.word: word.gain for word in found}
    assert len(gains) == len(found), "each once"
    assert min(gains["doctor"], gains["paris"]) >= HELD > gains["rome"] > gains["oslo"]
    assert gains["oslo"] <= -HELD
    assert [word.gain for word in found] == sorted(gains.values(), reverse=True)
    (paris,) = (word for word in found if word.word == "paris")
    assert (paris.before, paris.message) == ("anna lives in", 2)
    assert all(mx.array_equal(before[i], one) for i, one in dm.memory_state(session.cache).items())
    assert held_words(model, tokenizer, state, messages(" . ")) == []

    (tmp_path / "facts.txt").write_text("\n\n".join([*TOLD, NEVER]))
    words = ["inspect", str(tmp_path / "me.safetensors"), "--told", str(tmp_path / "facts.txt")]
    done = CliRunner().invoke(app, [*words, "--json"])
    said = {word["word"]: word["gain"] for word in json.loads(done.stdout)["words"]}
    assert said == pytest.approx(gains, abs=1e-4)

    pytest.importorskip("matplotlib")
    from deltamem_mlx.views.memory_plot import draw_memory

    picture = draw_memory(inspect_memory(tmp_path / "me.safetensors"), found)
    first, turns = picture.axes[:2]
    assert [label.get_text() for label in first.get_yticklabels()] == [w.word for w in found]
    assert [bar.get_hatch() for bar in first.patches] == [None, None, "///", "///"]
    assert turns.get_title(loc="left") == "What is left of the last 3 turns"
    names = [label.get_text() for label in turns.get_yticklabels()]
    assert [name.rpartition("  ")[2] for name in names] == ["1", "2", "3"] and all(names)
    bare = draw_memory(inspect_memory(tmp_path / "me.safetensors"))
    assert f"inspect {tmp_path / 'me.safetensors'} --told" in bare.get_supxlabel()


def test_a_word_that_the_tokenizer_does_not_know_does_not_hide_those_behind_it() -> None:
    model, tokenizer = dm.load()
    session = dm.MemorySession(model, tokenizer)
    session.remember(TOLD[1])
    state = dm.memory_state(session.cache)
    found = held_words(model, tokenizer, state, messages("okay , ben is a doctor ."))
    assert [word.word for word in found] == ["doctor"]


def test_the_picture_of_a_saved_session_begins_with_its_own_words(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    session = dm.MemorySession(*dm.load())
    for fact in TOLD:
        session.remember(fact)
    session.save(tmp_path / "talk")
    contents = inspect_memory(tmp_path / "talk")
    words = words_of_its_own(tmp_path / "talk", contents, dm.load)
    assert {word.word for word in words} == {"oslo", "doctor", "paris"}
    assert words_of_its_own(tmp_path / "no session", contents, dm.load) == []
    dm.MemorySession(*dm.load()).save(tmp_path / "empty")
    for name in ("talk", "empty"):
        picture = tmp_path / f"{name}.png"
        done = CliRunner().invoke(app, ["inspect", str(tmp_path / name), "--plot", str(picture)])
        assert done.exit_code == 0, done.stderr
        assert picture.exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--trace", "x.txt"], "--told and --trace: give one of them"),
        (["--model", "x"], "Give --adapter"),
        (["b.safetensors"], "--told takes one memory"),
    ],
)
def test_what_cannot_be_asked_for_with_a_text_is_said(more: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["inspect", "a.safetensors", "--told", "x.txt", *more])
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def test_an_excerpt_ends_with_its_word() -> None:
    assert up_to("anna lives in", "oslo", 40) == "anna lives in oslo"
    assert (
        up_to("chris plays viola david always wants", "pasta", 30) == "… david always wants pasta"
    )
    assert up_to("", "a" * 50, 20) == "a" * 19 + "…"
