"""The closed-form start of the SmolLM2 adapter, on hidden states that are made up."""

from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from deltamem_mlx.adapters.publish import prepare

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2_adapter"
D, WORDS, CONTEXT, FACTS, FILLERS = 96, 150, 12, 3, 5


@pytest.fixture
def initial(smollm2_example: Path):
    """The example's module."""
    import initial

    return initial


class World:
    """Hidden states: a value's is what the fact is about plus the word, an asker's the former."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.mean, self.is_value = rng.normal(size=(2, D))
        self.told, self.asked = rng.normal(size=(2, CONTEXT, D))
        self.word = rng.normal(size=(WORDS, D))

    def conversations(self, count: int) -> tuple[np.ndarray, np.ndarray, list]:
        rows, written, pairs = [], [], []
        for _ in range(count):
            about = self.rng.normal(size=(FACTS, CONTEXT))
            tokens = self.rng.integers(WORDS, size=FACTS)
            start = len(rows)
            parts = [about @ self.told + 3 * self.is_value + self.word[tokens], self.fillers()]
            parts += [about @ self.asked + 3 * self.is_value, self.fillers()]
            rows += [row + 3 * self.mean for part in parts for row in part]
            written += [True] * (FACTS + FILLERS) + [False] * (FACTS + FILLERS)
            ask = start + FACTS + FILLERS
            pairs += [(start + i, ask + i, int(token)) for i, token in enumerate(tokens)]
        noise = 0.1 * self.rng.normal(size=(len(rows), D))
        return np.array(rows) + noise, np.array(written), pairs

    def fillers(self) -> np.ndarray:
        return self.rng.normal(size=(FILLERS, CONTEXT)) @ self.told - self.is_value


def test_what_is_told_is_found_and_said_by_the_fitted_weights(initial):
    rng = np.random.default_rng(0)
    world = World(rng)
    head = rng.normal(size=(WORDS, D))
    embedding = SimpleNamespace(weight=mx.array(head))
    norm = SimpleNamespace(weight=mx.ones((D,)))
    model = SimpleNamespace(model=SimpleNamespace(embed_tokens=embedding, norm=norm))
    words = initial.Words(model, range(WORDS))
    inputs, written, pairs = world.conversations(600)
    weights = initial.fit(inputs, written, pairs, words, words.axes[: initial.RANK])

    fresh, is_written, held_out = world.conversations(60)
    values = np.array([told for told, _, _ in held_out])

    def unit(x: np.ndarray) -> np.ndarray:
        return np.tanh(x) / np.linalg.norm(np.tanh(x), axis=1, keepdims=True)

    keys = unit(fresh @ weights["memory_k_proj"].T)
    queries = unit(fresh @ weights["memory_q_proj"].T)
    found = [
        np.argmax(keys[values[i - i % FACTS :][:FACTS]] @ queries[before]) == i % FACTS
        for i, (_, before, _) in enumerate(held_out)
    ]
    assert np.mean(found) > 0.9, "the right fact of three"

    elsewhere = np.setdiff1d(np.flatnonzero(~is_written), [before for _, before, _ in held_out])
    match = np.mean([keys[told] @ queries[before] for told, before, _ in held_out])
    assert np.abs(keys[values] @ queries[elsewhere].T).mean() < 0.2 * match, "little elsewhere"

    read = fresh[values] @ weights["memory_v_proj"].T @ weights["delta_o_proj"].T
    said = np.argmax(read @ head.T, axis=1)
    right = np.mean(said == np.array([token for _, _, token in held_out]))
    assert right > 0.6, "of 150 words, by a third of the directions"

    gate = fresh @ weights["beta_proj"][0] + weights["beta_bias"][0]
    closed = np.setdiff1d(np.flatnonzero(is_written), values)
    assert np.mean(gate[values] > 0) > 0.95 and np.mean(gate[closed] < 0) > 0.95


def test_the_shipped_adapter_is_whole_and_small():
    upload = prepare(EXAMPLE.parent.parent / "adapters" / "smollm2-135m-instruct", "user/name")
    assert sum(upload.sizes.values()) < 4_000_000
    assert upload.card_is_own and "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in upload.card
    assert upload.hidden_base is None, "named as on the Hub"


def test_values_are_located_where_they_are_told_and_asked_for(initial):
    import recording

    assert recording._find([5, 1, 2, 3, 1, 2], [1, 2]) == [1, 4]
    assert recording._find([1], [1, 2]) == []


def test_attention_inputs_are_those_of_each_part_alone_and_leave_the_model_as_it_was(initial):
    import recording

    from deltamem_mlx import builtin, load

    model = load(str(builtin.base_folder()))[0]
    norms = [model.layers[i].input_layernorm for i in (1, 2)]
    parts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    found = recording.attention_inputs(model, parts, (1, 2))
    assert [model.layers[i].input_layernorm for i in (1, 2)] == norms
    alone = [recording.attention_inputs(model, [part], (1, 2)) for part in parts]
    for layer in (1, 2):
        assert found[layer].shape == (9, 128)
        joint = np.concatenate([own[layer] for own in alone])
        np.testing.assert_allclose(found[layer], joint, atol=2e-2)


def test_quieting_changes_ordinary_text_and_leaves_facts(initial):
    import quiet

    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    facts = rng.normal(size=(400, D // 2)) @ basis[: D // 2]
    text = rng.normal(size=(300, D // 2)) @ basis[D // 2 :] + 0.1 * facts[:300] + 5 * basis[-1]
    weights = {
        "memory_q_proj": 0.1 * rng.normal(size=(initial.RANK, D)),
        "beta_proj": rng.normal(size=(1, D)),
        "beta_bias": np.array([0.5]),
    }
    new = quiet.corrected(weights, facts, text)
    away = text @ new["memory_q_proj"].T
    rows = initial.RANK - initial.ELSEWHERE
    assert np.abs(away[:, :rows]).mean() < 0.3 * np.abs(text @ weights["memory_q_proj"].T).mean()
    assert np.abs(away[:, rows:] - quiet.AWAY).mean() < 0.9
    new |= {"beta_bias": weights["beta_bias"]}

    def gates(rows: np.ndarray, of: dict[str, np.ndarray]) -> np.ndarray:
        return 1 / (1 + np.exp(-(rows @ of["beta_proj"][0] + of["beta_bias"])))

    assert gates(text, new).mean() < 0.1
    assert np.abs(gates(facts, new) - gates(facts, weights)).mean() < 0.1
