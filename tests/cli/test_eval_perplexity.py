"""`deltamem-mlx eval perplexity`: the loss with the memory and without, its table, wrong input."""

import json
import math
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from conftest import RunCli
from mlx_lm.perplexity import eval_ppl
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tiny import strong_pair, tiny_model, tiny_model_folder
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.evals import perplexity
from deltamem_mlx.evals.intervals import paired_bootstrap
from deltamem_mlx.evals.journal import Journal
from deltamem_mlx.evals.passages import passages, read_source
from deltamem_mlx.evals.perplexity import losses, passage_nats, summary
from deltamem_mlx.text.spans import Spans

WORDS = "The ferry to the island leaves at nine, and on Sundays it does not leave at all. "
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Anna has a dog. It barks."},
    {"role": "assistant", "content": "I see."},
    {"role": "user", "content": "What has she?"},
    {"role": "assistant", "content": "A dog."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[nn.Module, TokenizerWrapper]:
    return strong_pair(folder)


@pytest.fixture(scope="module")
def pair(folder: Path, loaded: tuple[nn.Module, TokenizerWrapper]) -> tuple[str, ...]:
    adapter = folder.parent / "adapter"
    dm.save_adapter(loaded[0], adapter)
    return "--model", str(folder), "--adapter", str(adapter)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(WORDS * 4)
    return path


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    rows = [{"messages": CONVERSATION}, {"messages": CONVERSATION[1:3]}, {"messages": CONVERSATION}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text(tokens: list[int]) -> Spans:
    return Spans(tokens, [-1] * len(tokens))


def by_hand(logits: mx.array, tokens: list[int]) -> float:
    """Nats of the tokens but the first: minus the log of the softmax, in numpy."""
    x = np.array(logits[0].astype(mx.float32), np.float64)
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return -sum(logs[i, token] for i, token in enumerate(tokens[1:]))


@pytest.mark.parametrize("arch", ["qwen3", "gemma3_text", "qwen3_next"])
def test_base_is_the_model_without_an_adapter(arch: str) -> None:
    rows = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 30, 40]]
    model = tiny_model(arch)
    expected = [by_hand(model(mx.array([row])), row) for row in rows]
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=4.0), seed=1)
    found = passage_nats(model, list(map(text, rows)), write=False)
    assert found == pytest.approx(expected, rel=1e-5)
    written = passage_nats(model, list(map(text, rows)), write=True)
    by_model = [by_hand(model(mx.array([row])), row) for row in rows]
    assert written == pytest.approx(by_model, rel=1e-5)
    assert written != pytest.approx(found, rel=1e-3)


def test_agrees_with_mlx_lm(loaded: tuple[nn.Module, TokenizerWrapper], book: Path) -> None:
    model, tokenizer = loaded
    found = passages(read_source(str(book)), tokenizer, max_length=40)[:8]
    data = mx.array([p.spans.token_ids for p in found])
    assert data.shape == (8, 40)
    scores = summary(losses(model, found, batch_size=3, journal=Journal(None, {})))["scores"]
    assert scores["memory"]["perplexity"] == pytest.approx(eval_ppl(model, data)[0], rel=1e-5)


