"""Rows become conversations, conversations episodes, episodes batches, as in the reference data."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FIXTURES, ROOT
from hub_server import HubServer
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from deltamem_mlx.text import datasets
from deltamem_mlx.text.datasets import load_conversations
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training.batching import (
    EpisodeBatch,
    batch_indices,
    batch_modes,
    batches,
    evaluation_batches,
    pad_batch,
    window_size,
)
from deltamem_mlx.training.dataset import EpisodeDataset, ForeignMemories
from deltamem_mlx.training.episode_settings import EpisodeSettings
from deltamem_mlx.training.episodes import Episode, View, WritePart, build_episodes
from deltamem_mlx.training.read_parts import ReadPart, labelled_sequence, supervised_turns

REFERENCE = {
    name: case
    for name, case in json.loads((FIXTURES / "spans" / "spans.json").read_text()).items()
    if "episodes" in case
}
BATCHES = json.loads((FIXTURES / "spans" / "train_batches.json").read_text())
# Reference field of a batch, and ours.
FIELDS = {
    "input_ids": "read_tokens",
    "attention_mask": "read_mask",
    "labels": "read_labels",
    "read_lengths": "read_lengths",
    "write_input_ids": "write_tokens",
    "write_attention_mask": "write_mask",
    "write_lengths": "write_lengths",
    "write_message_ids": "message_ids",
    "write_sentence_ids": "sentence_ids",
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, TokenizerWrapper]:
    return {name: load_tokenizer(FIXTURES / "tokenizers" / name) for name in ("bpe", "char96")}


@pytest.fixture(scope="module")
def char96(tokenizers: dict[str, TokenizerWrapper]) -> TokenizerWrapper:
    return tokenizers["char96"]


def settings_of(arguments: dict) -> EpisodeSettings:
    kept = ("assistant_loss_mode", "episode_recent_messages", "max_length", "max_write_length")
    return EpisodeSettings(
        **{name: arguments[name] for name in kept}, sentences=arguments["include_sentence_ids"]
    )


def talk(*contents: str) -> list[dict[str, object]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def dataset_of(tokenizer: TokenizerWrapper, turns: list[int], **settings: object) -> EpisodeDataset:
    """One conversation for each number of turns."""
    rows = [ConversationRow(talk(*"abcdefghijklmnop"[: 2 * n])) for n in turns]
    return EpisodeDataset(rows, tokenizer, EpisodeSettings(**settings))


def same(left: EpisodeBatch, right: EpisodeBatch) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in FIELDS.values()
    )


# Episodes


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_labels(tokenizers: dict[str, TokenizerWrapper], name: str) -> None:
    case = REFERENCE[name]
    for expected in case["sft"]:
        part = labelled_sequence(
            tokenizers[case["tokenizer"]],
            case["messages"],
            max_length=expected["max_length"],
            assistant_loss_mode=expected["assistant_loss_mode"],
        )
        assert part.tokens.tolist() == expected["input_ids"]
        assert part.labels.tolist() == expected["labels"]


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_episodes(tokenizers: dict[str, TokenizerWrapper], name: str) -> None:
    case = REFERENCE[name]
    for group in case["episodes"]:
        found = build_episodes(tokenizers[case["tokenizer"]], case["messages"], settings_of(group))
        assert len(found) == len(group["episodes"])
        for episode, expected in zip(found, group["episodes"], strict=True):
            assert episode.target == expected["episode_target_message_index"]
            assert episode.written == expected["write_message_count"]
            assert episode.visible == expected["visible_message_count"]
            for prefix, view in (("", episode.both), ("state_only_", episode.state_only)):
                assert view.read.tokens.tolist() == expected[prefix + "input_ids"]
                assert view.read.labels.tolist() == expected[prefix + "labels"]
                assert view.write.tokens.tolist() == expected[prefix + "write_input_ids"]
                assert view.write.message_ids.tolist() == expected[prefix + "write_message_ids"]
                assert view.write.sentence_ids.tolist() == expected[prefix + "write_sentence_ids"]


@pytest.mark.parametrize("mode", ["both", "state_only"])
@pytest.mark.parametrize("name", BATCHES)
def test_reference_batches(char96: TokenizerWrapper, name: str, mode: str) -> None:
    case = BATCHES[name]
    settings = settings_of(case["build_arguments"])
    rows = [ConversationRow(messages) for messages in case["conversations"]]
    [batch] = evaluation_batches(EpisodeDataset(rows, char96, settings), len(rows), mode=mode)
    prefix = "" if mode == "both" else "state_only_"
    with np.load(FIXTURES / "spans" / "train_batches.npz") as reference:
        expected = {f: reference.get(f"{name}/{prefix}{f}") for f in FIELDS}
    compared = {field: array for field, array in expected.items() if array is not None}
    assert len(compared) >= 6
    for field, array in compared.items():
        np.testing.assert_array_equal(getattr(batch, FIELDS[field]), array, err_msg=field)


def test_nothing_is_written_without_memory(char96: TokenizerWrapper) -> None:
    [episode] = build_episodes(char96, talk(*"abcdef"), EpisodeSettings(episode_recent_messages=2))
    view = episode.view("no_memory")
    assert view.read is episode.both.read
    assert len(view.write.tokens) == 0 < len(episode.both.write.tokens)
    with pytest.raises(ValueError, match="expected both, state_only, no_memory"):
        episode.view("neither")


def test_one_visible_message_is_state_only(char96: TokenizerWrapper) -> None:
    [episode] = build_episodes(char96, talk(*"abcdef"), EpisodeSettings())
    assert episode.state_only is episode.both


def test_cut_tokens_are_counted(char96: TokenizerWrapper) -> None:
    long, short = (
        build_episodes(
            char96, talk(*"abcdef"), EpisodeSettings(max_length=read, max_write_length=write)
        )[0].both
        for read, write in ((512, 8192), (9, 7))
    )
    for name in ("read", "write"):
        whole, cut = getattr(long, name), getattr(short, name)
        assert whole.dropped == 0
        assert cut.dropped + len(cut.tokens) == len(whole.tokens)
        assert cut.tokens.tolist() == whole.tokens[-len(cut.tokens) :].tolist()


def test_every_reply_or_the_last_is_learned() -> None:
    messages = [*talk(*"abcd"), {"role": "user", "content": "e"}]
    assert supervised_turns(messages, "all_assistant_turns") == [1, 3]
    assert supervised_turns(messages, "final_assistant_only") == [3]
    with pytest.raises(ValueError, match="nothing to learn"):
        supervised_turns(messages[:1], "final_assistant_only")


def test_all_wrong_settings_are_listed() -> None:
    with pytest.raises(ValueError, match=r"max_length is 1.*assistant_loss_mode is 'last'"):
        EpisodeSettings(max_length=1, assistant_loss_mode="last")
    with pytest.raises(TypeError, match=r"max_length is 512\.0"):
        EpisodeSettings(max_length=512.0)


# Datasets


def test_episodes_are_built_once_and_only_when_asked_for(
    char96: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(char96, [1, 3, 2], assistant_loss_mode="all_assistant_turns")
    monkeypatch.setattr(char96._tokenizer, "encode", None)
    assert len(dataset) == 6
    monkeypatch.undo()
    last = dataset[5]
    assert [dataset[i].target for i in range(6)] == [1, 1, 3, 5, 1, 3]
    assert dataset[5] is last
    with pytest.raises(IndexError, match="there are 6"):
        dataset[6]


def test_report_counts_what_is_trained_and_cut(char96: TokenizerWrapper) -> None:
    whole = dataset_of(char96, [1, 3, 3])
    report = whole.report()
    batch = pad_batch([episode.both for episode in whole])
    assert (report.conversations, report.episodes, report.with_history) == (3, 3, 2)
    assert report.write_tokens == batch.write_mask.sum()
    assert report.read_tokens == batch.read_mask.sum()
    assert report.supervised_tokens == batch.supervised
    assert (report.truncated_reads, report.truncated_writes) == (0, 0)
    [note] = report.notes()
    assert "1 of 3 episodes have nothing to write" in note

    cut = dataset_of(char96, [3, 3], max_length=9, max_write_length=5).report()
    assert (cut.truncated_reads, cut.truncated_writes) == (2, 2)
    assert (cut.longest_read, cut.longest_write) == (report.longest_read, report.longest_write)
    assert "2 of 2 write parts were cut to their last 5 tokens" in cut.notes()[0]
    assert "2 of 2 read parts were cut to their last 9 tokens" in cut.notes()[1]


def test_report_names_every_row_the_template_refuses() -> None:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "char96")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'b' %}{{ raise_exception('no b') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = [
        ConversationRow(talk("a", reply), where=f"t.jsonl:{i}") for i, reply in enumerate("bcb")
    ]
    with pytest.raises(ValueError) as caught:
        EpisodeDataset(rows, tokenizer).report()
    said = str(caught.value)
    assert "t.jsonl:0: The chat template refuses" in said
    assert "t.jsonl:1" not in said
    assert "t.jsonl:2: " in said


def test_tools_of_a_row_reach_the_template() -> None:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "char96")
    tokenizer.chat_template = (
        "{% for t in tools or [] %}<|im_start|>{{ t.name }}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    )
    rows = [ConversationRow(talk("a", "b")), ConversationRow(talk("a", "b"), [{"name": "add"}])]
    plain, tooled = (episode.both.read for episode in EpisodeDataset(rows, tokenizer))
    assert tokenizer.decode(plain.tokens.tolist()) == "<|im_start|>a<|im_start|>b"
    assert tokenizer.decode(tooled.tokens.tolist()) == "<|im_start|>add<|im_start|>a<|im_start|>b"


def test_documents_in_several_messages_are_trained_where_turns_are_demanded() -> None:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "char96")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    documents = [{"role": "user", "content": text} for text in ("Anna: Oslo.", "Ben: Rome.")]
    asked = talk("Where is Anna?", "Oslo.")
    settings = EpisodeSettings(episode_recent_messages=2)
    rows = [ConversationRow([*documents, *asked])]
    with pytest.warns(UserWarning, match="they are merged") as caught:
        [episode] = EpisodeDataset(rows, tokenizer, settings)
    assert len({(str(w.filename), w.lineno, str(w.message)) for w in caught}) == 1, "said once"
    read, write = episode.both.read, episode.both.write
    assert tokenizer.decode(write.tokens.tolist()) == "<|im_start|>user\nAnna: Oslo.<|im_end|>\n"
    shown = "<|im_start|>user\nBen: Rome.\n\nWhere is Anna?<|im_end|>\n"
    reply = "<|im_start|>assistant\nOslo.<|im_end|>\n"
    assert tokenizer.decode(read.tokens.tolist()) == shown + reply
    assert tokenizer.decode(read.tokens[read.labels >= 0].tolist()) == reply
    told = episode.state_only.write
    assert set(told.message_ids.tolist()) == {0, 1}
    second = tokenizer.decode(told.tokens[told.message_ids == 1].tolist())
    assert second.strip() == "Ben: Rome.<|im_end|>"


# Batches


@given(turns=st.lists(st.integers(1, 4), min_size=1, max_size=4), multiple=st.integers(1, 9))
def test_padding_changes_nothing(char96: TokenizerWrapper, turns: list[int], multiple: int) -> None:
    views = [episode.both for episode in dataset_of(char96, turns, sentences=True)]
    batch = pad_batch(views, pad_id=7, multiple=multiple)
    assert batch.read_tokens.shape[1] % multiple == batch.write_tokens.shape[1] % multiple == 0
    for row, view in enumerate(views):
        for name, part, width in (
            ("read_tokens", view.read.tokens, batch.read_lengths[row]),
            ("read_labels", view.read.labels, batch.read_lengths[row]),
            ("write_tokens", view.write.tokens, batch.write_lengths[row]),
            ("message_ids", view.write.message_ids, batch.write_lengths[row]),
            ("sentence_ids", view.write.sentence_ids, batch.write_lengths[row]),
        ):
            padded = getattr(batch, name)
            assert padded.dtype == np.int32
            assert padded[row, :width].tolist() == part.tolist(), name
            silent = {"read_labels": -100, "message_ids": -1, "sentence_ids": -1}.get(name, 7)
            assert set(padded[row, width:].tolist()) <= {silent}, name
        assert batch.read_mask[row].sum() == len(view.read.tokens)
        assert batch.write_mask[row].sum() == len(view.write.tokens)
    assert batch.supervised == sum(pad_batch([view]).supervised for view in views)


def test_no_history_at_all_is_a_batch_without_write_tokens(char96: TokenizerWrapper) -> None:
    batch = pad_batch([episode.both for episode in dataset_of(char96, [1, 1])])
    assert batch.write_tokens.shape == batch.message_ids.shape == batch.write_mask.shape == (2, 0)
    with pytest.raises(ValueError, match="at least one"):
        pad_batch([])


@given(
    count=st.integers(1, 30),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 9),
    step=st.integers(0, 50),
)
def test_order_follows_from_seed_and_step(
    count: int, batch_size: int, seed: int, step: int
) -> None:
    row = [i for s in range(step + 1) for i in batch_indices(count, batch_size, seed, s)]
    assert batch_indices(count, batch_size, seed, step) == row[-batch_size:]
    for start in range(0, len(row) - count + 1, count):
        assert sorted(row[start : start + count]) == list(range(count)), "each once an epoch"


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(batch_indices(50, 50, seed, step)) for seed in (0, 1) for step in (0, 1)}
    assert len(orders) == 4


def test_resuming_sees_what_an_unbroken_run_sees(char96: TokenizerWrapper) -> None:
    settings = {"episode_recent_messages": 2}
    options = {"seed": 3, "state_only_prob": 0.3, "no_memory_prob": 0.3}
    unbroken = list(islice(batches(dataset_of(char96, [1, 2, 3, 4], **settings), 3, **options), 9))
    fresh = dataset_of(char96, [1, 2, 3, 4], **settings)
    resumed = islice(batches(fresh, 3, start_step=5, **options), 4)
    assert all(same(a, b) for a, b in zip(unbroken[5:], resumed, strict=True))
    assert not all(same(a, b) for a, b in pairwise(unbroken))


def test_batches_are_of_like_length_and_leave_none_out(char96: TokenizerWrapper) -> None:
    dataset = dataset_of(char96, [1 + i % 9 for i in range(160)], episode_recent_messages=1)
    steps, size = 160 // 4, window_size(160, 4)
    made = list(islice(batches(dataset, 4, seed=5), steps))
    assert size == 10, "a quarter of an epoch"
    found = sorted(n for batch in made for n in batch.write_lengths.tolist())
    assert found == sorted(len(episode.both.write.tokens) for episode in dataset)
    drawn = [[dataset[i] for i in batch_indices(160, 4, 5, step)] for step in range(steps)]
    padded = sum(4 * max(len(e.both.write.tokens) for e in batch) for batch in drawn)
    assert sum(batch.write_tokens.size for batch in made) < 0.8 * padded
    widths = [batch.write_tokens.shape[1] for batch in made[:size]]
    assert widths != sorted(widths), "short and long ones alternate"


def test_a_small_dataset_is_not_grouped(char96: TokenizerWrapper) -> None:
    assert window_size(15, 4) == 1
    dataset = dataset_of(char96, [1, 2, 3, 4], episode_recent_messages=1)
    for batch in islice(batches(dataset, 4), 5):
        assert len(set(batch.write_lengths.tolist())) == 4, "each once"


def test_batches_are_put_together_by_what_leaves_less_padding() -> None:
    """Histories of like length behind which some read a question, others a long text."""
    rng = np.random.default_rng(0)
    none = np.zeros(0, np.int32)

    def episode(written: int, read: int) -> Episode:
        tokens = np.zeros(read, np.int32)
        view = View(WritePart(np.zeros(written, np.int32), none, none), ReadPart(tokens, tokens))
        return Episode(view, view, 1, 1, 1)

    for written, read in (
        (rng.integers(40, 80, 256), rng.choice([64, 320], 256)),
        (rng.choice([64, 320], 256), rng.integers(40, 80, 256)),
    ):
        episodes = [episode(int(w), int(r)) for w, r in zip(written, read, strict=True)]
        row = islice(batches(episodes, 8, seed=1), 32)
        computed = sum(batch.write_tokens.size + batch.read_tokens.size for batch in row)
        assert computed < 1.35 * (written.sum() + read.sum())


def test_processes_share_every_batch(char96: TokenizerWrapper) -> None:
    dataset = dataset_of(char96, [1, 2, 3, 4, 5], episode_recent_messages=3)
    options = {"seed": 1, "state_only_prob": 0.5}
    joint = batches(dataset, 4, **options)
    parts = [batches(dataset, 4, rank=rank, world_size=2, **options) for rank in range(2)]
    for _ in range(5):
        whole, shares = next(joint), [next(part) for part in parts]
        for name in ("read_lengths", "write_lengths"):
            together = np.concatenate([getattr(share, name) for share in shares])
            assert together.tolist() == getattr(whole, name).tolist()
        assert sum(share.supervised for share in shares) == whole.supervised


def test_context_dropout_has_the_probabilities_asked_for() -> None:
    drawn = Counter(
        mode
        for step in range(500)
        for mode in batch_modes(8, 0, step, state_only_prob=0.2, no_memory_prob=0.1)
    )
    assert drawn["state_only"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert drawn["no_memory"] / 4000 == pytest.approx(0.1, abs=0.03)
    assert set(batch_modes(8, 0, 0, state_only_prob=0.0, no_memory_prob=0.0)) == {"both"}
    assert set(batch_modes(8, 0, 0, state_only_prob=1.0, no_memory_prob=0.0)) == {"state_only"}


def test_foreign_memories_are_of_another_conversation_whatever_the_batches(
    char96: TokenizerWrapper,
) -> None:
    settings = EpisodeSettings(assistant_loss_mode="all_assistant_turns")
    rows = [ConversationRow(talk(*name * 6), None, name) for name in "abc"]
    dataset = EpisodeDataset(rows, char96, settings)
    foreign = ForeignMemories(dataset)
    assert len(foreign) == len(dataset) == 9
    for own, other in zip(dataset, foreign, strict=True):
        written = {e.conversation for e in dataset if e.both.write is other.both.write}
        assert other.both.read is own.both.read
        assert written and own.conversation not in written
        assert len(other.both.write.tokens) > 0
    shown = [n for b in evaluation_batches(foreign, 1) for n in b.write_lengths.tolist()]
    assert shown == [n for b in evaluation_batches(foreign, 4) for n in b.write_lengths.tolist()]
    assert ForeignMemories.possible(dataset)
    assert not ForeignMemories.possible(EpisodeDataset(rows[:1], char96, settings))


def test_evaluation_sees_every_episode_once(char96: TokenizerWrapper) -> None:
    dataset = dataset_of(char96, [1, 2, 3, 4, 5])
    found = [n for b in evaluation_batches(dataset, 2) for n in b.write_lengths.tolist()]
    assert found == [len(episode.both.write.tokens) for episode in dataset]
    split = [
        n
        for rank in range(2)
        for batch in evaluation_batches(dataset, 2, rank=rank, world_size=2)
        for n in batch.write_lengths.tolist()
    ]
    assert sorted(split) == sorted(found)


def test_all_wrong_batch_arguments_are_listed(char96: TokenizerWrapper) -> None:
    dataset = dataset_of(char96, [1])
    with pytest.raises(ValueError, match=r"3 is not a multiple of the 2.*seed is -1"):
        batches(dataset, 3, world_size=2, seed=-1)
    with pytest.raises(ValueError, match="sum of at most 1"):
        batches(dataset, 1, state_only_prob=0.7, no_memory_prob=0.7)
    with pytest.raises(ValueError, match="dataset is empty"):
        batches([], 1)


# Rows and files

ROW = {"messages": talk("Hi.", "Hello.")}


def write_rows(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(list(rows)))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"prompt": "Hi.", "completion": "Hello."},
        {"prompt": "Hi.", "response": "Hello.", "id": 4, "tools": None},
        {"messages": [{**message, "name": None} for message in ROW["messages"]]},
    ],
    ids=["messages", "completion", "response", "nulls"],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_of_every_form(tmp_path: Path, row: dict, suffix: str) -> None:
    path = write_rows(tmp_path / f"notes{suffix}", row, row)
    splits = load_conversations(path, valid_fraction=0)
    assert [conversation.messages for conversation in splits.train] == [ROW["messages"]] * 2
    assert splits.train[1].where == f"{path}{': item 2' if suffix == '.json' else ':2'}"


def test_a_row_says_whether_it_depends_on_its_history(tmp_path: Path) -> None:
    said = [{}, *({"unrelated": value} for value in (None, False, [], True, [1]))]
    path = write_rows(tmp_path / "train.jsonl", *[ROW | more for more in said])
    rows = load_conversations(path, valid_fraction=0).train
    assert [sorted(row.unrelated) for row in rows] == [[], [], [], [], [1], [1]]


def test_folder_with_all_parts(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("valid", 2), ("test", 1)):
        write_rows(tmp_path / f"{name}.jsonl", *[ROW] * count)
    write_rows(tmp_path / "train.json", {"text": "not read beside train.jsonl"})
    splits = load_conversations(tmp_path)
    assert [len(part) for part in splits[:3]] == [3, 2, 1]
    assert not splits.held_out


def test_validation_is_held_out_by_seed(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "a"} for i in range(40)]
    path = write_rows(tmp_path / "train.jsonl", *rows)

    def prompts(part: list[ConversationRow]) -> list[str]:
        return [str(conversation.messages[0]["content"]) for conversation in part]

    first, again = load_conversations(path, seed=1), load_conversations(tmp_path, seed=1)
    other = load_conversations(path, seed=2)
    assert first.held_out
    assert len(first.valid) == 4
    assert prompts(first.valid) == prompts(again.valid) != prompts(other.valid)
    assert sorted(prompts(first.train) + prompts(first.valid)) == sorted(map(str, range(40)))
    assert load_conversations(path, valid_fraction=0).valid == []
    alone = load_conversations(write_rows(tmp_path / "one.jsonl", ROW))
    assert (len(alone.train), len(alone.valid), alone.held_out) == (1, 0, False)


def test_something_to_remember_is_held_out_if_there_are_two(tmp_path: Path) -> None:
    text = {"text": "A text.", "unrelated": True}
    silent = {**ROW, "unrelated": True}
    path = write_rows(tmp_path / "train.jsonl", *[text, silent] * 20, ROW, ROW)
    for seed in range(10):
        found = load_conversations(path, seed=seed, valid_fraction=0.05)
        assert len(found.valid) == 2 and any(row.related for row in found.valid)
        assert any(row.related for row in found.train)
    one = load_conversations(write_rows(tmp_path / "one.jsonl", *[text] * 9, ROW))
    assert any(row.related for row in one.train), "what there is of it is to be trained on"


BAD_ROWS = {
    "messages[1].role: 'asistant' (expected system, user, assistant, tool)": {
        "messages": [*talk("a"), {"role": "asistant", "content": "b"}]
    },
    "messages[0].content: a list (expected text)": {
        "messages": [{"role": "user", "content": [{"type": "image"}]}, *talk("a", "b")[1:]]
    },
    "messages[1].content: missing (expected text)": {"messages": [*talk("a"), {"role": "user"}]},
    "messages[0]: text (expected an object)": {"messages": ["a"]},
    "messages: an object (expected a list)": {"messages": {}},
    "messages: empty (expected at least one message)": {"messages": []},
    "messages: no assistant message, so nothing to learn": {"messages": talk("a")},
    "completion: missing (expected text)": {"prompt": "a"},
    "response: a number (expected text)": {"prompt": "a", "response": 4},
    "prompt: null (expected text)": {"prompt": None, "completion": "a"},
    "text: plain text has no turns": {"text": "Once upon a time."},
    "text: plain text has no turns: no": {"text": "Once upon a time.", "unrelated": [0]},
    "text: a number (expected text)": {"text": 3, "unrelated": True},
    "text: empty (expected text)": {"text": " \n", "unrelated": True},
    "no messages, no prompt (its fields: question, answer)": {"question": "a", "answer": "b"},
    "a list (expected an object)": ["a"],
    "tools: text (expected a list)": {**ROW, "tools": "add"},
    "unrelated: a number (expected true, false or a list of": {**ROW, "unrelated": 1},
    "unrelated: text (expected true, false or a list of": {**ROW, "unrelated": "yes"},
    "unrelated[1]: 0 (expected the number, from 0, of a": {**ROW, "unrelated": [1, 0]},
    "unrelated[0]: 2 (expected the number, from 0, of a": {**ROW, "unrelated": [2]},
    "unrelated[0]: -1 (expected the number, from 0, of a": {**ROW, "unrelated": [-1]},
    "unrelated[0]: True (expected the number, from 0, of a": {**ROW, "unrelated": [True]},
    "unrelated[0]: '1' (expected the number, from 0, of a": {**ROW, "unrelated": ["1"]},
}


def test_a_text_that_is_unrelated_is_read_and_written_as_it_stands(tmp_path: Path) -> None:
    text = "Once upon a time there was a text that nobody asked for. " * 40
    path = write_rows(tmp_path / "train.jsonl", {"text": text, "unrelated": True}, ROW)
    rows = load_conversations(path, valid_fraction=0).train
    assert [bool(row.messages) for row in rows] == [False, True]
    assert rows[0].text == text and not rows[1].text
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "char96")
    dataset = EpisodeDataset(rows, tokenizer, EpisodeSettings(max_length=64))
    assert len(dataset) == 2
    view = dataset[0].both
    assert view.running and view.unrelated and not len(view.write.tokens)
    assert view.read.tokens.tolist() == tokenizer.encode(text)[:64]
    learned = np.flatnonzero(view.read.labels != -100)
    assert len(learned) == 40 and learned[0] == 1 and learned[-1] == 63
    assert (view.read.labels[learned] == view.read.tokens[learned]).all()
    report = dataset.report()
    assert (report.texts, report.truncated_texts, report.truncated_reads) == (1, 1, 0)
    assert any("1 of 1 texts were cut to their first 64 tokens" in note for note in report.notes())
    short = EpisodeDataset([rows[0]._replace(text="a")], tokenizer)
    with pytest.raises(ValueError, match=r"train\.jsonl:1: The text 'a' has fewer than two tokens"):
        short[0]


@pytest.mark.parametrize("said", BAD_ROWS)
def test_bad_row_is_named_by_file_line_and_field(tmp_path: Path, said: str) -> None:
    path = write_rows(tmp_path / "train.jsonl", ROW, BAD_ROWS[said])
    with pytest.raises(ValueError) as caught:
        load_conversations(path)
    assert f"{path}:2: {said}" in str(caught.value)
    assert f"{path}:1" not in str(caught.value)
    assert "Each row needs" in str(caught.value)


def test_bad_rows_are_all_found_and_the_first_ten_shown(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", *[{"text": "a"}] * 12)
    path.write_text(path.read_text() + "\n{'messages': \n")
    write_rows(tmp_path / "valid.jsonl", {"text": "a"})
    with pytest.raises(ValueError) as caught:
        load_conversations(tmp_path)
    said = str(caught.value)
    assert f"{path}:10: " in said
    assert f"{path}:11: " not in said
    assert "and 4 more" in said


def test_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n\n{{'messages': 1}}\n")
    with pytest.raises(ValueError, match=r"train\.jsonl:3: not valid JSON: .* at column 2"):
        load_conversations(path)


def test_byte_order_mark_and_line_separators_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    row = json.dumps({"prompt": "a\u2028b", "completion": "c"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{row}\r\n{row}".encode())
    found = load_conversations(path, valid_fraction=0).train
    assert [conversation.messages[0]["content"] for conversation in found] == ["a\u2028b"] * 2


@pytest.mark.parametrize(
    ("files", "source", "error", "said"),
    [
        ([], "nowhere.jsonl", FileNotFoundError, "No file or folder"),
        ([], "no/such/folder", FileNotFoundError, "No file or folder"),
        (["notes.jsonl"], ".", FileNotFoundError, r"No train\.jsonl in .* only: notes\.jsonl"),
        (["notes.txt"], "notes.txt", ValueError, r"not a \.jsonl or \.json file"),
        (["empty.jsonl"], "empty.jsonl", ValueError, "no training rows"),
        (["latin.jsonl"], "latin.jsonl", ValueError, "not UTF-8"),
    ],
)
def test_sources_that_cannot_be_read(
    tmp_path: Path, files: list[str], source: str, error: type[Exception], said: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\xe9" if "latin" in name else b"")
    with pytest.raises(error, match=said):
        load_conversations(tmp_path / source)


LOAD = """
import json, sys
from deltamem_mlx.text.datasets import load_conversations
for source in sys.argv[1:]:
    splits = load_conversations(source)
    print(json.dumps([len(splits.train), len(splits.valid), len(splits.test)]))
