"""What an answer from a memory is compared with: mean memories, retrieved text, the plain model."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny import strong_pair

from deltamem_mlx.evals.recall.controls import CellMemories, retrieved_turns
from deltamem_mlx.evals.recall.episodes import (
    Cell,
    RecallEpisode,
    digest,
    in_cells,
    read_episodes,
    write_episodes,
)
from deltamem_mlx.evals.recall.facts import UNKNOWN, fact_episodes
from deltamem_mlx.evals.recall.holdout import OwnFact, own_episodes, read_own_facts
from deltamem_mlx.evals.recall.recall import recall
from deltamem_mlx.evals.recall.scores import scores
from deltamem_mlx.evals.retrieval import retrieved
from deltamem_mlx.evals.runner import Runner


@pytest.fixture(scope="module")
def runner(qwen3_tiny: Path) -> Runner:
    return Runner(*strong_pair(qwen3_tiny), batch_size=2, max_tokens=8)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def told(*texts: str, ask: str = "Where is Al?") -> RecallEpisode:
    return RecallEpisode(tuple(user(text) for text in texts), ask, "Rome", len(texts))


# --- memories of others


def test_mean_is_of_the_other_conversations_and_each_counts_once(runner: Runner) -> None:
    texts = ("Al is in Rome.", "Bo is in Bonn, I hear.", "Al is in Rome.", "Cy left.", "Di is 3.")
    memories = CellMemories(runner, [told(text) for text in texts])
    states = [memories.own(i) for i in range(len(texts))]
    for index, others in ((0, (1, 3, 4)), (2, (1, 3, 4)), (3, (0, 1, 4))):
        for layer, mean in memories.mean(index).items():
            expected = np.mean([np.array(states[i][layer], np.float64) for i in others], axis=0)
            assert (mean.shape, mean.dtype) == (states[0][layer].shape, mx.float32)
            np.testing.assert_allclose(np.array(mean), expected, atol=1e-7)
            assert not np.allclose(mean, states[index][layer], atol=1e-3)


def test_memories_do_not_depend_on_which_is_asked_for_first(runner: Runner) -> None:
    episodes = [told(text) for text in ("Al is in Rome.", "Bo.", "Cy is in Bonn, or was.", "Di.")]
    ahead, back = CellMemories(runner, episodes), CellMemories(runner, episodes)
    first = [ahead.own(i) for i in range(4)]
    last = [back.foreign(3), back.own(3), back.own(2), back.own(1), back.own(0)]
    for one, other in zip(first, reversed(last[1:]), strict=True):
        assert all(mx.array_equal(one[layer], other[layer]) for layer in one)
    assert all(mx.array_equal(last[0][layer], first[0][layer]) for layer in first[0])


def test_nothing_is_foreign_to_a_conversation_that_is_alone(runner: Runner) -> None:
    assert CellMemories(runner, [told("Al."), told("Al.")]).alone
    assert not CellMemories(runner, [told("Al."), told("Bo.")]).alone
    assert not CellMemories(runner, [told("Al."), told("Al."), told("Bo.")]).alone
    rows = recall(runner, in_cells([told("Al.")] * 2), conditions=["foreign", "mean", "none"])
    assert [list(row["said"]) for row in rows] == [["none"]] * 2


# --- retrieved text

TEXTS = ["Maria's dog is Rex.", "Oscar lives in Oslo.", "Maria lives in Rome.", "It rains."]


@pytest.mark.parametrize(
    ("query", "budget", "chosen"),
    [
        ("Where does MARIA live, in which city?", 4, [2]),
        ("What is the name of Maria's dog?", 4, [0]),
        ("Maria in Rome, or what is Maria's dog?", 8, [0, 2]),
        ("Who lives in Oslo?", 1, [1]),  # the best is there in any case
        ("Zebras?", 4, [3]),  # no word is shared: the newest
        ("?", 8, [2, 3]),
        ("Maria", 99, [0, 1, 2, 3]),
    ],
)
def test_texts_that_share_words_are_found(query: str, budget: int, chosen: list[int]) -> None:
    assert retrieved(TEXTS, [4] * 4, query, budget) == chosen


def test_texts_without_words_are_no_error() -> None:
    assert retrieved(["?", "!"], [1, 1], "Maria", 1) == [1]
    assert retrieved(["", "Maria"], [1, 1], "Maria", 1) == [1]
    assert retrieved([], [], "Maria", 1) == []


def test_of_texts_that_are_as_good_the_newest_is_found() -> None:
    assert retrieved(["Al is in Rome.", "Al is in Bonn."], [4, 4], "Where is Al?", 4) == [1]


def test_replies_stay_with_what_they_reply_to(runner: Runner) -> None:
    tell = (
        {"role": "system", "content": "Be kind."},
        user("Bo is in Bonn."),
        assistant("Noted."),
        user("Al is in Rome."),
        assistant("Good."),
        assistant("Really."),
    )
    episode = RecallEpisode(tell, "Where is Al?", "Rome", 2)
    assert retrieved_turns(runner, episode, 1) == list(tell[3:])
    episode = RecallEpisode(tell, "Where is Bo?", "Bonn", 2)
    assert retrieved_turns(runner, episode, 1) == list(tell[:3])
    assert retrieved_turns(runner, episode, 10_000) == list(tell)


def test_retrieved_turns_are_shown_to_the_plain_model(runner: Runner) -> None:
    episode = told("Bo is in Bonn, and it rains.", "Al is in Rome.", "Cy is 3.")
    (row,) = recall(runner, in_cells([episode]), conditions=["retrieved"], retrieved_tokens=1)
    assert (
        row["said"]["retrieved"] == runner.ask([[user("Al is in Rome."), user("Where is Al?")]])[0]
    )
    (row,) = recall(
        runner, in_cells([episode]), conditions=["retrieved", "context"], retrieved_tokens=999
    )
    assert row["said"]["retrieved"] == row["said"]["context"]


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ModuleNotFoundError, match=r"bm25s: pip install 'deltamem-mlx\[eval\]'"):
        retrieved(TEXTS, [1] * 4, "Maria", 1)


# --- what was never told


def test_share_of_never_told_that_is_as_plain() -> None:
    rows = [
        {"kind": "never", "facts": 1, "distractors": 0, "correct": {"none": True, "memory": m}}
        | {"as_plain": {"none": True, "memory": m}}
        for m in (True, False, True, True)
    ]
    (line,) = scores(rows)
    assert line["as_plain"]["memory"]["accuracy"] == 0.75
    assert list(line["as_plain"]) == ["memory"]


@pytest.mark.parametrize(
    ("said", "plain", "same"),
    [
        ("a b c d e f g h and more", "a b c d e f g h or less", True),
        ("a b c d e f g and more", "a b c d e f g or less", False),
        ("a b", "a b c", False),
        ("I do not know.", "Sorry, I'm not sure.", True),
        ("I do not know.", "Rome.", False),
    ],
)
def test_as_plain_is_the_same_start_or_not_knowing(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, said: str, plain: str, same: bool
) -> None:
    monkeypatch.setattr(Runner, "tokens", lambda self, text: [ord(w[0]) for w in text.split()])
    monkeypatch.setattr(
        Runner, "ask", lambda self, asked, states: [plain if states[0] is None else said]
    )
    never = RecallEpisode((user("Bo is in Bonn."),), "Where is Al?", UNKNOWN, 1, "never")
    (row,) = recall(runner, in_cells([never]), conditions=["memory", "none"])
    assert row["as_plain"] == {"memory": same, "none": True}


def test_answers_are_as_plain_where_the_memory_says_nothing(runner: Runner) -> None:
    cells = in_cells(list(fact_episodes(4, cells=[Cell("never", 1, 0), Cell("told", 1, 0)])))
    rows = recall(runner, cells, conditions=["memory", "none", "context"])
    never = [row for row in rows if row["kind"] == "never"]
    assert all(row["as_plain"]["none"] for row in never)
    assert not all(row["as_plain"]["memory"] for row in never)
    for row in never:
        starts = [runner.tokens(row["said"][name])[:8] for name in ("memory", "none")]
        assert row["as_plain"]["memory"] == (starts[0] == starts[1])
    assert not any("as_plain" in row for row in rows if row["kind"] == "told")
    writing = Runner(runner.model, runner.tokenizer, max_tokens=2, write_questions=True)
    rows = recall(writing, cells, conditions=["memory", "none"])
    assert not any("as_plain" in row for row in rows), "none is not the plain model there"


# --- facts of one's own

PLACES = {"Al": "Rome", "Bo": "Bonn", "Cy": "Oslo", "Di": "Bern", "Ed": "Riga"}
OWN = [OwnFact(f"{who} is in {v}.", f"Where is {who}?", v) for who, v in PLACES.items()]


def test_every_own_fact_is_asked_for_once_in_each_size() -> None:
    cells = in_cells(list(own_episodes(OWN)))
    assert {cell[:2]: len(own) for cell, own in cells.items()} == {
        ("told", 1): 5, ("told", 2): 5, ("told", 4): 5,
        ("never", 1): 5, ("never", 2): 5, ("never", 4): 5,
    }  # fmt: skip
    for cell, own in cells.items():
        assert [e.question for e in own] == [fact.ask for fact in OWN]
        for episode, fact in zip(own, OWN, strict=True):
            said = [m["content"] for m in episode.tell if m["role"] == "user"]
            assert len(set(said)) == cell.facts == len(said)
            assert (fact.tell in said) == (cell.kind == "told")
            assert episode.answer == (fact.value if cell.kind == "told" else UNKNOWN)
    together = [e.tell for e in cells[Cell("told", 4, 0)]]
    assert together[0] == together[3] != together[4]


def test_sizes_beyond_the_facts_are_left_out_and_twins_are_not_untold() -> None:
    twins = [OWN[0], OWN[0]._replace(tell="Al moved to Bern.", value="Bern")]
    assert {(e.kind, e.facts) for e in own_episodes(twins)} == {("told", 1), ("told", 2)}
    assert [e.facts for e in own_episodes(OWN[:1], sizes=(1, 1, 3))] == [1]


def test_others_of_an_own_fact_were_not_told_it(runner: Runner) -> None:
    names = ("Al", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida")
    facts = [OwnFact(f"{who} is in {who}ville.", f"Where is {who}?", who) for who in names]
    wrapping = list(own_episodes(facts, sizes=[2]))[: len(facts)]  # the last is told with the first
    assert facts[0].tell in [m["content"] for m in wrapping[-1].tell]
    memories = CellMemories(runner, wrapping)
    own = [memories.own(i) for i in range(len(wrapping))]
    assert not memories.alone
    for index, next_one, others in (
        (0, 2, (2, 4, 6)),  # not 8, which has its fact
        (1, 2, (2, 4, 6, 8)),
        (6, 8, (0, 2, 4, 8)),
        (8, 0, (0, 2, 4, 6)),
    ):
        foreign = memories.foreign(index)
        for layer, mean in memories.mean(index).items():
            assert mx.array_equal(foreign[layer], own[next_one][layer])
            expected = np.mean([np.array(own[i][layer], np.float64) for i in others], axis=0)
            np.testing.assert_allclose(np.array(mean), expected, atol=1e-7)
    last = CellMemories(runner, wrapping[::-1])
    assert all(mx.allclose(last.foreign(8)[i], own[6][i], atol=1e-5) for i in own[6])


def test_a_cell_whose_others_all_have_a_fact_is_left_without_them(runner: Runner) -> None:
    cells = in_cells(list(own_episodes(OWN[:3], sizes=[1, 2])))
    alone = {
        (cell.kind, cell.facts): CellMemories(runner, own).alone for cell, own in cells.items()
    }
    assert alone == {
        ("told", 1): False,
        ("told", 2): True,  # 0 and 1, and 2 with 0
        ("never", 1): False,
        ("never", 2): True,  # what others are told has it
    }
    rows = recall(runner, cells, conditions=["none", "foreign", "mean"])
    for row in rows:
        expected = ["none"] if row["facts"] == 2 else ["none", "foreign", "mean"]
        assert list(row["said"]) == expected


def test_facts_asked_for_are_in_digests_and_in_no_file(tmp_path: Path) -> None:
    episode = told("Al is in Rome.")
    own = replace(episode, fact="Al is in Rome.")
    assert digest([episode]) != digest([own])
    path = tmp_path / "own.jsonl"
    write_episodes(path, [episode])
    assert 'fact"' not in path.read_text()
    write_episodes(path, [own])
    assert read_episodes(path) == [episode]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds an empty list. Expected a list of"),
        ('{"tell": "a"}', "holds an object. Expected a list of"),
        ("[1]", "fact 0: a number (expected an object)"),
        ('[{"tell": "a", "ask": "b", "value": 3}]', "fact 0: value: a number (expected text)"),
        ('[{"tell": "a", "ask": " ", "value": "c"}]', "fact 0: ask: blank (expected text)"),
        ('[{"tell": "a", "value": "c"}]', "fact 0: ask: missing (expected text)"),
        ("[", "is not valid JSON"),
    ],
)
def test_files_that_are_no_facts_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_own_facts(path)
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_own_facts_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps([fact._asdict() | {"note": 1} for fact in OWN]))
    assert read_own_facts(path) == OWN
