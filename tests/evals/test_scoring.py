"""Scores of answers, against cases worked out by hand, and tables of them."""

import pytest

from deltamem_mlx.evals.aggregate import group_scores
from deltamem_mlx.evals.benchmarks.agent_scores import scores_of
from deltamem_mlx.evals.benchmarks.text_scores import f1, holds, normalised, rouge_l


def test_words_of_hotpotqa() -> None:
    assert normalised("The  U.S. Army, and a Dog!") == ["us", "army", "and", "dog"]
    assert normalised("An-other the") == ["another"]


@pytest.mark.parametrize(
    ("said", "true", "score"),
    [
        ("a b", "a b", 1.0),
        ("a b c d", "a b", 2 * 2 / 6),
        ("a a b", "a c", 2 * 1 / 5),  # the second a has no partner
        ("x", "a b", 0.0),
        ("", "a", 0.0),
        ("", "", 1.0),
    ],
)
def test_f1_counts_words(said: str, true: str, score: float) -> None:
    assert f1(said.split(), true.split()) == pytest.approx(score)
    assert f1(true.split(), said.split()) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "true", "score"),
    [
        ("the cat lay on mat", "the cat sat on the mat", 2 * 4 / 11),  # the cat on mat
        ("b a", "a b", 0.5),  # order counts
        ("", "a", 0.0),
    ],
)
def test_rouge_l_is_of_the_longest_common_subsequence(said: str, true: str, score: float) -> None:
    assert rouge_l(said.split(), true.split()) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "true", "found"),
    [
        ("he is in new york now", "new york", True),
        ("he is in new yorkshire", "new york", False),
        ("york new", "new york", False),
        ("a", "", False),
    ],
)
def test_holds_whole_words_in_order(said: str, true: str, found: bool) -> None:
    assert holds(said.split(), true.split()) == found


@pytest.mark.parametrize(
    ("kind", "said", "answers", "score"),
    [
        ("ruler_qa", "It was the Rhine, I think.", ["Rhine", "River Rhine"], 1.0),
        ("ruler_qa", "It was the Rhone.", ["Rhine"], 0.0),
        ("factconsolidation", "Paris", ["paris"], 1.0),
        ("icl", "label: 12", ["12"], 1.0),
        ("icl", "12 or 13", ["12"], 0.0),
        ("eventqa", "He left. She wept.", ["he left", "it rained"], 0.5),
        ("detective_qa", "The answer is (B), as he lied.", ["B. The cook"], 1.0),
        ("detective_qa", "A. The maid", ["B. The cook"], 0.0),
        ("detective_qa", "Surely B", ["The cook"], 0.0),
        ("detective_qa", "It was the cook.", ["The cook"], 1.0),
        ("recsys_redial", "1. Heat\n2. Alien\n3. Up\n4. Big\n5. Ran\n6. Jaws", ["Jaws", "Up"], 0.5),
        ("recsys_redial", "Heat, Up", ["Up"], 1.0),
        ("infbench_sum", "a man ran home", ["the man ran home"], 1.0),  # articles do not count
    ],
)
def test_memoryagentbench_by_kind(kind: str, said: str, answers: list, score: float) -> None:
    assert scores_of(kind, said, answers)["score"] == pytest.approx(score)


def test_exact_and_substring_match_are_told_apart() -> None:
    found = scores_of("longmemeval", "In Paris.", ["Paris"])
    assert found == {"score": 1.0, "exact match": 0.0, "substring match": 1.0}


def row(number: int, condition: str, score: float, *groups: str) -> dict:
    return {
        "question_id": str(number),
        "condition": condition,
        "groups": [*groups, "all"],
        "scores": {"F1": score},
    }


ROWS = [
    *(row(i, "memory", x, g) for i, (x, g) in enumerate([(1, "b"), (0.5, "a"), (1, "b")])),
    *(row(i, "none", x, g) for i, (x, g) in enumerate([(0, "b"), (0.5, "a"), (0.5, "b")])),
]


def test_table_has_means_and_differences_on_the_same_questions() -> None:
    lines = group_scores(ROWS, last=("all",))
    assert [(x["metric"], x["group"], x["questions"]) for x in lines] == [
        ("F1", "a", 1),
        ("F1", "b", 2),
        ("F1", "all", 3),
    ]
    assert lines[1]["scores"] == {"memory": 1.0, "none": 0.25}
    assert lines[0]["differences"]["memory"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    whole = lines[2]["differences"]["memory"]
    assert whole["difference"] == pytest.approx(0.5)
    assert 0 <= whole["low"] < 0.5 < whole["high"] <= 1
    assert list(lines[2]["differences"]) == ["memory"]
    assert group_scores(ROWS, last=("all",)) == lines, "the same seed, the same table"


def test_table_without_the_plain_model_has_no_differences() -> None:
    assert group_scores(ROWS[:3])[0]["differences"] == {}
