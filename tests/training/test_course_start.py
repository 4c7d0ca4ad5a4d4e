"""The closed-form start of a course, on hidden states that are made up."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from deltamem_mlx import builtin, load
from deltamem_mlx.training.course import start
from deltamem_mlx.training.course.choosing import HeldOut, least_loss
from deltamem_mlx.training.course.directions import Directions, head_rows
from deltamem_mlx.training.course.fitting import ELSEWHERE, finished, fit
from deltamem_mlx.training.course.layers import RANK, attentions
from deltamem_mlx.training.course.quieting import AWAY, corrected
from deltamem_mlx.training.course.recording import attention_inputs, find, tapped

D, WORDS, CONTEXT, FACTS, FILLERS = 96, 150, 12, 3, 5


@pytest.fixture(scope="module")
def plain():
    """The built-in model and its tokenizer."""
    return load(str(builtin.base_folder()))


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


def test_what_is_told_is_found_and_said_by_the_fitted_weights():
    rng = np.random.default_rng(0)
    world = World(rng)
    head = rng.normal(size=(WORDS, D))
    directions = Directions(head, WORDS)
    inputs, written, pairs = world.conversations(600)
    values = directions.coordinates[[token for *_, token in pairs]]
    fitted = fit(inputs, written, pairs, values, RANK) | {"voice": np.array(1.0)}
    weights = finished(fitted, directions, directions.axes[:RANK], gain=6.0)

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


def test_values_are_located_where_they_are_told_and_asked_for():
    assert find([5, 1, 2, 3, 1, 2], [1, 2]) == [1, 4]
    assert find([1], [1, 2]) == []


def test_attention_inputs_are_those_of_each_part_alone_and_leave_the_model_as_it_was(plain):
    model, _ = plain
    there = attentions(model)
    sites = {i: there[i] for i in (1, 2)}
    classes = [type(module) for module in sites.values()]
    parts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    found, size, voices = attention_inputs(model, parts, sites)
    assert [type(module) for module in sites.values()] == classes
    assert size > 0 and set(voices.values()) == {1.0}
    alone = [attention_inputs(model, [part], sites)[0] for part in parts]
    for layer in (1, 2):
        assert found[layer].shape == (9, 128)
        joint = np.concatenate([own[layer] for own in alone])
        np.testing.assert_allclose(found[layer], joint, atol=2e-2)


def test_a_word_is_as_loud_as_the_attention_that_a_norm_makes_louder():
    from mlx_lm.models import gemma3_text as family

    shape = dict(model_type="gemma3_text", hidden_size=32, num_hidden_layers=2, head_dim=16,
                 intermediate_size=48, num_attention_heads=2, num_key_value_heads=1,
                 vocab_size=50, sliding_window_pattern=2, rms_norm_eps=1e-6)  # fmt: skip
    model = family.Model(family.ModelArgs(**shape))
    sites, parts = attentions(model), [[5, 6, 7], [8, 9]]
    _, size, voices = attention_inputs(model, parts, {1: sites[1]})
    sites[1].o_proj.weight = 10 * sites[1].o_proj.weight  # the norm takes that away again
    _, same, louder = attention_inputs(model, parts, {1: sites[1]})
    assert same == pytest.approx(size, rel=1e-3)
    assert louder[1] == pytest.approx(10 * voices[1], rel=1e-3)
    assert not any(vars(m).keys() & {"seen", "said"} for m in model.modules())


def test_the_head_is_the_embedding_or_a_layer_with_the_last_norm_in_it(plain):
    model, _ = plain
    ids = [3, 5, 300]
    x = mx.random.normal((1, 128), key=mx.random.key(0))
    wanted = model.model.embed_tokens.as_linear(model.model.norm(x))[0, mx.array(ids)]
    scale = np.sqrt(np.square(np.array(x)).mean())
    got = head_rows(model, ids) @ np.array(x)[0] / scale
    np.testing.assert_allclose(got, np.array(wanted), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_norms_that_add_one_and_heads_of_their_own_count(family):
    import importlib

    module = importlib.import_module(
        f"mlx_lm.models.{ {'gemma3': 'gemma3_text'}.get(family, family) }"
    )
    shape = dict(model_type=family, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
                 num_attention_heads=2, rms_norm_eps=1e-6, vocab_size=50)  # fmt: skip
    more = {
        "llama": {"tie_word_embeddings": False},
        "gemma3": {"head_dim": 16, "sliding_window_pattern": 2},
    }[family]
    arguments = module.ModelArgs(**shape, num_key_value_heads=1, **more)
    model = module.Model(arguments)
    model.model.norm.weight = mx.random.uniform(0.5, 2, (32,), key=mx.random.key(1))
    x = mx.random.normal((1, 32), key=mx.random.key(2))
    hidden = model.model.norm(x)
    head = getattr(model, "lm_head", None) or model.model.embed_tokens.as_linear
    scale = np.sqrt(np.square(np.array(x)).mean())
    got = head_rows(model, range(50)) @ np.array(x)[0] / scale
    np.testing.assert_allclose(got, np.array(head(hidden))[0], rtol=1e-3, atol=1e-3)


def test_quieting_changes_ordinary_text_and_leaves_facts():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    facts = rng.normal(size=(400, D // 2)) @ basis[: D // 2]
    text = rng.normal(size=(300, D // 2)) @ basis[D // 2 :] + 0.1 * facts[:300] + 5 * basis[-1]
    weights = {
        "memory_q_proj": 0.1 * rng.normal(size=(RANK, D)),
        "beta_proj": rng.normal(size=(1, D)),
        "beta_bias": np.array([0.5]),
    }
    new = corrected(weights, facts, text)
    away = text @ new["memory_q_proj"].T
    rows = RANK - ELSEWHERE
    assert np.abs(away[:, :rows]).mean() < 0.3 * np.abs(text @ weights["memory_q_proj"].T).mean()
    assert np.abs(away[:, rows:] - AWAY).mean() < 0.9
    new |= {"beta_bias": weights["beta_bias"]}

    def gates(rows: np.ndarray, of: dict[str, np.ndarray]) -> np.ndarray:
        return 1 / (1 + np.exp(-(rows @ of["beta_proj"][0] + of["beta_bias"])))

    assert gates(text, new).mean() < 0.1
    assert np.abs(gates(facts, new) - gates(facts, weights)).mean() < 0.1


def test_the_gain_is_sought_where_more_is_remembered(plain):
    for best in (0.05, 0.4, 1.6):
        tried = []
        for layers, gain in start._candidates(plain[0], 10.0, tried):
            off = abs(np.log(gain / (10 * best)))
            tried.append(start.Tried(layers, gain, 2.0, 3.0, 12 - off))
        assert max(tried, key=lambda one: one.worth).gain == pytest.approx(10 * best)
        assert len({one.layers for one in tried}) == 2, "of four layers"
        assert len(tried) <= 12


def test_a_start_that_says_little_is_not_chosen_for_its_loss_nor_one_that_shouts():
    little = start.Tried((1,), 0.1, loss=1.9, empty=2.0, foreign=1.95)
    more = start.Tried((1,), 0.4, loss=1.95, empty=2.0, foreign=2.2)
    shouts = start.Tried((1,), 1.6, loss=2.6, empty=2.0, foreign=3.4)
    assert max(little, more, shouts, key=lambda one: one.worth) == more


def test_fewer_layers_may_speak_more_loudly(plain):
    """Of as many layers as are tried first, none remembers anything without harm."""
    tried = []
    for layers, gain in start._candidates(plain[0], 1.0, tried):
        few = len({one.layers for one in tried} | {layers}) > 1
        off = abs(np.log(gain / 0.8))
        tried.append(
            start.Tried(layers, gain, 2.0, 3.0, 9 - off)
            if few
            else start.Tried(layers, gain, 2.0 + gain, 2.0, 3.0)
        )
    assert max(tried, key=lambda one: one.worth).gain == pytest.approx(0.8)


def test_a_lower_loss_is_not_bought_with_what_is_remembered():
    def told(loss: float, remembered: float) -> HeldOut:
        return HeldOut(loss, own=1.0, foreign=1.0 + remembered)

    given = told(1.0, 0.5)
    found = {0.0: given, 0.5: told(0.9, 0.4), 1.0: told(0.7, 0.1)}
    assert least_loss(found, given, 0.6) == 0.5
    assert least_loss(found, given, 0.1) == 1.0
    assert least_loss({1.0: told(0.7, 0.1)}, given, 0.6) is None


def test_attentions_called_by_keyword_are_recorded_too():
    class Attention(nn.Module):
        def __call__(self, hidden_states: mx.array, mask: mx.array | None = None) -> mx.array:
            return 2 * hidden_states

    attention, x = Attention(), mx.ones((1, 2, 4))
    with tapped([attention]):
        attention(hidden_states=x, mask=None)
        assert vars(attention)["seen"] is x and (vars(attention)["said"] == 2).all()
        attention(x + 1)
        assert (vars(attention)["seen"] == 2).all()
    assert "seen" not in vars(attention)
