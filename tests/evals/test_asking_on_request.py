"""Benchmarks: the mean of others' memories, and text that a retriever finds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import LOCOMO, written
from tiny import strong_pair

from deltamem_mlx.evals.benchmarks.asking import Examination, strangers_of
from deltamem_mlx.evals.benchmarks.locomo import LoCoMo, load_locomo
from deltamem_mlx.evals.benchmarks.reader import Reader
from deltamem_mlx.evals.benchmarks.task import Material, Question, Unit
from deltamem_mlx.evals.benchmarks.window import prompt_retrieved, prompts_in_window
from deltamem_mlx.evals.journal import Journal


@pytest.fixture(scope="module")
def reader(qwen3_tiny: Path) -> Reader:
    return Reader(*strong_pair(qwen3_tiny), batch_size=2)


@pytest.fixture(scope="module")
def diary() -> Material:
    days = ("I was in Rome with Al.", "It rained.", "Bo bought a goat.", "I slept.", "Tea.")
    units = tuple(Unit(text, f"Day {i}") for i, text in enumerate(days))
    question = Question("d/0", "Who bought a goat?", "Bo", ("all",), 2, "4")
    return Material("diary", units, (question,), {"a": "Al", "b": "Bo"})


def test_mean_memory_is_that_of_all_other_materials(reader: Reader, tmp_path: Path) -> None:
    row = LOCOMO[1]
    rows = [*LOCOMO, row | {"sample_id": "talk-3", "conversation": row["conversation"] | {
        "session_1": [{"speaker": "Dee", "text": "I bake bread."}]}}]  # fmt: skip
    talks = load_locomo(str(written(tmp_path / "l.json", rows)))
    strangers = strangers_of(talks, talks)
    asked = Examination(reader, LoCoMo(), talks, strangers=strangers, window=None)
    said = asked.ask(["memory", "mean"], Journal(None, {}), lambda n: None)
    assert [r["condition"] for r in said] == ["memory"] * 7 + ["mean"] * 7
    mean = asked._mean_of_others(talks[1])
    others = [reader.tell(LoCoMo().tellings(talks[i], reader.count)) for i in (0, 2)]
    for layer, found in mean.items():
        expected = np.mean([np.array(state[layer]) for state in others], axis=0)
        np.testing.assert_allclose(np.array(found), expected, atol=1e-6)


def test_the_same_text_is_no_other_in_a_mean(reader: Reader, tmp_path: Path) -> None:
    talks = load_locomo(str(written(tmp_path / "l.json", LOCOMO)))
    talks.append(replace(talks[1], name="twin", questions=()))
    strangers = strangers_of(talks, talks)
    mean = Examination(reader, LoCoMo(), talks, strangers=strangers, window=None)._mean_of_others(
        talks[1]
    )
    other = reader.tell(LoCoMo().tellings(talks[0], reader.count))
    for layer, found in mean.items():
        np.testing.assert_allclose(np.array(found), np.array(other[layer]), atol=1e-6)


def test_found_text_has_as_many_tokens_as_the_newest(reader: Reader, diary: Material) -> None:
    (question,) = diary.questions
    task = LoCoMo()
    whole = len(prompts_in_window(reader, task, diary, 4000).prefix.token_ids)
    window = whole + len(reader.tokens(question.text)) + 2
    for _ in range(200):  # the largest window with which the fact itself is not among the newest
        window -= 1
        prompts = prompts_in_window(reader, task, diary, window)
        if prompts.kept == 2:
            break
    assert prompts.kept == 2
    read, last = prompt_retrieved(reader, task, diary, question, kept=prompts.kept, window=window)
    ids = [*read.token_ids, *last]
    assert len(last) == 1 and len(ids) + question.max_tokens <= window
    text = reader.tokenizer.decode(ids)
    newest = reader.tokenizer.decode([*prompts.prefix.token_ids, *prompts.rest["d/0"]])
    assert "Bo bought a goat." in text and "Bo bought a goat." not in newest


def test_retrieved_is_answered_by_the_plain_model(reader: Reader, diary: Material) -> None:
    task = LoCoMo()
    asked = Examination(reader, task, [diary], strangers={}, window=4000)
    rows = asked.ask(["none", "retrieved"], Journal(None, {}), lambda n: None)
    assert rows[0]["said"] == rows[1]["said"], "all of it fits, so all of it is found"


def test_question_that_does_not_fit_is_named(reader: Reader, diary: Material) -> None:
    with pytest.raises(ValueError, match=r"'d/0' needs \d+ tokens .* Raise --max-context"):
        prompt_retrieved(reader, LoCoMo(), diary, diary.questions[0], kept=1, window=70)