def test_batches_and_pieces_do_not_change_the_loss(
    loaded: tuple[nn.Module, TokenizerWrapper], book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    found = passages(read_source(str(book)), tokenizer, max_length=33)
    assert len({len(p.spans.token_ids) for p in found}) == 2, "the last window is shorter"

    def nats(batch_size: int) -> dict[str, float]:
        rows = losses(model, found, batch_size=batch_size, journal=Journal(None, {}))
        return {row["id"]: row["nats"] for row in rows}

    alone = nats(1)
    assert nats(4) == pytest.approx(alone, rel=1e-5)
    monkeypatch.setattr(perplexity, "POSITIONS", 21)
    assert nats(3) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_messages_are_written_when_they_end(folder: Path, granularity: str) -> None:
    model, tokenizer = strong_pair(folder, granularity)
    sentences = granularity == "sentence_mean"
    spans = dm.message_spans(tokenizer, CONVERSATION, sentences=sentences)
    starts = [0, *(spans.message_ids.index(n) for n in (1, 2, 3)), len(spans.token_ids)]
    cache, logits = mlx_lm.models.cache.make_prompt_cache(model), []
    for a, b in pairwise(starts):
        ids = [spans.sentence_ids[a:b]] if sentences else None
        with dm.write_spans(cache, [spans.message_ids[a:b]], ids):
            logits.append(model(mx.array([spans.token_ids[a:b]]), cache=cache))
    expected = by_hand(mx.concatenate(logits, axis=1), spans.token_ids)
    found = passage_nats(model, [spans, spans], write=True)
    assert found == pytest.approx([expected] * 2, rel=1e-5)
    assert found != pytest.approx(passage_nats(model, [spans] * 2, write=False), rel=1e-4)
    token_wise = passage_nats(model, [text(spans.token_ids)], write=True)
    assert token_wise != pytest.approx([expected], rel=1e-4)


def test_windows_and_conversations(
    loaded: tuple[nn.Module, TokenizerWrapper], book: Path, talk: Path
) -> None:
    _, tokenizer = loaded
    windows = passages(read_source(str(book)), tokenizer, max_length=50)
    joined = [token for p in windows for token in p.spans.token_ids]
    assert tokenizer.decode(joined) == WORDS * 4
    assert windows[0].id == f"{book}:1"
    (book.parent / "more.md").write_text("A little more.")
    both = passages(read_source(str(book.parent)), tokenizer, max_length=50)
    assert [p.id for p in both] == [p.id for p in windows] + [f"{book.parent / 'more.md'}:1"]
    some = passages(read_source(str(book)), tokenizer, max_length=50, limit=3, seed=5)
    more = passages(read_source(str(book)), tokenizer, max_length=50, limit=5, seed=5)
    assert len(some) == 3 and set(map(str, some)) < set(map(str, more))

    rows = passages(read_source(str(talk)), tokenizer)
    whole = tokenizer.apply_chat_template(CONVERSATION)
    assert rows[0].spans.token_ids == whole and rows[0].id == f"{talk}:1"
    cut = passages(read_source(str(talk)), tokenizer, max_length=20)
    assert cut[0].spans.token_ids == whole[:20]


def test_every_window_begins_as_the_tokenizer_begins_a_text(book: Path) -> None:
    class Beginning:
        bos_token_id = 1

        def encode(self, text: str, add_special_tokens: bool = True, **_: object) -> list[int]:
            return [1] * add_special_tokens + [ord(c) for c in text]

    book.write_text("abcde")
    found = passages(read_source(str(book)), Beginning(), max_length=3)
    assert [p.spans.token_ids for p in found] == [[1, 97, 98], [1, 99, 100], [1, 101]]


def test_perplexity_counts_tokens_not_passages() -> None:
    rows = [
        {"passage": name, "condition": condition, "nats": nats, "tokens": tokens}
        for name, condition, nats, tokens in [
            ("a", "none", 30.0, 10),
            ("b", "none", 180.0, 90),
            ("a", "memory", 35.0, 10),
            ("b", "memory", 225.0, 90),
        ]
    ]
    found = summary(rows)
    assert found["scores"]["none"]["nats_per_token"] == pytest.approx(2.1)
    assert found["scores"]["memory"]["perplexity"] == pytest.approx(math.exp(2.6))
    ratio = {name: pytest.approx(math.exp(0.5)) for name in ("value", "low", "high")}
    assert found["ratio"] == ratio, "by as much in every passage: nothing is uncertain"


def test_weights_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 1.0, 40), np.zeros(40)
    plain = paired_bootstrap(first, second)
    assert paired_bootstrap(first, second, weights=[3] * 40) == pytest.approx(plain)
    one = paired_bootstrap([5.0, 1.0], [0.0, 0.0], weights=[3, 1])
    assert one == pytest.approx((4.0, 1.0, 5.0))
    with pytest.raises(ValueError, match="one of each"):
        paired_bootstrap(first, second, weights=[1, 2])


