"""`GET /v1/memories/{key}/state`: the states, and how like they are to those after each turn."""

import numpy as np
import pytest
from serving import FACT, QUESTION, Client, states_in

from deltamem_mlx.memory.measures import similarities

TOLD = (FACT, "ben is a doctor .", "maria lives in rome .", QUESTION)


def flat(file: bytes) -> np.ndarray:
    """[L, N] of a memory file."""
    states = states_in(file)
    return np.stack([states[i].ravel() for i in sorted(states)])


def test_it_is_what_the_file_holds_to_four_digits(client: Client) -> None:
    client.chat(FACT, "digits")
    state = client.memory("GET", "digits", "/state").json
    states = states_in(client.memory("GET", "digits", "/export").body)
    assert [layer["layer"] for layer in state["layers"]] == sorted(states)
    for layer in state["layers"]:
        expected = states[layer["layer"]][0]
        np.testing.assert_allclose(layer["states"], expected, rtol=6e-4)
        np.testing.assert_allclose(layer["norm"], np.linalg.norm(expected), rtol=6e-4)
        assert 1 <= layer["effective_rank"] <= expected.shape[-1]
    numbers = client.memory("GET", "digits").json
    assert {name: state[name] for name in numbers} == numbers | {"object": "memory.state"}


def test_its_history_is_the_likeness_to_the_memory_after_each_turn(client: Client) -> None:
    files = []
    for text in TOLD:
        client.chat(text, "history")
        files.append(client.memory("GET", "history", "/export").body)
    history = client.memory("GET", "history", "/state").json["history"]
    assert [then["back"] for then in history] == [1, 2, 3, 4]
    assert [then["turns"] for then in history] == [4, 3, 2, 1]
    expected = similarities(np.stack([flat(file) for file in files]))[-1][::-1]
    np.testing.assert_allclose([then["similarity"] for then in history], expected, rtol=6e-4)
    assert expected[0] == pytest.approx(1) and expected[-1] < 0.95
    turns = client.memory("GET", "history", "/turns").json["data"]
    written = [turn["total_tokens_written"] for turn in turns]
    assert [then["tokens_written"] for then in history] == written


def test_after_an_undo_it_is_as_before(client: Client) -> None:
    client.chat(FACT, "undone")
    before = client.memory("GET", "undone", "/state").json
    client.chat(QUESTION, "undone")
    client.memory("POST", "undone", "/undo")
    after = client.memory("GET", "undone", "/state").json
    assert after["layers"] == before["layers"] and after["history"] == before["history"]


def test_a_memory_that_is_not_there_has_none(client: Client) -> None:
    assert client.memory("GET", "nobody", "/state").code == "memory_not_found"
