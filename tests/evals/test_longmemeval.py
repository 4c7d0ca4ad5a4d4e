"""LongMemEval from files: chats in order, prompts, scores, and files that are wrong."""

import copy
from pathlib import Path

import pytest
from benchmarks import LOCOMO, LONGMEM, written

from deltamem_mlx.evals.benchmarks.longmemeval import LongMemEval, load_longmemeval
from deltamem_mlx.evals.benchmarks.task import Material, text_of

WORDS = lambda text: len(text.split())  # noqa: E731


@pytest.fixture
def histories(tmp_path: Path) -> list[Material]:
    return load_longmemeval(str(written(tmp_path / "longmemeval_oracle.json", LONGMEM)))


def test_chats_are_in_the_order_of_their_dates(histories: list[Material]) -> None:
    assert [history.name for history in histories] == ["aa11", "bb22_abs", "cc33", "dd44"]
    assert text_of(histories[0].units) == (
        "Date: 2023/05/01 (Mon) 08:15\nUser: I live in Rome.\n\n"
        "Date: 2023/05/30 (Tue) 10:00\nUser: Any soup?\nAssistant: Yes.\n\n"
        "Date: 2023/06/01 (Thu) 21:40\nUser: I moved to Oslo.\nAssistant: Welcome!"
    )
    told = LongMemEval().tellings(histories[0], WORDS)
    assert [[m["role"] for m in messages] for messages in told] == [["user"]] * 3
    assert told[2][0]["content"].endswith("User: I moved to Oslo.\nAssistant: Welcome!")


def test_questions_have_their_date_and_no_answer_alone(histories: list[Material]) -> None:
    task = LongMemEval()
    history = histories[0]
    (question,) = history.questions
    whole = task.messages(history, history.units, task.wording(question), WORDS)[-1]["content"]
    assert "Oslo" in whole and whole.endswith("Question: Where do I live now?")
    alone = task.messages(history, None, task.wording(question), WORDS)[-1]["content"]
    assert "Oslo" not in alone and "Today is 2023/06/02 (Fri) 09:00." in alone


@pytest.mark.parametrize(
    ("number", "said", "score"),
    [
        (0, "You live in Oslo.", 1.0),
        (0, "Rome", 0.0),
        (1, "I don't know; you never said.", 1.0),
        (1, "You did not mention a cat.", 1.0),
        (1, "Rex", 0.0),
        (2, "You have 3 plants.", 1.0),
        (2, "13", 0.0),
        (3, "Quiet films.", pytest.approx(2 * 2 / 7)),
        (3, "Loud ones!", 0.0),
    ],
)
def test_scores(histories: list[Material], number: int, said: str, score: float) -> None:
    (question,) = histories[number].questions
    assert LongMemEval().score(question, said)["score"] == score


def changed(**values: object) -> list[dict]:
    return [copy.deepcopy(LONGMEM[1]) | values]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (LOCOMO, "row 0: question_id None, expected text"),
        (changed(question_type="other"), "row 0: question_type 'other'"),
        (changed(answer=None), "row 0: answer None, expected text or a number"),
        (changed(answer=True), "row 0: answer True, expected text or a number"),
        (changed(question=" "), "row 0: question ' ', expected text"),
        (changed(haystack_dates="May"), "row 0: haystack_dates 'May', expected a list of texts"),
        (changed(haystack_dates=[]), "row 0: 0 haystack_dates and 1 haystack_sessions"),
        (changed(haystack_sessions=[[]]), r"haystack_sessions [[]], expected a list of chats"),
        (changed(haystack_sessions=[["a"]]), "haystack_sessions[0] is no list of turns"),
        (changed(haystack_sessions=[[{"role": "user"}]]), "haystack_sessions[0] is no list of"),
        (LONGMEM[:1] * 2, "id 'aa11' is also that of"),
        ([], "holds no rows"),
    ],
)
def test_files_with_another_schema_are_refused(tmp_path: Path, rows: list, said: str) -> None:
    path = written(tmp_path / "longmemeval_s.json", rows)
    with pytest.raises(ValueError) as caught:
        load_longmemeval(str(path))
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_of_a_folder_the_s_file_is_read(tmp_path: Path) -> None:
    written(tmp_path / "longmemeval_s_cleaned.json", LONGMEM)
    written(tmp_path / "longmemeval_m_cleaned.json", LONGMEM[:1])
    assert len(load_longmemeval(str(tmp_path))) == 4
    written(tmp_path / "longmemeval_s.json", LONGMEM)
    with pytest.raises(ValueError, match="several files"):
        load_longmemeval(str(tmp_path))