def test_a_loss_that_is_no_number_is_an_error(book: Path, folder: Path) -> None:
    model, tokenizer = strong_pair(folder)
    model.model.embed_tokens.weight *= float("nan")
    found = passages(read_source(str(book)), tokenizer, max_length=40)
    with pytest.raises(ValueError, match=r"book\.txt:\d+: the loss under 'none' is nan"):
        losses(model, found, batch_size=8, journal=Journal(None, {}))


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["eval", "perplexity", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def measured(*args: str | Path) -> dict:
    done = call(*args, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_same_seed_same_result_and_a_folder_goes_on(
    pair: tuple[str, ...], book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (book, *pair, "--max-length", "36", "--limit", "4", "--batch-size", "2")
    real, calls = perplexity.passage_nats, []

    def stops(*given: object, **kwargs: object) -> list[float]:
        calls.append(kwargs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given, **kwargs)

    monkeypatch.setattr(perplexity, "passage_nats", stops)
    out = ("--out", tmp_path / "run")
    stopped = call(*args, *out)
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    found = measured(*args, *out)
    assert len(calls) == 5, "four batches, of which three were there"
    monkeypatch.undo()
    assert measured(*args) == found == json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["passages"], found["tokens"]) == (4, 4 * 35)
    assert list(found["scores"]) == ["none", "memory"]
    scores = {name: own["perplexity"] for name, own in found["scores"].items()}
    assert found["ratio"]["value"] == pytest.approx(scores["memory"] / scores["none"])
    assert found["ratio"]["low"] < found["ratio"]["value"] < found["ratio"]["high"]
    assert measured(*args, "--seed", "1")["passages_digest"] != found["passages_digest"]
    other = call(*args, *out, "--seed", "1")
    assert other.exit_code == 1 and "seed: 0 there, 1 now" in other.stderr


def test_table(pair: tuple[str, ...], talk: Path) -> None:
    done = call(talk, *pair)
    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["condition", "perplexity", "nats/token", "memory", "/", "none"]
    assert [line[0] for line in lines[2:4]] == ["none", "memory"]
    assert lines[3][4] == "%" and "windows or conversations: 3" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    one = call(talk, *pair, "--limit", "1")
    assert "its interval says nothing" in one.stderr


def test_several_models(pair: tuple[str, ...], folder: Path, talk: Path, tmp_path: Path) -> None:
    small = tiny_model_folder(tmp_path / "small", bits=4)
    found = measured(talk, *pair, "--also-model", small)
    assert [Path(own["model"]).name for own in found["models"]] == ["base", "small"]
    assert found["models"][0]["scores"] == measured(talk, *pair)["scores"]
    table = call(talk, *pair, "--also-model", small).stdout.splitlines()
    assert [line.split()[:2] for line in table[2:6]] == [
        [name, condition] for name in ("base", "small") for condition in ("none", "memory")
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.txt", None, "No file or folder"),
        ("empty.txt", b"", "is empty; expected text"),
        ("blank.md", b" \n\n", "is empty; expected text"),
        ("short.txt", b"a", "has fewer than two tokens"),
        ("latin.txt", b"caf\xe9 au lait", "is not UTF-8 text: invalid continuation byte, byte 3"),
        ("zeros.txt", b"ab\0\0", "zeros.txt:1 is not text: it holds a null character"),
        ("image.png", b"\x89PNG", "is neither text nor conversations. Expected a .txt or .md"),
        ("rows.jsonl", b'{"text": "plain"}\n', "rows.jsonl:1: text: plain text has no turns"),
        ("rows.jsonl", b"", "has no training rows"),
    ],
)
def test_unusable_data(
    pair: tuple[str, ...], tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    done = call(path, *pair)
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr and name in done.stderr and "Traceback" not in done.stderr


def test_folder_without_text(pair: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    done = call(tmp_path, *pair)
    assert done.exit_code == 1
    assert f"No .txt or .md file in the folder '{tmp_path}'" in done.stderr


def test_wrong_use(pair: tuple[str, ...], folder: Path, book: Path) -> None:
    done = call(book, "--model", folder)
    assert done.exit_code == 2 and "has no memory. Give --adapter." in done.stderr
    for option in ("--max-length", "--limit", "--batch-size"):
        done = call(book, *pair, option, "0")
        assert done.exit_code == 2 and option in done.stderr
    assert call(*pair).exit_code == 2, "no data"


def test_process_with_the_built_in_pair(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "facts.txt").write_text("anna lives in oslo . ben is a doctor . " * 3)
    done = run_cli("eval", "perplexity", "facts.txt", "--max-length", "16", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["task"], found["max_length"]) == ("builtin", "perplexity", 16)
