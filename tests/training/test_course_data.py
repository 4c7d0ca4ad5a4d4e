"""The training conversations of the SmolLM2 adapter: nothing that `eval recall` asks is in them."""

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deltamem_mlx.evals.recall.facts import fact_episodes
from deltamem_mlx.evals.recall.wordings import PEOPLE
from deltamem_mlx.evals.recall.wordings import RELATIONS as ASKED
from deltamem_mlx.evals.silence import talk
from deltamem_mlx.evals.silence.questions import QUESTIONS

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2_adapter"


@pytest.fixture
def example(smollm2_example: Path):
    """The example's module."""
    import make_data

    return make_data


def test_no_name_value_or_wording_is_one_of_the_evaluation(example):
    wordings = {
        text.lower() for r in ASKED for text in (*r.tells, *r.changes, *r.asks) if "{" in text
    }
    trained = {text.lower() for r in example.RELATIONS for text in (*r.tells, *r.changes, *r.asks)}
    values = {value.lower() for r in ASKED for value in r.values}
    used = {value.lower() for r in example.RELATIONS for value in r.values}
    months = {month.lower() for month in example.words.MONTHS}
    assert not trained & wordings
    assert used & values <= months, "only the months: there are no others"
    assert not set(example.words.NAMES) & set(PEOPLE)


def test_no_message_of_the_evaluation_is_trained_on(example):
    make = example.Generator(0)
    trained = {
        message["content"]
        for _ in range(500)
        for message in make.conversation((3, 5), 3, 0.5, 0.5, 0)
        if message["role"] == "user"
    }
    episodes = list(fact_episodes(20))
    assert not trained & {m["content"] for e in episodes for m in e.tell if m["role"] == "user"}
    assert not trained & {e.question for e in episodes}


def test_what_silence_is_measured_on_is_not_trained_on(example):
    import chats
    import make_talk
    import prompts

    measured = {text.lower() for texts in QUESTIONS.values() for text in texts}
    wordings = [*prompts.WORDINGS, *make_talk.PROMPTS]
    asked = {text.lower() for text in prompts.EVERYDAY}
    asked |= {w.format(a, b).lower() for w, fill in wordings for a in fill for b in (a, fill[0])}
    assert len(asked) > 2000
    assert not asked & measured
    assert not {line.lower() for line in chats.LINES} & {line.lower() for line in talk.LINES}
    told = chats.two_people(40, random.Random(0))
    assert len(told.split("\n")) == 40
    assert "{" not in told


def test_unrelated_rows_are_told_something_of_every_kind_first(example):
    import make_unrelated as made

    make = example.Generator(3)
    library = made.Library(random.Random(0), count=30)
    histories = made.Histories(make, library, [("Hi!", "Hello!"), ("Bye!", "Bye.")] * 4)
    for kind in histories.kinds:
        told = [kind() for _ in range(10)]
        assert len({str(messages) for messages in told}) > 5, kind
        assert all(m["content"].strip() for messages in told for m in messages), kind
        assert max(len(m["content"]) for messages in told for m in messages) <= 3000, kind
    assert {q for _, q in made.never_told(make, 20)}


def test_facts_are_asked_for_beside_what_is_unrelated(example):
    import make_unrelated as made

    make = example.Generator(5, noted=0.3)
    talk = [(f"What is {i}?", f"{i}.") for i in range(30)]
    histories = made.Histories(make, made.Library(random.Random(0), count=5), talk)
    for _ in range(50):
        row = made.beside(histories, make.rng.sample(talk, 2), joined=3)
        *told, last = row["messages"][:-8], row["messages"][-8:]
        assert [m["role"] for m in last] == ["user", "assistant"] * 4
        place = len(row["messages"]) - 8
        silent = [
            (last[i - 1 - place]["content"], last[i - place]["content"]) for i in row["unrelated"]
        ]
        assert len(silent) == 2
        assert set(silent) <= set(talk)
        assert len(told[0]) >= 1


def test_any_word_of_a_vocabulary_may_be_told_but_none_of_the_evaluation(example):
    asked = [value for r in ASKED for value in r.values]
    pieces = ["Ġ" + word for word in ("kayak", "Berlin", "ab", "x1", "NASA", *asked)] + ["kayak"]
    vocabulary = example.vocabulary(SimpleNamespace(get_vocab=lambda: dict.fromkeys(pieces, 0)))
    assert vocabulary == ["Berlin", "kayak"]
    make = example.Generator(1, ["Qwxyz"], 0.5)
    values = [fact.value for _ in range(100) for fact in make.facts(1)]
    assert 30 < values.count("Qwxyz") < 70


