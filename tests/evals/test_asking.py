"""Asking many questions about what was read once: the same answers as one by one, and resuming."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from benchmarks import AGENT, LOCOMO, written
from tiny import strong_pair

import deltamem_mlx as dm
from deltamem_mlx.evals.aggregate import group_scores
from deltamem_mlx.evals.benchmarks.asking import NO_CONTEXT, Examination, digest, strangers_of
from deltamem_mlx.evals.benchmarks.locomo import LoCoMo, load_locomo
from deltamem_mlx.evals.benchmarks.memoryagentbench import MemoryAgentBench, load_memoryagentbench
from deltamem_mlx.evals.benchmarks.reader import Asked, Reader, memory_of
from deltamem_mlx.evals.benchmarks.task import Material, text_of
from deltamem_mlx.evals.benchmarks.window import context_window, prompts_alone, prompts_in_window
from deltamem_mlx.evals.journal import QUESTIONS, Journal
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.text.spans import Spans

WINDOW = 1500  # characters: one is a token of the tiny models


@pytest.fixture(scope="module", params=["token", "message_mean", "sentence_mean"])
def each_reader(request: pytest.FixtureRequest, qwen3_tiny: Path) -> Reader:
    return Reader(*strong_pair(qwen3_tiny, request.param), batch_size=4)


@pytest.fixture(scope="module")
def reader(qwen3_tiny: Path) -> Reader:
    return Reader(*strong_pair(qwen3_tiny), batch_size=2)


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> list[Material]:
    return load_locomo(str(written(tmp_path_factory.mktemp("data") / "locomo.json", LOCOMO)))


def short(materials: Sequence[Material], tokens: int) -> list[Material]:
    """The same with two questions at most and shorter answers."""
    return [
        replace(m, questions=tuple(replace(q, max_tokens=tokens) for q in m.questions[:2]))
        for m in materials
    ]


# --- reading once


def test_many_questions_on_one_cache_are_answered_as_one_by_one(
    each_reader: Reader, talks: list[Material]
) -> None:
    prompts = prompts_in_window(each_reader, LoCoMo(), talks[0], WINDOW)
    for write in (True, False):
        cache = each_reader.read(prompts.prefix, write=write)
        before = memory_of(cache)
        asked = [Asked(cache, rest, 6) for rest in list(prompts.rest.values())[1:4]]
        together = each_reader.answers(asked, one_line=False)
        one_by_one = [each_reader.answers([a], one_line=False)[0] for a in asked]
        assert together == one_by_one
        after = memory_of(cache)
        assert all(mx.array_equal(before[i], after[i]) for i in before), "questions never write"
        assert any(mx.any(x != 0).item() for x in before.values()) == write


def test_without_writing_the_answers_are_the_plain_models(
    qwen3_tiny: Path, talks: list[Material]
) -> None:
    model, tokenizer = strong_pair(qwen3_tiny)
    reader = Reader(model, tokenizer)
    prompts = prompts_in_window(reader, LoCoMo(), talks[0], WINDOW)
    cache = reader.read(prompts.prefix, write=False)
    written_cache = reader.read(prompts.prefix, write=True)
    rest = list(prompts.rest.values())[:2]
    said = reader.answers([Asked(cache, r, 8) for r in rest], one_line=False)
    remembered = reader.answers([Asked(written_cache, r, 8) for r in rest], one_line=False)
    plain = dm.detach(model)
    expected = [
        mlx_lm.generate(plain, tokenizer, prompts.prefix.token_ids + r, max_tokens=8).strip()
        for r in rest
    ]
    assert said == expected
    assert remembered != expected, "this adapter changes answers"


def test_telling_one_after_the_other_goes_on_with_the_memory(each_reader: Reader) -> None:
    told = [[{"role": "user", "content": text}] for text in ("I am Al.", "I live in Rome.")]
    state = each_reader.tell(told)
    session = dm.MemorySession(each_reader.model, each_reader.tokenizer)
    for messages in told:
        session.remember(messages)
        session.forget_context()
    expected = dm.memory_state(session.cache)
    assert all(mx.allclose(state[i], expected[i], atol=1e-5) for i in state)


def test_an_answer_ends_with_its_first_line(reader: Reader, talks: list[Material]) -> None:
    prompts = prompts_in_window(reader, LoCoMo(), talks[0], WINDOW)
    cache = reader.read(prompts.prefix, write=True)
    asked = [Asked(cache, rest, 24) for rest in list(prompts.rest.values())[:3]]
    whole = reader.answers(asked, one_line=False)
    lines = reader.answers(asked, one_line=True)
    assert lines == [next(iter(text.splitlines()), "").strip() for text in whole]


# --- the window


def test_prompts_share_all_but_the_question(reader: Reader, talks: list[Material]) -> None:
    task = LoCoMo()
    prompts = prompts_in_window(reader, task, talks[0], WINDOW)
    text = reader.tokenizer.decode(prompts.prefix.token_ids)
    assert text_of(talks[0].units) in text
    assert prompts.kept == len(talks[0].units)
    assert text.rstrip().endswith("Question:")
    for question in talks[0].questions:
        messages = task.messages(talks[0], talks[0].units, task.wording(question), reader.count)
        whole = prompts.prefix.token_ids + prompts.rest[question.id]
        assert whole == reader.prompt(messages).token_ids
        assert reader.tokenizer.decode(prompts.rest[question.id]).strip().startswith(question.text)


def test_a_single_question_is_not_part_of_what_is_read(
    reader: Reader, talks: list[Material]
) -> None:
    prompts = prompts_in_window(reader, LoCoMo(), talks[1], WINDOW)
    assert "Sold?" not in reader.tokenizer.decode(prompts.prefix.token_ids)


@pytest.mark.parametrize("less", [1, 40, 90])
def test_the_newest_that_fits_is_kept(reader: Reader, talks: list[Material], less: int) -> None:
    everything = prompts_in_window(reader, LoCoMo(), talks[0], 10_000)
    longest = len(everything.prefix.token_ids) + max(map(len, everything.rest.values())) + 50
    prompts = prompts_in_window(reader, LoCoMo(), talks[0], longest)
    assert prompts.kept == 4
    prompts = prompts_in_window(reader, LoCoMo(), talks[0], longest - less)
    assert 0 < prompts.kept < 4
    text = reader.tokenizer.decode(prompts.prefix.token_ids)
    assert "Me too." in text and "I got a dog" not in text
    length = len(prompts.prefix.token_ids) + max(map(len, prompts.rest.values())) + 50
    assert longest - less - 100 < length <= longest - less, "a head and a unit are shorter"
    assert context_window(reader.model) == reader.model.args.max_position_embeddings


def test_a_question_that_does_not_fit(reader: Reader, talks: list[Material]) -> None:
    with pytest.raises(ValueError, match=r"'talk-1/1' needs \d+ tokens .* Raise --max-context"):
        prompts_in_window(reader, LoCoMo(), talks[0], 300)


def test_chunks_of_a_long_text_keep_its_end(reader: Reader, tmp_path: Path) -> None:
    row = AGENT[0] | {"context": " ".join(f"{i}. Al has {i} cats." for i in range(200))}
    material = load_memoryagentbench(str(written(tmp_path / "facts.json", [row])))[0]
    prompts = prompts_in_window(reader, MemoryAgentBench(), material, 1200)
    text = reader.tokenizer.decode(prompts.prefix.token_ids)
    assert "Al has 199 cats." in text and "Al has 10 cats." not in text
    assert "Where is" in text or "only the answer" in text
    alone = prompts_alone(reader, MemoryAgentBench(), material)
    assert alone.prefix == Spans([], [])
    assert all("cats" not in reader.tokenizer.decode(rest) for rest in alone.rest.values())


# --- conditions, and going on


def examination(
    reader: Reader, talks: list[Material], window: int | None, folder: Path | None = None
) -> Examination:
    return Examination(
        reader,
        LoCoMo(),
        talks,
        strangers=strangers_of(talks, talks),
        window=window,
        folder=folder,
    )


def nothing(answers: int) -> None: ...


@pytest.mark.parametrize("window", [WINDOW, None])
def test_conditions_differ_in_the_memory_alone(
    reader: Reader, talks: list[Material], window: int | None
) -> None:
    talks = short(talks, 4)
    rows = examination(reader, talks, window).ask(list(NO_CONTEXT), Journal(None, {}), nothing)
    assert len(rows) == 3 * 3
    said = {(row["question_id"], row["condition"]): row["said"] for row in rows}
    task, first = LoCoMo(), talks[0]
    if window is None:
        states = [reader.tell(task.tellings(talk, reader.count)) for talk in talks]
        prompts = prompts_alone(reader, task, first)
        caches = {
            "memory": reader.cache(states[0]),
            "none": reader.cache(),
            "shuffled": reader.cache(states[1]),
        }
    else:
        prompts = prompts_in_window(reader, task, first, window)
        other = reader.read(prompts_in_window(reader, task, talks[1], window).prefix, write=True)
        caches = {
            "memory": reader.read(prompts.prefix, write=True),
            "none": reader.read(prompts.prefix, write=False),
            "shuffled": reader.read(prompts.prefix, memory_of(other), write=False),
        }
    for name, cache in caches.items():
        asked = [Asked(cache, prompts.rest[q.id], 4) for q in first.questions]
        expected = reader.answers(asked, one_line=True)
        assert [said[q.id, name] for q in first.questions] == expected
    assert len({tuple(said[q.id, name] for q in first.questions) for name in caches}) == 3


@pytest.mark.parametrize("window", [WINDOW, None])
def test_an_interrupted_run_goes_on_without_computing_again(
    reader: Reader,
    talks: list[Material],
    window: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talks = short(talks, 4)
    whole = examination(reader, talks, window).ask(list(NO_CONTEXT), Journal(None, {}), nothing)
    answers, tell = Reader.answers, Reader.tell
    asked, told = [], []

    def counted(self: Reader, questions: list, **kwargs: object) -> list[str]:
        asked.append(len(questions))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answers(self, questions, **kwargs)

    monkeypatch.setattr(Reader, "answers", counted)
    monkeypatch.setattr(Reader, "tell", lambda *args: told.append(1) or tell(*args))
    settings = {"digest": digest(talks)}
    with pytest.raises(KeyboardInterrupt):
        examination(reader, talks, window, tmp_path).ask(
            list(NO_CONTEXT), Journal(tmp_path, settings), nothing
        )
    assert len((tmp_path / QUESTIONS).read_text().splitlines()) == 2 + 1 + 2
    progress = []
    rows = examination(reader, talks, window, tmp_path).ask(
        list(NO_CONTEXT), Journal(tmp_path, settings), progress.append
    )
    assert asked == [2, 1, 2, 1, 1, 2, 1], "two batches a condition; the fourth was interrupted"
    assert progress == [2, 1] * 3
    assert len(told) == (2 if window is None else 0), "memories are kept, too"
    assert rows == whole
    lines = [json.loads(line) for line in (tmp_path / QUESTIONS).read_text().splitlines()]
    assert lines == rows
    assert group_scores(rows) == group_scores(whole)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-4] + b"\0\0\x80?"])
def test_a_kept_memory_that_is_damaged_is_made_again(
    reader: Reader, talks: list[Material], damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    talks = short(talks, 2)
    whole = examination(reader, talks, None, tmp_path).ask(
        ["memory"], Journal(tmp_path, {}), nothing
    )
    kept = sorted((tmp_path / "memories").iterdir())
    good = [path.read_bytes() for path in kept]
    for path, data in zip(kept, good, strict=True):
        path.write_bytes(damage(data))
    (tmp_path / QUESTIONS).unlink()
    rows = examination(reader, talks, None, tmp_path).ask(
        ["memory"], Journal(tmp_path, {}), nothing
    )
    assert rows == whole
    states = [read_memory(path).states for path in kept]
    assert len(states) == 2 and all(states)


def test_prompts_of_earlier_batches_are_dropped(reader: Reader, talks: list[Material]) -> None:
    asked = examination(reader, short(talks, 2), WINDOW)
    asked.ask(["shuffled", "none"], Journal(None, {}), nothing)
    assert list(asked._prompts) == ["talk-2"]


def test_strangers(talks: list[Material]) -> None:
    first, second = talks
    assert strangers_of(talks, talks) == {"talk-1": second, "talk-2": first}
    assert strangers_of([first], talks) == {"talk-1": second}
    assert strangers_of([second], talks) == {"talk-2": first}
    assert strangers_of([first], [first]) == {}
    twin = replace(first, name="twin", questions=())
    everything = [first, twin, second]
    assert strangers_of(everything, everything) == {
        "talk-1": second,
        "twin": second,
        "talk-2": first,
    }
    assert strangers_of([first], everything) == {"talk-1": second}
    assert strangers_of([first, twin], everything) == strangers_of([first], [first, twin]) == {}
    assert digest(talks) != digest(short(talks, 4))


def test_materials_or_questions_of_one_name_are_refused(
    reader: Reader, talks: list[Material]
) -> None:
    with pytest.raises(ValueError, match="'talk-1'"):
        examination(reader, [talks[0], replace(talks[1], name="talk-1")], None)
    with pytest.raises(ValueError, match="'talk-1/0'"):
        examination(reader, [talks[0], replace(talks[1], questions=talks[0].questions)], None)