"""


def test_dataset_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    split, single = tmp_path / "split", tmp_path / "single"
    write_rows(split / "data" / "train-00000.jsonl", ROW, ROW)
    write_rows(split / "data" / "train-00001.jsonl", ROW)
    write_rows(split / "data" / "validation.jsonl", ROW)
    write_rows(split / "dataset_infos.json", {"not": "a row"})
    write_rows(single / "qasper.jsonl", *[ROW] * 20)
    hub.add("user/split", split, repo_type="dataset")
    hub.add("user/single", single, repo_type="dataset", revision="v1")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "user/split", "user/single@v1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | hub.env(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[3, 1, 0], [18, 2, 0]]


def test_dataset_without_json_needs_the_datasets_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitattributes").write_text("")
    monkeypatch.setattr(datasets, "resolve", lambda *_args, **_options: tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        load_conversations("user/parquet")

    def load_dataset(repo: str, revision: str | None) -> dict[str, list[dict]]:
        assert (repo, revision) == ("user/parquet", "v2")
        return {"train": [ROW, ROW], "validation": [ROW], "other": [{}]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    splits = load_conversations("user/parquet@v2")
    assert [len(part) for part in splits[:3]] == [2, 1, 0]
    assert splits.train[1].where == "user/parquet/train: row 2"
