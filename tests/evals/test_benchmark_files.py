"""Benchmarks from files: what becomes of them, their scoring, and files that are wrong."""

import copy
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import AGENT, HOTPOTQA, LOCOMO, written

from deltamem_mlx.evals.benchmarks.hotpotqa import HotpotQA, load_hotpotqa
from deltamem_mlx.evals.benchmarks.locomo import (
    NO_ANSWER,
    LoCoMo,
    load_locomo,
    many_f1,
    says_unanswered,
)
from deltamem_mlx.evals.benchmarks.memoryagentbench import MemoryAgentBench, load_memoryagentbench
from deltamem_mlx.evals.benchmarks.task import Material, Task, Unit, first_line, limited, text_of
from deltamem_mlx.evals.benchmarks.text_scores import stems

WORDS = lambda text: len(text.split())  # noqa: E731


def asked(task: Task, material: Material, number: int) -> str:
    """The user's prompt for a question of a material."""
    question = material.questions[number]
    return task.messages(material, material.units, task.wording(question), WORDS)[-1]["content"]


def test_units_are_joined_below_their_heads() -> None:
    units = [Unit("a", "X"), Unit("b", "X"), Unit("c"), Unit("d", "X")]
    assert text_of(units) == "X\na\nb\n\nc\n\nX\nd"
    assert first_line("\n  \n Rome. \nmore") == "Rome."
    assert first_line(" \n") == ""


# --- LoCoMo


@pytest.fixture
def talks(tmp_path: Path) -> list[Material]:
    return load_locomo(str(written(tmp_path / "locomo.json", LOCOMO)))


def test_locomo_sessions_in_order_with_dates_and_pictures(talks: list[Material]) -> None:
    assert [talk.name for talk in talks] == ["talk-1", "talk-2"]
    assert text_of(talks[0].units) == (
        'Date: 1:00 pm on 2 May, 2023\nAnn said, "I got a dog!"\n'
        'Bob said, "Nice." and shared a picture of a cat\n\n'
        'Date: 2:00 pm on 3 May, 2023\nBob said, "I run."\n\n'
        'Date: 4:00 pm on 9 May, 2023\nAnn said, "Me too."'
    )
    told = LoCoMo().tellings(talks[0], WORDS)
    assert [len(messages) for messages in told] == [1, 1, 1]
    assert "Ann and Bob" in told[1][0]["content"]
    assert told[1][0]["content"].endswith('Date: 2:00 pm on 3 May, 2023\nBob said, "I run."')


def test_locomo_questions_say_what_their_category_asks(talks: list[Material]) -> None:
    task = LoCoMo()
    prompts = [asked(task, talks[0], i) for i in range(5)]
    assert all("between Ann and Bob" in prompt for prompt in prompts)
    assert "Pets?\n" in prompts[0]
    assert "date" in prompts[1].partition("When?")[2]
    assert "date" not in prompts[3].partition("Who runs?")[2]
    options = prompts[4].partition("Fish?")[2]
    assert all(text in options for text in ("(a)", "(b)", "a cod", NO_ANSWER))
    alone = task.messages(talks[0], None, "Pets?", WORDS)[-1]["content"]
    assert "dog" not in alone and "Pets?" in alone


def test_locomo_order_of_options_is_fixed_by_conversation_and_question(tmp_path: Path) -> None:
    many = copy.deepcopy(LOCOMO)
    many[0]["qa"] = [many[0]["qa"][4]] * 40
    path = str(written(tmp_path / "many.json", many))
    first = [question.answers for question in load_locomo(path)[0].questions]
    assert first == [question.answers for question in load_locomo(path)[0].questions]
    assert 5 < sum(options[0] == NO_ANSWER for options in first) < 35


@pytest.mark.parametrize(
    ("number", "said", "score"),
    [
        # Parts: "dogs" is "dog" by its stem (1), "cat" is half of "a cat food" (2·1 / (1+2)).
        (0, "dogs, a cat food", (1 + 2 / 3) / 2),
        (0, "the cat", 0.5),
        (1, "in 2023", 2 / 3),
        (1, "\n 2023.\nOr not.", 1.0),
        # Only "Yes" of "Yes; both run" counts.
        (2, "yes", 1.0),
        (2, "yes they run", 0.5),
        (3, "Bob and Ann", 2 / 3),  # "and" is no word
        (3, "no", 0.0),
        (4, "No information available", 1.0),
        (4, "It is not mentioned.", 1.0),
        (4, "a cod", 0.0),
        (4, "", 0.0),
    ],
)
def test_locomo_scores(talks: list[Material], number: int, said: str, score: float) -> None:
    found = LoCoMo().score(talks[0].questions[number], said)
    assert found == {"score": pytest.approx(score)}


