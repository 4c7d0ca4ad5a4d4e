"""Evaluation: episodes, answers in batches, scores, and runs that were interrupted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from byte_model import byte_pair
from tiny import strong_pair

import deltamem_mlx as dm
from deltamem_mlx.evals.aggregate import group_scores
from deltamem_mlx.evals.benchmarks.reader import Reader
from deltamem_mlx.evals.intervals import paired_bootstrap, wilson
from deltamem_mlx.evals.journal import QUESTIONS, RESULT, Journal
from deltamem_mlx.evals.recall import demo
from deltamem_mlx.evals.recall.builtin_data import builtin_episodes, builtin_story
from deltamem_mlx.evals.recall.correct import contains, says_unknown, words
from deltamem_mlx.evals.recall.episodes import (
    KINDS,
    Cell,
    RecallEpisode,
    digest,
    in_cells,
    read_episodes,
    write_episodes,
)
from deltamem_mlx.evals.recall.facts import CELLS, UNKNOWN, fact_episodes
from deltamem_mlx.evals.recall.recall import CONDITIONS, is_correct, recall
from deltamem_mlx.evals.recall.scores import scores
from deltamem_mlx.evals.recall.wordings import RELATIONS
from deltamem_mlx.evals.runner import Runner, State
from deltamem_mlx.files import WriteError
from deltamem_mlx.views.scores import groups_text

GRANULARITIES = ("token", "message_mean", "sentence_mean")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# Of different lengths, so that batches are padded.
CONVERSATIONS = [
    [user("Al is 3. So?"), assistant("Ok. Sure!")],
    [user("My cat is called Miso. She is old.")],
    [user("B"), assistant("C"), user("D E."), assistant("Yes. No.")],
    [user("I live in Rome. It rains here, and it is warm."), assistant("Good to know.")],
    [user("Hi.")],
]
QUESTIONS_ASKED = ["Who?", "What is my cat called?", "D?", "Where do I live? Say it.", "?"]


@pytest.fixture(scope="module")
def runner(qwen3_tiny: Path) -> Runner:
    return Runner(*strong_pair(qwen3_tiny), batch_size=3, max_tokens=8)


def test_a_model_that_can_think_answers_at_once_unless_told_to(tmp_path: Path) -> None:
    model, tokenizer = byte_pair(tmp_path, thinks=True)
    assert tokenizer.has_thinking

    def prompt(**given: bool) -> str:
        assert Runner(model, tokenizer, template_kwargs=given).template_kwargs == (
            {"enable_thinking": False} | given
        )
        reader = Reader(model, tokenizer, template_kwargs=given)
        return tokenizer.decode(reader.prompt([user("Hi.")]).token_ids)

    assert prompt().rstrip().endswith("assistant")
    assert prompt(enable_thinking=True).endswith("<think>")


def test_other_models_are_told_nothing_of_thinking(runner: Runner) -> None:
    assert runner.template_kwargs == {}


# --- episodes

EPISODE = {
    "tell": [user("Al is in Rome.")],
    "question": "Where is Al?",
    "answer": "Rome",
    "facts": 1,
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_file_gives_back_what_was_written(tmp_path: Path, name: str) -> None:
    episodes = list(fact_episodes(2))
    write_episodes(tmp_path / name, episodes)
    first = (tmp_path / name).read_bytes()
    assert read_episodes(tmp_path / name) == episodes
    write_episodes(tmp_path / name, episodes)
    assert (tmp_path / name).read_bytes() == first


def test_fields_that_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(EPISODE | {"reply": "ignored"}) + "\n\n")
    (episode,) = read_episodes(path)
    assert episode == RecallEpisode((user("Al is in Rome."),), "Where is Al?", "Rome", 1)
    assert (episode.kind, episode.distractors, episode.old) == ("told", 0, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tell": []}, "tell: empty (expected at least one message)"),
        ({"tell": "Al"}, "tell: text (expected a list)"),
        ({"tell": [{"role": "user"}]}, "tell[0].content: missing (expected text)"),
        ({"tell": None}, "tell: null (expected a list)"),
        ({"question": " "}, "question: text (expected text that is not blank)"),
        ({"question": ""}, "question: empty (expected text that is not blank)"),
        ({"answer": 3}, "answer: 3 (expected text that is not blank)"),
        ({"facts": "1"}, "facts: text (expected a whole number, 0 or more)"),
        ({"facts": True}, "facts: True (expected a whole number, 0 or more)"),
        ({"distractors": -1}, "distractors: -1 (expected a whole number, 0 or more)"),
        ({"kind": "new"}, f"kind: 'new' (expected one of {', '.join(KINDS)})"),
        ({"kind": "updated"}, "old: null (expected text that is not blank)"),
        ({"old": 1}, "old: 1 (expected text that is not blank)"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(EPISODE) + "\n" + json.dumps(EPISODE | change) + "\n")
    with pytest.raises(ValueError) as caught:
        read_episodes(path)
    assert str(caught.value).splitlines()[1] == f"  {path}:2: {said}"


def test_all_bad_lines_are_listed_and_files_without_episodes_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"tell"\n[]\n{"tell": [], "facts": 0}\n' + "1\n" * 20)
    with pytest.raises(ValueError) as caught:
        read_episodes(path)
    said = str(caught.value)
    for line in ("a.jsonl:1: not valid JSON", "a.jsonl:2: a list", "a.jsonl:3: question: missing"):
        assert line in said
    assert "and 15 more" in said
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no episodes"):
        read_episodes(path)
    (tmp_path / "b.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"is no whole \.gz file"):
        read_episodes(tmp_path / "b.jsonl.gz")
    with pytest.raises(FileNotFoundError):
        read_episodes(tmp_path / "c.jsonl")


def test_cells_are_in_order_and_limited() -> None:
    made = [
        RecallEpisode((user("a"),), "b", str(i), facts=4 - i % 2, kind="told") for i in range(6)
    ]
    made.insert(0, RecallEpisode((user("a"),), "b", "c", facts=1, kind="never"))
    cells = in_cells(made, limit=2)
    assert list(cells) == [Cell("told", 3, 0), Cell("told", 4, 0), Cell("never", 1, 0)]
    assert [[e.answer for e in found] for found in cells.values()] == [
        ["1", "3"],
        ["0", "2"],
        ["c"],
    ]
    assert digest(made) != digest(made[1:])


def test_shipped_episodes_and_story() -> None:
    cells = in_cells(builtin_episodes())
    assert set(demo.CELLS) < set(cells)
    assert {cell.facts for cell in cells if cell.kind == "told"} == {1, 2, 4, 8, 16}
    assert {cell.kind for cell in cells} == set(KINDS)
    for cell, episodes in cells.items():
        assert len(episodes) >= 64, cell
        for episode in episodes[:20]:
            said = " ".join(m["content"] for m in episode.tell if m["role"] == "user")
            assert contains(said, episode.answer) is (cell.kind != "never")
    story = builtin_story()
    ours, theirs = (" ".join(m["content"] for m in told) for told in (story.tell, story.other))
    for _, answer in story.questions:
        assert contains(ours, answer)
        assert not contains(theirs, answer)


# --- made-up facts


def test_facts_follow_from_the_seed() -> None:
    episodes = list(fact_episodes(3, seed=5))
    assert list(fact_episodes(3, seed=5)) == episodes
    assert list(fact_episodes(3, seed=6)) != episodes
    cell = Cell("updated", 4, 0)
    alone = list(fact_episodes(5, seed=5, cells=[cell]))
    assert [e for e in episodes if e.cell == cell] == alone[:3]
    assert len({digest([e]) for e in alone}) == 5


def test_facts_hold_what_they_promise() -> None:
    for episode in fact_episodes(20, seed=1):
        said = [m["content"] for m in episode.tell if m["role"] == "user"]
        changes = int(episode.kind == "updated")
        assert len(said) == episode.facts + changes + episode.distractors
        assert len(episode.tell) == 2 * len(said)
        assert not any(episode.question in text for text in said)
        places = [i for i, text in enumerate(said) if contains(text, episode.answer)]
        assert not contains(episode.question, episode.answer)
        if episode.kind == "never":
            assert (episode.answer, places) == (UNKNOWN, [])
        else:
            assert places
        if episode.old is not None:
            before = next(i for i, text in enumerate(said) if contains(text, episode.old))
            assert before < places[-1]
    assert {e.cell for e in fact_episodes(1)} == set(CELLS)


def test_every_wording_names_its_subject_and_value() -> None:
    for relation in RELATIONS:
        assert len(set(relation.values)) == len(relation.values)
        for text in (*relation.tells, *relation.changes):
            assert "{s}" in text and "{v}" in text, text
        for text in relation.asks:
            assert "{s}" in text and "{v}" not in text and text not in relation.tells, text


# --- scoring


def test_words_ignore_case_accents_and_punctuation() -> None:
    assert words("São Paulo's “Côte-d’Or”, 3.5!") == ["sao", "paulos", "cote", "dor", "3", "5"]


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("Maria lives in LISBON.", "Lisbon", True),
        ("He is in New  York, now.", "new york", True),
        ("York is new.", "New York", False),
        ("The catalogue", "cat", False),
        ("", "cat", False),
        ("tomas", "Tomás", True),
    ],
)
def test_answer_contains_the_value_as_words(text: str, value: str, expected: bool) -> None:
    assert contains(text, value) is expected


def test_what_counts_as_correct() -> None:
    changed = RecallEpisode((user("a"),), "b", "Oslo", 1, kind="updated", old="Rome")
    assert is_correct(changed, "Oslo.")
    assert not is_correct(changed, "Rome or Oslo.")
    assert not is_correct(changed, "Rome.")
    never = RecallEpisode((user("a"),), "b", UNKNOWN, 1, kind="never")
    for text in ("anna lives in ... i do not know .", "Sorry, I don’t know that.", "I'm not sure."):
        assert is_correct(never, text) and says_unknown(text)
    assert not is_correct(never, "Oslo.")
    assert not is_correct(RecallEpisode((user("a"),), "b", "Oslo", 1), "I do not know.")


# --- statistics


@pytest.mark.parametrize(
    ("correct", "questions", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_intervals_as_published(
    correct: int, questions: int, low: float, high: float
) -> None:
    share = wilson(correct, questions)
    assert share.value == correct / questions
    assert share[1:] == pytest.approx((low, high), abs=5e-5)


def test_statistics_refuse_nothing() -> None:
    for wrong in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected"):
            wilson(*wrong)
    for wrong in (([], []), ([1], [1, 0])):
        with pytest.raises(ValueError, match="one of each"):
            paired_bootstrap(*wrong)


def test_bootstrap_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(400) < 0.8, rng.random(400) < 0.3
    found = paired_bootstrap(first, second, seed=3)
    differences = first.astype(float) - second
    half = 1.96 * differences.std() / 20
    assert found.value == pytest.approx(differences.mean())
    assert found[1:] == pytest.approx((found.value - half, found.value + half), abs=0.012)
    assert paired_bootstrap(first, second, seed=3) == found
    few = [paired_bootstrap(first, second, seed=seed, samples=20) for seed in (3, 4)]
    assert few[0] != few[1]
    # What is the same for every question leaves no doubt, however noisy the questions are.
    assert paired_bootstrap(first + 1.0, first) == (1.0, 1.0, 1.0)


# --- answers in batches


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("write", [False, True], ids=["read-only", "write"])
def test_batches_give_what_sessions_give(qwen3_tiny: Path, granularity: str, write: bool) -> None:
    model, tokenizer = strong_pair(qwen3_tiny, granularity)
    runner = Runner(model, tokenizer, batch_size=3, max_tokens=8, write_questions=write)
    states = runner.remember(CONVERSATIONS)
    kept = [{i: np.array(x) for i, x in state.items()} for state in states]
    answers = runner.ask([[user(q)] for q in QUESTIONS_ASKED], states)
    for i, messages in enumerate(CONVERSATIONS):
        session = dm.MemorySession(model, tokenizer)
        session.remember(messages)
        for layer, state in dm.memory_state(session.cache).items():
            np.testing.assert_allclose(kept[i][layer], np.array(state), atol=1e-5)
            np.testing.assert_array_equal(np.array(states[i][layer]), kept[i][layer])
        session.forget_context()
        if write:
            expected = session.ask(QUESTIONS_ASKED[i], max_tokens=8)
        else:
            with session.read_only():
                expected = session.ask(QUESTIONS_ASKED[i], max_tokens=8)
        assert answers[i] == expected.strip()


def test_memory_changes_answers_and_an_empty_one_does_not(qwen3_tiny: Path, runner: Runner) -> None:
    asked = [[*told, user(q)] for told, q in zip(CONVERSATIONS, QUESTIONS_ASKED, strict=True)]
    plain, tokenizer = mlx_lm.load(str(qwen3_tiny))
    expected = [
        mlx_lm.generate(
            plain,
            tokenizer,
            tokenizer.apply_chat_template(messages, add_generation_prompt=True),
            max_tokens=8,
        ).strip()
        for messages in asked
    ]
    assert runner.ask(asked) == expected
    assert runner.ask(asked, runner.remember(CONVERSATIONS)) != expected


def test_runner_needs_a_memory(qwen3_tiny: Path) -> None:
    with pytest.raises(ValueError, match="no δ-mem adapter"):
        Runner(*mlx_lm.load(str(qwen3_tiny)))


# --- recall


@dataclass
class Parrot:
    """Stands for a model: it answers with what its memory, or else its context, was told first."""

    batch_size: int = 2
    write_questions: bool = False
    asked: list[int] = field(default_factory=list)
    fails_at: int = -1

    def remember(self, conversations: Sequence) -> list:
        return [messages[0]["content"] for messages in conversations]

    def tokens(self, text: str) -> list[int]:
        return [ord(word[0]) for word in text.split()]

    def ask(self, conversations: Sequence, states: Sequence | None = None) -> list[str]:
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(len(conversations))
        states = states or [None] * len(conversations)
        told = [c[0]["content"] if len(c) > 1 else "" for c in conversations]
        return [state or text for state, text in zip(states, told, strict=True)]


def episodes_of(count: int, kind: str = "told", facts: int = 1, **more: str) -> list[RecallEpisode]:
    return [
        RecallEpisode((user(f"Al is in x{i}."),), "Where is Al?", f"x{i}", facts, kind, **more)
        for i in range(count)
    ]


# A text is no state that has a mean, and none that is saved.
OF_TEXTS = [name for name in CONDITIONS if name not in ("mean", "reloaded")]


def test_conditions_differ_in_what_is_known() -> None:
    cells = in_cells([*episodes_of(5), *episodes_of(1, facts=2)])
    told = []
    rows = recall(Parrot(), cells, conditions=OF_TEXTS, on_answers=told.append)
    assert [row["id"] for row in rows] == list(range(6))
    assert rows[4]["said"] == {
        "memory": "Al is in x4.",
        "none": "",
        "foreign": "Al is in x0.",
        "retrieved": "Al is in x4.",
        "context": "Al is in x4.",
    }
    right = {"memory": True, "none": False, "foreign": False, "retrieved": True, "context": True}
    assert rows[4]["correct"] == right
    assert "foreign" not in rows[5]["said"], "there is no other conversation of two facts"
    assert sum(told) == 6 * len(OF_TEXTS)
    one, two = scores(rows)
    assert (one["questions"], one["facts"], two["facts"]) == (5, 1, 2)
    shares = {name: share["accuracy"] for name, share in one["conditions"].items()}
    assert shares == {name: float(share) for name, share in right.items()}
    assert one["gain"] == {"difference": 1.0, "low": 1.0, "high": 1.0}
    assert one["differences"] == {
        "foreign": one["gain"],
        "retrieved": {"difference": 0.0, "low": 0.0, "high": 0.0},
        "context": {"difference": 0.0, "low": 0.0, "high": 0.0},
    }
    assert one["conditions"]["memory"]["low"] == pytest.approx(wilson(5, 5).low)
    assert "foreign" not in two["conditions"] and "foreign" not in two["differences"]


def test_foreign_is_never_the_same_conversation() -> None:
    same = episodes_of(1) * 3
    rows = recall(Parrot(), in_cells([*same, *episodes_of(2)]), conditions=["foreign"])
    assert [row["said"]["foreign"] for row in rows] == ["Al is in x1."] * 4 + ["Al is in x0."]
    alone = recall(Parrot(), in_cells(same), conditions=["foreign"])
    assert [row["said"] for row in alone] == [{}] * 3


def test_newest_of_changed_facts_is_counted_apart() -> None:
    changed = [
        RecallEpisode((user(said),), "Where?", "Oslo", 1, "updated", old="Rome")
        for said in ("Oslo", "Rome", "Rome, then Oslo", "Bonn")
    ]
    (line,) = scores(recall(Parrot(), in_cells(changed), conditions=["memory"]))
    assert line["newest"] == {"memory": {"newest": 1, "answered": 3}}
    assert line["conditions"]["memory"]["correct"] == 1
    assert "gain" not in line


def test_unknown_conditions_are_refused() -> None:
    with pytest.raises(ValueError, match="No such conditions: nothing"):
        recall(Parrot(), {}, conditions=["nothing"])


def test_recall_on_a_model(runner: Runner) -> None:
    cells = in_cells(list(fact_episodes(4, cells=[Cell("told", 1, 0), Cell("updated", 1, 0)])))
    rows = recall(runner, cells)
    assert all(list(row["said"]) == list(CONDITIONS) for row in rows)
    assert all(row["said"]["reloaded"] == row["said"]["memory"] for row in rows)
    assert any(row["said"]["foreign"] != row["said"]["memory"] for row in rows)
    assert recall(runner, cells) == rows


def test_reloaded_memory_is_the_same_to_the_bit(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[State | None]] = []
    monkeypatch.setattr(
        Runner, "ask", lambda self, asked, states=None: seen.append(states) or [""] * len(asked)
    )
    recall(runner, in_cells(episodes_of(3)), conditions=["memory", "reloaded"])
    for before, after in zip(*seen, strict=True):
        assert before.keys() == after.keys()
        assert all(mx.array_equal(before[i], after[i]) for i in before)


# --- interrupted runs


def test_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    cells = in_cells(episodes_of(5))
    options = {"conditions": ["memory", "none"]}
    whole = recall(Parrot(), cells, **options)
    with pytest.raises(KeyboardInterrupt):
        recall(Parrot(fails_at=3), cells, journal=Journal(tmp_path, {"seed": 1}), **options)
    assert len((tmp_path / QUESTIONS).read_text().splitlines()) == 2

    second, told = Parrot(), []
    journal = Journal(tmp_path, {"seed": 1})
    rows = recall(second, cells, journal=journal, on_answers=told.append, **options)
    assert (rows, sum(told), len(second.asked)) == (whole, 10, 4)
    journal.finish({"cells": scores(rows)})
    assert json.loads((tmp_path / RESULT).read_text())["cells"] == json.loads(
        json.dumps(scores(whole))
    )
    third = Parrot()
    assert recall(third, cells, journal=Journal(tmp_path, {"seed": 1}), **options) == whole
    assert third.asked == []


def test_half_a_line_is_answered_again(tmp_path: Path) -> None:
    cells, options = in_cells(episodes_of(4)), {"conditions": ["memory"]}
    whole = recall(Parrot(), cells, journal=Journal(tmp_path, {}), **options)
    path = tmp_path / QUESTIONS
    path.write_bytes(path.read_bytes()[:-20])
    again = Parrot()
    assert recall(again, cells, journal=Journal(tmp_path, {}), **options) == whole
    assert again.asked == [2], "the batch with the missing answer, and no other"
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, {"seed": 1, "model": "a"})
    with pytest.raises(ValueError, match="another evaluation") as caught:
        Journal(tmp_path, {"seed": 2, "model": "a", "limit": 3})
    assert str(caught.value).splitlines()[1:3] == [
        "  limit: None there, 3 now",
        "  seed: 1 there, 2 now",
    ]
    (tmp_path / QUESTIONS).write_text('{"id": 0}\n{"no": 1}\n{"id": 2}\n')
    with pytest.raises(ValueError, match=r"questions\.jsonl:2 is damaged"):
        Journal(tmp_path, {"seed": 1, "model": "a"})
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run\.json"):
        Journal(tmp_path, {"seed": 1, "model": "a"})


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\r"])
def test_text_with_other_line_ends_is_read_back(tmp_path: Path, separator: str) -> None:
    row = {"id": f"a{separator}b", "said": f"c{separator}d"}
    Journal(tmp_path, {}).add([row, {"id": 2}])
    assert Journal(tmp_path, {}).rows == {row["id"]: row, 2: {"id": 2}}


@pytest.mark.parametrize("name", ["result.json", "questions.jsonl", "memories"])
def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=name):
        Journal(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_answers_that_cannot_be_written_are_named_and_not_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    (tmp_path / QUESTIONS).mkdir()
    with pytest.raises(WriteError, match=r"questions\.jsonl could not be written"):
        journal.add([{"id": 1}])
    assert journal.rows == {}


def test_names_with_brackets_stand_in_the_table_as_they_are() -> None:
    lines = group_scores(
        [
            {"question_id": i, "condition": "none", "groups": ["level [/b]"], "scores": {"F1": 1.0}}
            for i in "ab"
        ]
    )
    models = [{"model": name, "groups": lines} for name in ("m[/x]", "[red]m")]
    text = groups_text({"models": models}, ["none"], {})
    assert all(name in text for name in ("level [/b]", "x]", "[red]m"))
