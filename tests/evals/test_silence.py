"""How far answers to unrelated questions are from the plain model's."""

import random
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from tiny import strong_pair

import deltamem_mlx as dm
from deltamem_mlx.evals.benchmarks.reader import Reader
from deltamem_mlx.evals.journal import Journal
from deltamem_mlx.evals.recall.builtin_data import builtin_episodes
from deltamem_mlx.evals.silence.questions import QUESTIONS
from deltamem_mlx.evals.silence.silence import (
    Histories,
    divergence,
    histories,
    histories_of,
    silence,
    summary,
    talk_of,
)
from deltamem_mlx.evals.silence.talk import two_people

ASKED = {"sums": ["What is 1 plus 1?", "And 2?", "3?"], "talk": ["Hello!"]}


@pytest.fixture(scope="module")
def reader(qwen3_tiny: Path) -> Reader:
    return Reader(*strong_pair(qwen3_tiny))


@pytest.fixture(scope="module")
def told(reader: Reader) -> Histories:
    return histories(reader, 2, tokens=60)


def count_words(text: str) -> int:
    return len(text.split())


# --- the figure


def test_divergence_as_it_is_defined() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert divergence(np.log(p) + 3, np.log(q) - 200) == pytest.approx(expected)
    assert divergence(np.log(q), np.log(q)) == 0.0
    assert divergence(np.array([1000.0, 0.0]), np.array([0.0, 0.0])) == pytest.approx(np.log(2))
    with pytest.raises(ValueError, match="nan, not a finite number"):
        divergence(np.array([np.nan, 0.0]), np.array([0.0, 0.0]))


def test_figure_is_that_of_the_plain_model_beside_a_session(
    reader: Reader, told: Histories, qwen3_tiny: Path
) -> None:
    rows = silence(reader, ASKED, told, journal=Journal(None, {}))
    assert [(r["history"], r["kind"]) for r in rows] == [
        (history, kind)
        for history in ("facts", "chat")
        for kind in ("sums", "sums", "sums", "talk")
    ]
    plain, tokenizer = mlx_lm.load(str(qwen3_tiny))
    for history, number, row in (("facts", 1, rows[1]), ("chat", 0, rows[6])):
        session = dm.MemorySession(reader.model, reader.tokenizer)
        for conversation in getattr(told, history)[number]:
            session.remember(list(conversation))
            session.forget_context()
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True
        )
        prompt = mx.array(ids)[None]
        with dm.read_only(session.cache):
            own = reader.model(prompt, cache=session.cache)[0, -1]
        nats = divergence(*(np.array(x, np.float64) for x in (plain(prompt)[0, -1], own)))
        assert row["nats"] == pytest.approx(nats, abs=1e-4)
        assert nats > 0.001


def test_memory_that_corrects_nothing_is_silent(qwen3_tiny: Path, told: Histories) -> None:
    model, tokenizer = mlx_lm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="zero"))
    rows = silence(Reader(model, tokenizer), ASKED, told, journal=Journal(None, {}))
    assert {row["nats"] for row in rows} == {0.0}


def test_resumed_run_computes_only_what_is_missing(
    reader: Reader, told: Histories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = silence(reader, ASKED, told, journal=Journal(tmp_path, {}))
    lines = (tmp_path / "questions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "questions.jsonl").write_text("".join(lines[:-1]))
    tell, tellings, done = Reader.tell, [], []
    monkeypatch.setattr(Reader, "tell", lambda self, c: tellings.append(c) or tell(self, c))
    again = silence(reader, ASKED, told, journal=Journal(tmp_path, {}), tell=done.append)
    assert (again, tellings, sum(done)) == (whole, [told.chat[1]], 8)


def test_lines_are_means_with_intervals() -> None:
    rows = [
        {"kind": kind, "history": history, "nats": nats}
        for history, scale in (("facts", 1.0), ("chat", 0.5))
        for kind, nats in (("sums", scale), ("sums", 3 * scale), ("talk", 2 * scale))
    ]
    sums, talk, every = summary(rows)
    assert (sums["kind"], sums["questions"], sums["facts"]["nats"]) == ("sums", 2, 2.0)
    assert sums["facts"]["low"] == 1.0 and sums["facts"]["high"] == 3.0
    assert talk["chat"] == {"nats": 1.0, "low": 1.0, "high": 1.0}
    assert (every["kind"], every["questions"], every["facts"]["nats"]) == ("all", 3, 2.0)


# --- what is told and asked


@pytest.mark.parametrize("tokens", [1, 50, 2000])
def test_chat_of_two_people_is_as_long_as_asked_for(tokens: int) -> None:
    sessions = two_people(tokens, count_words, random.Random(1))
    text = "\n".join(str(session[0]["content"]) for session in sessions)
    assert tokens <= count_words(text) < tokens + 20
    head, *lines = text.splitlines()
    names = head.removeprefix("A conversation between ").rstrip(".").split(" and ")
    assert {line.partition(":")[0] for line in lines} <= set(names) and len(set(names)) == 2
    assert sessions == two_people(tokens, count_words, random.Random(1))
    assert all(len(session) == 1 and session[0]["role"] == "user" for session in sessions)


def test_questions_are_asked_once(reader: Reader) -> None:
    texts = [text for own in QUESTIONS.values() for text in own]
    assert len(texts) == len(set(texts)) == 64
    assert [len(told) for told in histories(reader, 3, tokens=9, seed=1)] == [3, 3]


def test_language_of_the_built_in_pair_has_its_own(reader: Reader) -> None:
    episodes = builtin_episodes()
    own = histories_of(episodes, reader, 2, tokens=100)
    assert [len(conversations) for conversations in own] == [2, 2]
    assert sum(m["role"] == "user" for m in own.facts[0][0]) == 4
    talk = talk_of(episodes)
    assert 5 < len(talk) == len(set(talk))
    assert {m["content"] for c in own.chat[1] for m in c if m["role"] == "user"} <= set(talk)
    assert sum(reader.count(m["content"]) for c in own.chat[0] for m in c) >= 100