def test_a_conversation_ends_with_its_questions_and_what_was_told_last(example):
    make = example.Generator(3)
    for _ in range(200):
        messages = make.conversation((2, 4), 2, 1.0, 0.0, 2)
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        told = " ".join(m["content"] for m in messages[:-4] if m["role"] == "user")
        for question, answer in zip(messages[-4::2], messages[-3::2], strict=True):
            assert question["content"] not in told
            values = [v for r in example.RELATIONS for v in r.values if v in answer["content"]]
            assert any(value in told for value in values)


def test_notes_are_told_without_replies(example):
    rows = [example.Generator(i, noted=0.5).conversation((2, 3), 1, 0.3, 0, 0) for i in range(60)]
    noted = [all(m["role"] == "user" for m in row[:-2]) for row in rows]
    assert 15 < sum(noted) < 45
    assert all([m["role"] for m in row[-2:]] == ["user", "assistant"] for row in rows)


def test_talk_takes_the_place_of_questions(tmp_path):
    turns = [("How are you?", "Fine."), ("What is a lamp?", "A light."), ("Hm.", "Yes?")]
    roles = ("user", "assistant")
    messages = [
        [{"role": r, "content": c} for r, c in zip(roles, turn, strict=True)] for turn in turns
    ]
    talk = tmp_path / "talk.jsonl"
    talk.write_text("".join(json.dumps({"messages": rows}) + "\n" for rows in messages))
    command = [sys.executable, str(EXAMPLE / "make_data.py"), "--count", "60", "--asked", "2"]
    command += ["--facts", "2", "2", "--talk", str(talk), "0.5", "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    rows = [json.loads(line)["messages"] for line in (tmp_path / "train.jsonl").open()]
    said = {said for said, _ in turns}
    talking = [row[-4]["content"] in said for row in rows]
    assert 15 < sum(talking) < 45
    for row, is_talk in zip(rows, talking, strict=True):
        assert is_talk == (row[-2]["content"] in said) and row[-4] != row[-2]


def test_the_same_seed_writes_the_same_files(tmp_path):
    command = [sys.executable, str(EXAMPLE / "make_data.py"), "--count", "20", "--asked", "2"]
    for name in ("a", "b"):
        subprocess.run([*command, "--facts", "2", "3", "--out", tmp_path / name], check=True)
    for file in ("train.jsonl", "valid.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "train.jsonl").open()]
    assert len(rows) == 20 and all(len(row["messages"]) >= 6 for row in rows)


def test_more_questions_than_facts_are_refused(tmp_path):
    command = [sys.executable, str(EXAMPLE / "make_data.py"), "--asked", "3", "--facts", "2", "3"]
    ran = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 2 and "--asked is 3" in ran.stderr


def test_passages_are_running_text_cut_in_two(smollm2_example, tmp_path):
    import make_passages

    module = tmp_path / "module.py"
    text = "Words that go on and on, one after the other, until they are enough of them. " * 3
    code = "Values: [1, 2, 3] + (4, 5) == {6: 7, 8: 9}; x = y[0] * z[1] / w[2]. " * 3
    module.write_text(f'"""Short.\n\n{text}\n\n{code}\n"""\n')
    assert list(make_passages.paragraphs(module)) == [text.strip()]
    module.write_text("def broken(:\n")
    assert list(make_passages.paragraphs(module)) == []
    for seed in range(20):
        said, reply = make_passages.turn(text.strip(), random.Random(seed))
        assert (said["role"], reply["role"]) == ("user", "assistant")
        beginning = said["content"].partition(": ")[2] or said["content"]
        beginning = beginning.removeprefix("What comes next? ")
        assert text.startswith(f"{beginning} {reply['content']}")
        assert 20 < len(reply["content"]) <= make_passages.REPLY


def test_texts_are_cut_behind_their_beginning_at_whole_sentences(smollm2_example):
    import make_texts

    beginning, rest = "# Knots\n\n", "There are many of them. " * 30 + "And th"
    for seed in range(20):
        said, reply = make_texts.turn(beginning, rest, random.Random(seed))
        assert (said["role"], reply["role"]) == ("user", "assistant")
        assert f"{said['content']} {reply['content']}" == (beginning + rest)[:-7]
        assert len(beginning) <= len(said["content"]) <= make_texts.PROMPT
        assert len(reply["content"]) > make_texts.REPLY - 1
    assert make_texts.turn(beginning, "Too short. ", random.Random(0)) is None


def test_chat_between_facts_is_of_the_talk_that_is_given(example):
    make = example.Generator(4)
    own = [("What is a lamp?", "A light.")]
    rows = [make.conversation((2, 2), 1, 0.0, 0.0, 2, (), own) for _ in range(60)]
    chatted = [sum(m["content"] == "A light." for m in row[:-2]) for row in rows]
    assert set(chatted) == {0, 1, 2}
    assert not {reply for _, reply in example.CHATS} & {m["content"] for r in rows for m in r}
