"""Objects say what they are, and arguments in each other's place are named."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.memory.picture import states_html

BASE, ADAPTER = builtin.base_folder(), builtin.adapter_folder()


@pytest.fixture(scope="module")
def pair() -> tuple:
    return dm.load()


@pytest.fixture(scope="module")
def session(pair: tuple) -> dm.MemorySession:
    session = dm.MemorySession(*pair)
    session.ask("anna lives in oslo .", max_tokens=4)
    return session


def test_a_session_says_how_much_it_holds_and_no_text(session: dm.MemorySession) -> None:
    stats = session.stats()
    written, context = stats["tokens_written"], stats["context_tokens"]
    assert repr(session) == (
        f"MemorySession(1 turn, {written} tokens written, 6.1 KB, context {context} tokens)"
    )
    empty = dm.MemorySession(session.model, session.tokenizer)
    assert repr(empty) == "MemorySession(0 turns, 0 tokens written, 0.0 KB, context 0 tokens)"


def test_a_session_can_be_shown_while_it_answers(session: dm.MemorySession) -> None:
    fork = session.fork()
    answer = fork.stream("where does anna live ?", max_tokens=4)
    next(answer)
    assert "MemorySession(1 turn, " in repr(fork)
    assert "<img" in fork._repr_html_()
    answer.close()


def test_a_notebook_shows_the_states_as_they_are(session: dm.MemorySession) -> None:
    html = session._repr_html_()
    assert "oslo" not in html
    assert repr(session)[len("MemorySession(") : -1] in html
    pictures = re.findall(r"base64,([^\"]+)", html)
    for state, picture in zip(dm.memory_state(session.cache).values(), pictures, strict=True):
        drawn = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))
        matrix = np.concatenate(list(np.array(state[0])), axis=1)  # state heads side by side
        assert drawn.shape == (*matrix.shape, 3)
        strong = np.abs(matrix) > 0.2 * np.abs(matrix).max()
        # Red is more than blue where an entry is positive.
        assert ((drawn[..., 0] > drawn[..., 2]) == (matrix > 0))[strong].all()


@pytest.mark.parametrize("layers, heads", [(1, 1), (6, 1), (36, 2)])
def test_many_layers_are_drawn_as_six_and_an_empty_memory_as_well(layers: int, heads: int) -> None:
    html = states_html({3 * i: np.zeros((1, heads, 8, 8)) for i in range(layers)})
    assert html.count("<img") == min(layers, 6)
    assert f"layer {3 * (layers - 1)}<" in html


def test_caches_say_what_they_hold(session: dm.MemorySession) -> None:
    stats = session.stats()
    assert repr(session.cache[1]) == (
        f"DeltaMemCache(KVCache of {stats['context_tokens']} tokens, "
        f"MemoryCache(layer 1, 2 × 16 × 16, {stats['tokens_written']} tokens written))"
    )


Wrong = Callable[[dm.MemorySession], object]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda s: dm.load(str(ADAPTER), str(BASE)), "holds a model: are the two swapped"),
        (lambda s: dm.load(str(ADAPTER)), "holds an adapter, not a model"),
        (
            lambda s: dm.load_adapter(str(ADAPTER), s.model),
            "model is '.*', expected a model",
        ),
        (lambda s: dm.load_adapter(s.model, s.cache), "adapter is a prompt cache"),
        (lambda s: dm.forget_context(tuple(s.cache)), r"cache is a tuple, expected a list.*list\("),
        (lambda s: dm.attach(dm.DeltaMemConfig(), s.model), "model is a DeltaMemConfig"),
        (lambda s: dm.save_adapter("x", s.model), "model is 'x', expected a model"),
        (lambda s: dm.save_memory(s.cache, "x", s.model), "path is a prompt cache"),
        (lambda s: dm.save_memory("x", s.model, s.cache), "cache is a model"),
        (lambda s: dm.save_memory("x", s, s.model), "cache is a session, .* session.cache"),
        (lambda s: dm.load_memory(s.model, "x"), "path is a model"),
        (lambda s: dm.MemorySession(s.tokenizer, s.model), "model is a tokenizer"),
        (lambda s: dm.MemorySession(s.model, None), "tokenizer is None"),
        (lambda s: dm.MemorySession.restore(s.model, s.tokenizer, "x"), "path is a model"),
        (lambda s: dm.memory_state(s), "cache is a session"),
        (lambda s: dm.forget_context(s.model), "cache is a model"),
        (lambda s: s.ask(ROOT / "README.md"), "is a path; expected text"),
        (lambda s: s.remember(b"hi"), "bytes"),
    ],
)
def test_swapped_arguments_are_named(wrong: Wrong, said: str, session: dm.MemorySession) -> None:
    with pytest.raises((TypeError, FileNotFoundError), match=said):
        wrong(session)


def test_a_path_may_be_a_path_wherever_a_file_is_meant(
    session: dm.MemorySession, tmp_path: Path
) -> None:
    model, tokenizer = dm.load(BASE, ADAPTER)
    dm.save_adapter(model, tmp_path / "adapter")
    dm.convert_adapter(tmp_path / "adapter", tmp_path / "published", form="published")
    dm.load_adapter(dm.load(BASE)[0], tmp_path / "published")
    dm.save_memory(tmp_path / "m.safetensors", session.cache, session.model)
    assert make_prompt_cache(model)[1].memory.written == [0]
    assert dm.load_memory(tmp_path / "m.safetensors", model)[1].memory.written[0] > 0
    fork = session.fork()
    fork.save(tmp_path / "folder")
    restored = dm.MemorySession.restore(tmp_path / "folder", model, tokenizer)
    assert repr(restored) == repr(session)
    assert restored.remember(ROOT / "examples" / "facts.txt") > 20