def test_locomo_letters_of_options() -> None:
    there, not_there = ["x", NO_ANSWER], [NO_ANSWER, "x"]
    for said in ("(b)", "b", "B.", "(b) x", "b) x"):
        assert says_unanswered(said, there)
        assert not says_unanswered(said, not_there)
    assert not says_unanswered("a dog", not_there), "an article is no letter"
    assert says_unanswered("a", not_there)


def test_locomo_words() -> None:
    assert stems("The runners, and their ponies' races: 1,000!") == [
        *("runner", "their", "poni", "race", "1000")
    ]
    assert many_f1("x", "x, y, z") == pytest.approx(1 / 3)


@pytest.mark.skipif("DELTAMEM_LOCOMO" not in os.environ, reason="DELTAMEM_LOCOMO names no file")
def test_locomo_totals() -> None:
    talks = load_locomo(os.environ["DELTAMEM_LOCOMO"])
    groups = Counter(g for talk in talks for q in talk.questions for g in q.groups)
    assert (len(talks), groups["1 to 5"], groups["1 to 4"]) == (10, 1986, 1540)


# --- HotpotQA


@pytest.fixture(params=["json", "jsonl", "parquet", "pairs"])
def hotpot(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file of the Hub's schema in each format, and one of the first release's."""
    rows = copy.deepcopy(HOTPOTQA)
    if request.param == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "hotpot.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    if request.param == "pairs":
        for row in rows:
            row["_id"] = row.pop("id")
            texts = row["context"]
            row["context"] = list(zip(texts["title"], texts["sentences"], strict=True))
        return str(written(tmp_path / "hotpot.json", rows))
    return str(written(tmp_path / f"hotpot.{request.param}", rows))


def test_hotpotqa(hotpot: str) -> None:
    first, second = load_hotpotqa(hotpot)
    assert (
        text_of(first.units) == "Elm\nElm rises on Ash Hill.\nIt is short.\n\nOak\nOak is a town."
    )
    assert first.questions[0].groups == ("level hard", "type bridge", "all")
    assert asked(HotpotQA(), first, 0).startswith("Elm\nElm rises")
    assert "Question: Is Oak a town?" in asked(HotpotQA(), second, 0)
    assert "Oak is a town." in HotpotQA().tellings(second, WORDS)[0][0]["content"]


@pytest.mark.parametrize(
    ("number", "said", "exact", "f1"),
    [
        (0, "The Ash hill.\nIt is.", 1.0, 1.0),
        (0, "on Ash Hill", 0.0, 2 * 2 / 5),
        (1, "Yes", 1.0, 1.0),
        (1, "yes it is", 0.0, 0.0),  # yes and no count as a whole
    ],
)
def test_hotpotqa_scores(tmp_path: Path, number: int, said: str, exact: float, f1: float) -> None:
    material = load_hotpotqa(str(written(tmp_path / "h.json", HOTPOTQA)))[number]
    found = HotpotQA().score(material.questions[0], said)
    assert found == {"exact match": exact, "F1": pytest.approx(f1)}


# --- MemoryAgentBench


def test_memoryagentbench(tmp_path: Path) -> None:
    path = written(tmp_path / "Conflict_Resolution-00000-of-00001.json", AGENT)
    facts, events = load_memoryagentbench(str(path))
    assert [q.id for q in facts.questions] == ["Conflict_Resolution/0/0", "Conflict_Resolution/0/1"]
    assert facts.questions[0].groups == ("SF", "SF factconsolidation_sh", "all")
    assert (facts.questions[0].max_tokens, events.questions[0].max_tokens) == (10, 40)
    assert "larger number is the newer" in asked(MemoryAgentBench(), facts, 0)
    assert "He came." in events.questions[0].text
    assert [m.about["source"] for m in load_memoryagentbench(str(path), ["eventqa"])] == [
        "eventqa_full"
    ]
    with pytest.raises(ValueError, match=r"no such sources\. Those it has: eventqa_full, factcons"):
        load_memoryagentbench(str(path), ["icl"])


def test_memoryagentbench_movies_need_their_names(tmp_path: Path) -> None:
    path = written(tmp_path / "movies.json", AGENT)
    assert len(load_memoryagentbench(str(path))) == 2
    names = {"<http://dbpedia.org/resource/Ice_Age_(2002_film)>": 7}
    (tmp_path / "entity2id.json").write_text(json.dumps(names))
    movies = load_memoryagentbench(str(path))[2]
    assert movies.questions[0].answers == ["Ice Age"]


def test_memoryagentbench_chunks_are_whole_sentences(tmp_path: Path) -> None:
    row = AGENT[0] | {"context": " ".join(f"Number {i} is here." for i in range(2500))}
    material = load_memoryagentbench(str(written(tmp_path / "long.json", [row])))[0]
    task = MemoryAgentBench()
    turns = task.messages(material, material.units, "Where?", WORDS)
    assert [turn["role"] for turn in turns] == [
        *("system", "user", "assistant", "user", "assistant", "user", "assistant", "user")
    ]
    texts = [turn["content"].partition("\n\n")[2] for turn in turns[1:-1:2]]
    assert all(WORDS(text) <= 4096 and text.endswith("here.") for text in texts)
    assert " ".join(texts) == row["context"]
    assert [t["content"] for (t,) in task.tellings(material, WORDS)] == [
        turn["content"] for turn in turns[1:-1:2]
    ]


# --- any of them


def test_limit_draws_questions_and_keeps_those_of_a_smaller_one(talks: list[Material]) -> None:
    def drawn(limit: int | None, seed: int = 0) -> set[str]:
        return {q.id for m in limited(talks, limit, seed) for q in m.questions}

    assert len(drawn(None)) == len(drawn(99)) == 6
    assert len(drawn(2)) == 2 and drawn(2) < drawn(4) < drawn(None)
    assert drawn(2) == drawn(2)
    assert len({frozenset(drawn(2, seed)) for seed in range(8)}) > 1
    assert all(material.questions for material in limited(talks, 1, 0))


def test_folder_without_the_files(tmp_path: Path) -> None:
    (tmp_path / "distractor").mkdir()
    written(tmp_path / "distractor" / "validation-0.json", HOTPOTQA)
    with pytest.raises(FileNotFoundError, match=r"none of the files distractor/validation-\*"):
        load_hotpotqa(str(tmp_path))
    for name in ("a.json", "b.json"):
        written(tmp_path / name, LOCOMO)
    with pytest.raises(ValueError, match=r"several files: a.json, b.json. Name the one to read"):
        load_locomo(str(tmp_path))


def with_metadata(**values: object) -> dict:
    return AGENT[1] | {"metadata": AGENT[1]["metadata"] | values}


def with_question(**values: object) -> dict:
    return LOCOMO[1] | {"qa": [LOCOMO[1]["qa"][0] | values]}


BAD_TALK = copy.deepcopy(LOCOMO)
BAD_TALK[0]["qa"][3]["category"] = 6
del BAD_TALK[0]["qa"][0]["answer"]
del BAD_TALK[0]["conversation"]["session_2_date_time"]
del BAD_TALK[0]["conversation"]["session_1"][0]["speaker"]


@pytest.mark.parametrize(
    ("load", "rows", "said"),
    [
        (load_locomo, BAD_TALK, r"session_1\[0\] has no speaker or no text"),
        (load_locomo, BAD_TALK, "row 0: conversation has no session_2_date_time"),
        (load_locomo, BAD_TALK, r"row 0: qa\[0\] has no answer"),
        (load_locomo, BAD_TALK, r"row 0: qa\[3\]: category 6, expected 1 to 5"),
        (load_locomo, HOTPOTQA, "has another schema:\n  row 0: no conversation or no qa"),
        (load_locomo, {"a": 1}, "holds no rows. Expected a list"),
        (load_locomo, [1], "row 0 is int, not an object"),
        (load_hotpotqa, LOCOMO, "row 0: no question"),
        (load_hotpotqa, [HOTPOTQA[0] | {"context": [1]}], "row 0: context has no titles"),
        (load_memoryagentbench, HOTPOTQA, "row 0: source None"),
        (load_memoryagentbench, [AGENT[0] | {"answers": []}], "2 questions and 0 answers"),
        (load_memoryagentbench, [AGENT[0] | {"answers": [[1], ["a"]]}], "no list of texts"),
        (
            load_memoryagentbench,
            [with_metadata(previous_events=[[1]])],
            r"previous_events \[\[1\]\]",
        ),
        (
            load_memoryagentbench,
            [with_metadata(previous_events={})],
            "previous_events {}, expected",
        ),
        (
            load_memoryagentbench,
            [with_metadata(question_dates=[5])],
            r"question_dates \[5\], expec",
        ),
        (load_locomo, [LOCOMO[1] | {"sample_id": ["a"]}], r"sample_id \['a'\], expected text"),
        (load_locomo, [LOCOMO[1] | {"sample_id": True}], "sample_id True, expected text"),
        (
            load_locomo,
            [with_question(answer=["car"])],
            r"qa\[0\]: answer \['car'\], expected text or",
        ),
        (load_locomo, [with_question(adversarial_answer={})], "adversarial_answer {}, expected"),
    ],
)
def test_wrong_schema(load: Callable, rows: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        load(str(written(tmp_path / "x.json", rows)))
    assert "x.json" in str(raised.value)


@pytest.mark.parametrize("load", [load_locomo, load_hotpotqa, load_memoryagentbench])
def test_files_that_cannot_be_read(load: Callable, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No file .*none.json'\. Check the path"):
        load(str(tmp_path / "none.json"))
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(LOCOMO)[:200])
    with pytest.raises(ValueError, match=r"cut.json is not valid JSON: .*Fetch it again"):
        load(str(cut))
    lines = tmp_path / "cut.jsonl"
    lines.write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(ValueError, match=r"cut.jsonl:2 is not valid JSON"):
        load(str(lines))
    other = tmp_path / "data.csv"
    other.write_text("a,b\n")
    with pytest.raises(ValueError, match=r"data.csv is no data file. Expected one ending in .json"):
        load(str(other))


def test_cut_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "cut.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"cut.parquet cannot be read as parquet"):
        load_hotpotqa(str(path))


def test_parquet_that_unpacks_to_more_than_any_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"id": ["x" * 10_000] * 10_000}), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("deltamem_mlx.evals.benchmarks.datafiles.MOST_BYTES", 10_000_000)
    with pytest.raises(ValueError, match=r"bomb.parquet .* unpacks to more than 10,000,000 bytes"):
        load_hotpotqa(str(path))


def test_parquet_texts_that_are_not_unicode(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "latin.parquet"
    column = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"id": column}), path)
    with pytest.raises(ValueError, match=r"latin.parquet cannot be read as parquet: .*utf-8"):
        load_hotpotqa(str(path))


# --- ids that are there twice


def test_an_id_that_is_there_twice_is_refused_with_file_and_rows(tmp_path: Path) -> None:
    rows = [HOTPOTQA[0], HOTPOTQA[1], HOTPOTQA[1] | {"id": "q1"}]
    with pytest.raises(ValueError, match=r"x.json: row 2: id 'q1' is also that of .*x.json: row 0"):
        load_hotpotqa(str(written(tmp_path / "x.json", rows)))
    talks = [LOCOMO[0], LOCOMO[1] | {"sample_id": "talk-1"}]
    with pytest.raises(ValueError, match=r"y.json: row 1: id 'talk-1' is also that of .*row 0"):
        load_locomo(str(written(tmp_path / "y.json", talks)))
    unnamed = {name: value for name, value in LOCOMO[1].items() if name != "sample_id"}
    with pytest.raises(ValueError, match="row 1: id '1' is also that of"):
        load_locomo(str(written(tmp_path / "z.json", [LOCOMO[0] | {"sample_id": "1"}, unnamed])))


def test_files_of_one_competence_are_counted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [written(tmp_path / f"SF-0000{i}-of-00002.json", [AGENT[i]]) for i in (0, 1)]
    monkeypatch.setattr(
        "deltamem_mlx.evals.benchmarks.memoryagentbench.data_files", lambda name, patterns: files
    )
    assert [m.name for m in load_memoryagentbench("somewhere")] == ["SF/0", "SF/1"]


@pytest.mark.parametrize("sentences", [5, "Elm rises."])
def test_sentences_that_are_no_list_are_refused(tmp_path: Path, sentences: object) -> None:
    row = HOTPOTQA[0] | {"context": [["Elm", sentences]]}
    with pytest.raises(ValueError, match="row 0: context has no titles with sentences"):
        load_hotpotqa(str(written(tmp_path / "x.json", [row])))
