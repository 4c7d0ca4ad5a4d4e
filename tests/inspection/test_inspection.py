"""Looking inside: measures, contents, probes and traces say what is there, and change nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from conftest import ROOT
from golden import GOLDEN, base_model
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.adapters.loading import adapter_of, fingerprint
from deltamem_mlx.config import acting_settings
from deltamem_mlx.inspection.adapter_contents import inspect_adapter
from deltamem_mlx.inspection.memory_contents import compare, inspect_memory
from deltamem_mlx.inspection.probe import BOTH, WITH, given_answers, probe, rephrasings
from deltamem_mlx.inspection.script import Script, messages_script, text_script
from deltamem_mlx.inspection.trace import Trace, trace
from deltamem_mlx.memory import measures
from deltamem_mlx.model.patch import memory_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pair = tuple[nn.Module, TokenizerWrapper]

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "I am Anna. I like tea."},
    {"role": "assistant", "content": "Hello Anna!"},
    {"role": "user", "content": "Sort a list in C."},
]
TEXT = "One two three. Four.\n\nA new topic: ships and rope.\n\nThe end of it."


def pair_of(folder: Path, **config: object) -> Pair:
    """A tiny model with a random adapter that is strong enough to change its answers."""
    model, tokenizer = mlx_lm.load(str(folder))
    values = {"output_init": "random", "online_gain": 2.0, "beta_bias_init": -2.5} | config
    dm.attach(model, dm.DeltaMemConfig(**values), seed=1)
    for i, attention in memory_layers(model).items():
        noise = mx.random.normal(attention.beta_proj.shape, key=mx.random.key(i))
        attention.beta_proj = 0.3 * noise
    return model, tokenizer


@pytest.fixture(scope="module")
def pair(qwen3_tiny: Path) -> Pair:
    return pair_of(qwen3_tiny)


@pytest.fixture(scope="module")
def state(pair: Pair) -> dict[int, mx.array]:
    """A memory of some tokens."""
    cache = make_prompt_cache(pair[0])
    pair[0](mx.array([pair[1].encode("Anna likes tea.")]), cache=cache)
    return dm.memory_state(cache)


# --- measures


def test_effective_rank_counts_the_directions_in_use() -> None:
    one = np.outer([1.0, 2, 3, 4], [0.0, 1, 0, 2])
    states = np.stack([np.eye(4), one, np.zeros((4, 4)), np.diag([3.0, 3, 0, 0])])
    assert measures.effective_rank(states) == pytest.approx([4, 1, 0, 2], abs=1e-6)
    assert measures.effective_rank(1e-8 * states) == pytest.approx([4, 1, 0, 2], abs=1e-6)


def test_layer_measures_are_means_over_conversations() -> None:
    state = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    (found,) = measures.layer_measures({5: state})
    assert found.layer == 5
    assert found.norm == pytest.approx(np.mean([np.linalg.norm(s) for s in state]))
    assert found.effective_rank == pytest.approx(measures.effective_rank(state).mean())
    tops = [max(np.linalg.norm(head, 2) for head in s) for s in state]
    assert found.largest == pytest.approx(np.mean(tops))


def test_measures_take_the_arrays_of_mlx() -> None:
    state = mx.random.normal((1, 1, 4, 4), key=mx.random.key(0))
    (found,) = measures.layer_measures({0: state})
    assert found.norm == pytest.approx(float(mx.linalg.norm(state)), rel=1e-6)


def test_change_and_cosine_at_their_landmarks() -> None:
    a = np.random.default_rng(0).normal(size=(1, 1, 4, 4))
    for b, change, cosine in ((a, 0, 1), (-a, 2, -1), (0 * a, 1, 0), (3 * a, 2 / 3, 1)):
        assert measures.change(a, b) == pytest.approx(change, abs=1e-12)
        assert measures.change(b, a) == pytest.approx(change, abs=1e-12)
        assert measures.cosine(a, b) == pytest.approx(cosine, abs=1e-12)
    assert measures.change(0 * a, 0 * a) == 0


def test_distances_list_all_that_does_not_match() -> None:
    a = {0: np.zeros((1, 1, 8, 8)), 1: np.zeros((1, 1, 8, 8))}
    b = {0: np.zeros((1, 4, 8, 8)), 2: np.zeros((1, 1, 8, 8))}
    with pytest.raises(ValueError) as error:
        measures.distances(a, b)
    for said in ("layer 1: only", "layer 2: only", "layer 0: shape [1, 1, 8, 8] and [1, 4, 8, 8]"):
        assert said in str(error.value)


@settings(max_examples=50, deadline=None)
@given(keeps=st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=2, max_size=9))
def test_survival_is_the_product_of_the_keep_gates(keeps: list[list[float]]) -> None:
    gates = np.array(keeps)
    shares = measures.survivals(np.cumsum(np.log(gates), axis=0))
    for p in range(len(gates)):
        for q in range(len(gates)):
            expected = gates[p + 1 : q + 1].prod(axis=0).mean() if p <= q else 0
            assert shares[p, q] == pytest.approx(expected)


def test_half_life_of_gates() -> None:
    assert measures.half_life([0.5, 0.25, 1.0]) == pytest.approx([1, 0.5, np.inf])


# --- what an adapter holds


def corrections_in_use(model: nn.Module) -> dict[int, dict[str, float]]:
    """Norms of the corrections as the layers multiply them."""
    return {
        i: {name[0]: float(mx.linalg.norm(w)) for name, w in a._packed(mx.float32).outward.items()}
        for i, a in memory_layers(model).items()
    }


@pytest.mark.parametrize(
    "case",
    ["tsw_qo", "msw_heads4", "scale_layer", "scale_head", "uncoupled_lambda_outside", "no_lambda"],
)
def test_adapter_contents_are_those_of_the_loaded_adapter(case: str) -> None:
    folder = GOLDEN / case / "adapter"
    model = dm.load_adapter(base_model("models/qwen3-tiny"), folder)
    found = inspect_adapter(folder)
    assert found.fingerprint == fingerprint(model)
    assert found.parameters == sum(t.size for t in adapter_of(model).tensors.values())
    for layer, norms in zip(found.layers, corrections_in_use(model).values(), strict=True):
        assert layer.corrections == pytest.approx(norms, rel=1e-5)
    for name, (shape, count) in found.tensors.items():
        assert list(memory_layers(model)[0][name].shape) == shape
        assert count == len(memory_layers(model))


@pytest.mark.parametrize(("case", "keeps"), [("tsw_qo", "beta"), ("scalar_gates_uncoupled", "λ")])
def test_gates_at_rest(case: str, keeps: str) -> None:
    folder = GOLDEN / case / "adapter"
    tensors = np.load(folder / "delta_mem_adapter_mlx.npz")
    for layer in inspect_adapter(folder).layers:
        beta, lambda_ = (
            1 / (1 + np.exp(-tensors.get(f"model.layers.{layer.layer}.self_attn.{name}", 0.0)))
            for name in ("beta_bias", "lambda_bias")
        )
        keep = 1 - beta if keeps == "beta" else lambda_
        assert layer.write == pytest.approx([beta.mean(), beta.min(), beta.max()], rel=1e-5)
        assert layer.keep == pytest.approx(keep.mean(), rel=1e-5)
        assert layer.half_life == pytest.approx(np.median(np.log(0.5) / np.log(keep)), rel=1e-5)


def test_without_lambda_nothing_fades() -> None:
    for layer in inspect_adapter(GOLDEN / "no_lambda" / "adapter").layers:
        assert (layer.keep, layer.half_life) == (1.0, np.inf)


def test_settings_that_act() -> None:
    idle = acting_settings(dm.DeltaMemConfig())
    assert "rank" in idle and "output_init" not in idle and "delta_scale_max" not in idle
    scaled = acting_settings(dm.DeltaMemConfig(trainable_delta_scale=True, delta_o_rmsnorm=True))
    assert scaled.keys() - idle.keys() == {
        *("delta_scale_max", "delta_scale_granularity", "delta_o_rmsnorm_eps")
    }


def test_an_adapter_without_needed_tensors_is_refused(tmp_path: Path) -> None:
    source = GOLDEN / "tsw_qo" / "adapter"
    tensors = dict(np.load(source / "delta_mem_adapter_mlx.npz"))
    kept = {
        n: t for n, t in tensors.items() if not n.endswith(("1.self_attn.beta_bias", "_o_proj"))
    }
    np.savez(tmp_path / "delta_mem_adapter_mlx.npz", **kept)
    config = (source / "delta_mem_config.json").read_text()
    (tmp_path / "delta_mem_config.json").write_text(config)
    with pytest.raises(ValueError, match="missing") as error:
        inspect_adapter(tmp_path)
    for said in ("1.self_attn.beta_bias", "0.self_attn.delta_o_proj", "2.self_attn.delta_o_proj"):
        assert said in str(error.value)


# --- what a memory holds


def test_memory_contents_of_one_of_several_conversations(pair: Pair, tmp_path: Path) -> None:
    model, _ = pair
    cache = make_prompt_cache(model)
    model(mx.array([[5, 6, 7], [8, 9, 10]]), cache=cache)
    dm.save_memory(tmp_path / "m.safetensors", cache, model, note="two")
    for conversation in (0, 1):
        found = inspect_memory(tmp_path / "m.safetensors", conversation)
        assert (found.tokens_written, found.file.note) == (3, "two")
        for layer, state in dm.memory_state(cache).items():
            assert np.array_equal(found.states[layer][0], np.array(state[conversation]))
    with pytest.raises(ValueError, match="2 conversations; conversation 2"):
        inspect_memory(tmp_path / "m.safetensors", 2)


def test_the_folder_of_a_session_holds_what_its_memory_file_does(
    pair: Pair, tmp_path: Path
) -> None:
    session = dm.MemorySession(*pair)
    session.remember("Anna likes tea.")
    session.save(tmp_path / "m.safetensors")
    session.save(tmp_path / "session")
    a, b = inspect_memory(tmp_path / "m.safetensors"), inspect_memory(tmp_path / "session")
    assert a.layers == b.layers
    assert compare(a, b).same_adapter
    assert [layer.change for layer in compare(a, b).layers] == [0] * len(a.layers)
    (context,) = (tmp_path / "session").glob("context-*")
    context.write_bytes(context.read_bytes()[:-100])
    with pytest.raises(ValueError, match="was altered or damaged"):
        inspect_memory(tmp_path / "session")


# --- asking a memory


def test_probe_answers_as_sessions_do(pair: Pair, state: dict[int, mx.array]) -> None:
    model, tokenizer = pair
    cache = make_prompt_cache(model)
    dm.set_memory_state(cache, state)
    with_memory = dm.MemorySession(model, tokenizer, prompt_cache=cache)
    without = dm.MemorySession(model, tokenizer)
    (found,) = probe(model, tokenizer, state, ["Who?"], max_tokens=8)
    texts = []
    for session in (with_memory, without):
        with session.read_only():
            texts.append(session.ask("Who?", max_tokens=8).strip())
    assert [answer.text for answer in found.answers] == texts
    assert [answer.source for answer in found.answers] == [WITH, "without memory"]


def test_probe_scores_are_those_of_one_forward(pair: Pair, state: dict[int, mx.array]) -> None:
    model, tokenizer = pair
    (found,) = probe(model, tokenizer, state, ["Who?"], answers=["Anna"], max_tokens=8)
    answer = found.answers[-1]
    assert (answer.text, answer.source, answer.given) == ("Anna", "given", True)
    prompt = dm.message_spans(
        tokenizer, [{"role": "user", "content": "Who?"}], add_generation_prompt=True
    ).token_ids
    before = tokenizer.encode(answer.after, add_special_tokens=False)
    ids = tokenizer.encode("Anna", add_special_tokens=False)
    for memory, score in ((state, answer.log_prob), (None, answer.log_prob_without)):
        cache = make_prompt_cache(model)
        if memory is not None:
            dm.set_memory_state(cache, memory)
        with dm.read_only(cache):
            tokens = [*prompt, *before, *ids]
            logits = model(mx.array([tokens]), cache=cache)[0, -1 - len(ids) : -1]
        log_probs = nn.log_softmax(logits, axis=-1)
        expected = sum(log_probs[i, token].item() for i, token in enumerate(ids))
        assert score == pytest.approx(expected, abs=1e-3)
    assert answer.gain == answer.log_prob - answer.log_prob_without != 0


@pytest.fixture(scope="module")
def told() -> tuple[Pair, dict[int, mx.array]]:
    """The built-in pair, told where Anna lives."""
    model, tokenizer = dm.load(str(builtin.base_folder()), str(builtin.adapter_folder()))
    session = dm.MemorySession(model, tokenizer)
    session.remember("anna lives in oslo .")
    return (model, tokenizer), dm.memory_state(session.cache)


@pytest.mark.parametrize("question", ["where does anna live ?", "where does anna live"])
def test_a_bare_word_is_scored_where_an_answer_would_say_it(
    told: tuple[Pair, dict[int, mx.array]], question: str
) -> None:
    words = ["oslo", "rome", "lives in oslo", "anna lives in oslo.", "i do not know"]
    (found,) = probe(*told[0], told[1], [question], answers=words)
    gains = {answer.text.rstrip("."): answer for answer in found.answers if answer.given}
    assert gains["oslo"].after == "anna lives in" and gains["anna lives in oslo"].after == ""
    for right in ("oslo", "lives in oslo", "anna lives in oslo"):
        assert gains[right].gain > 10, right
        assert gains[right].log_prob > -0.5, right
    assert gains["rome"].log_prob < -5 and gains["rome"].gain < gains["oslo"].gain - 5
    assert gains["i do not know"].gain < 0.5


def test_without_memory_is_the_plain_model(qwen3_tiny: Path, pair: Pair) -> None:
    plain, tokenizer = mlx_lm.load(str(qwen3_tiny))
    messages = [{"role": "user", "content": "Who?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    said = mlx_lm.generate(plain, tokenizer, prompt, max_tokens=8)
    empty = {i: mx.zeros((1, 1, 8, 8)) for i in memory_layers(pair[0])}
    (found,) = probe(*pair, empty, ["Who?"], max_tokens=8)
    assert [(answer.text, answer.source) for answer in found.answers] == [(said.strip(), BOTH)]
    assert found.answers[0].gain == 0


def test_probe_leaves_the_state_as_it_was(pair: Pair, state: dict[int, mx.array]) -> None:
    before = {i: np.array(s) for i, s in state.items()}
    first = probe(*pair, state, ["Who?", "What?"], max_tokens=4)
    assert all(np.array_equal(before[i], np.array(s)) for i, s in state.items())
    assert probe(*pair, state, ["Who?", "What?"], max_tokens=4) == first


def test_probe_sees_the_system_prompt(pair: Pair, state: dict[int, mx.array]) -> None:
    scores = [
        probe(*pair, state, ["Who?"], answers=["A"], system_prompt=system, max_tokens=2)
        for system in (None, "Be brief.")
    ]
    assert scores[0][0].answers[-1].log_prob != scores[1][0].answers[-1].log_prob


def test_given_answers_are_summed_up_over_phrasings(pair: Pair, state: dict[int, mx.array]) -> None:
    probed = probe(*pair, state, ["Who?", "Say."], answers=["x", "yes"], max_tokens=2)
    found = {given.text: given for given in given_answers(probed)}
    assert found.keys() == {"x", "yes"}
    assert sum(given.first for given in found.values()) == 2
    scores = [a.log_prob for one in probed for a in one.answers if a.text == "yes"]
    assert found["yes"].log_prob == pytest.approx(np.mean(scores))


def test_probe_refuses_nothing_to_ask(pair: Pair, state: dict[int, mx.array]) -> None:
    for phrasings, answers in (([], []), ([" "], []), (["Who?"], [""])):
        with pytest.raises(ValueError, match="empty"):
            probe(*pair, state, phrasings, answers=answers)


def test_rephrasings_keep_the_question() -> None:
    asked = rephrasings("What is  my name?")
    assert asked[0] == "What is my name?" and "what is my name" in asked
    assert any(text.startswith("Please") for text in asked[1:])
    polite = rephrasings("Please tell me my name.")
    assert "Tell me my name." in polite and "I would like you to tell me my name." in polite
    for texts in (asked, polite):
        assert len(texts) == len(set(texts)) >= 4
        assert all("my name" in text.lower() for text in texts)
    assert rephrasings("who") != []


# --- tracing a text


def fed_to(pair: Pair, script: Script, end: int) -> list:
    cache = make_prompt_cache(pair[0])
    pair[0](mx.array([script.spans.token_ids[:end]]), cache=cache)
    return cache


def test_turns_end_where_messages_do(pair: Pair) -> None:
    script = messages_script(pair[1], TALK)
    assert script.spans == dm.message_spans(pair[1], TALK, sentences=True)
    assert [turn.role for turn in script.turns] == ["system", "user", "assistant", "user"]
    start, text = 0, []
    for turn in script.turns:
        text.append("".join(script.pieces[start : turn.end]))
        start = turn.end
    assert start == len(script.pieces)
    assert all(m["content"] in part for m, part in zip(TALK, text, strict=True))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (TEXT, ["One two three. Four.", "A new topic: ships and rope.", "The end of it."]),
        ("a b\nc d\n", ["a b", "c d"]),
        ("\n\nonly one\n\n", ["only one"]),
    ],
)
@pytest.mark.parametrize("template", [True, False])
def test_paragraphs_of_a_text(
    qwen3_tiny: Path, text: str, parts: list[str], template: bool
) -> None:
    _, tokenizer = mlx_lm.load(str(qwen3_tiny))
    if not template:
        tokenizer.has_chat_template = False
    script = text_script(tokenizer, text)
    assert [turn.text for turn in script.turns] == parts
    assert {turn.role for turn in script.turns} == {"line" if text[0] == "a" else "paragraph"}
    start = 0
    for turn in script.turns:
        assert turn.text in "".join(script.pieces[start : turn.end])
        start = turn.end
    assert start == len(script.spans.token_ids)
    assert ("<|im_start|>" in "".join(script.pieces)) is template


class NoOffsets(PreTrainedTokenizerFast):
    """As the tokenizers that are written in Python: where a token stands is not known."""

    backend_tokenizer = None


def lossy(lower: bool, kind: type[PreTrainedTokenizerFast]) -> TokenizerWrapper:
    """A tokenizer of words that keeps no white space, and with ``lower`` no capitals."""
    words = Tokenizer(WordLevel(unk_token="?"))
    steps = [normalizers.Strip(), *([normalizers.Lowercase()] if lower else [])]
    words.normalizer = normalizers.Sequence(steps)
    words.pre_tokenizer = Whitespace()
    special = ["?", "<s>", "</s>"]
    text = " ".join([*PARAGRAPHS, *map(str.lower, PARAGRAPHS), "user system You are helpful Part"])
    words.train_from_iterator([text], WordLevelTrainer(special_tokens=special))
    fast = kind(tokenizer_object=words, eos_token="</s>", bos_token="<s>")
    return TokenizerWrapper(fast)


PARAGRAPHS = ["Anna lives in Oslo .", "Ben is a doctor .", "Anna lives in Oslo .", "user"]
PLAIN = "{% for m in messages %}<s> {{ m.role }} {{ m.content | trim }} </s>{% endfor %}"
OWN_PROMPT = (
    "{% if messages[0].role != 'system' %}<s> system You are helpful . </s>{% endif %}" + PLAIN
)


@pytest.mark.parametrize("between", ["\n\n", "\n \n\n", "\n"])
@pytest.mark.parametrize("knows_offsets", [True, False])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("template", [PLAIN, OWN_PROMPT, None])
def test_every_token_stands_in_its_own_paragraph_though_white_space_is_lost(
    template: str | None, lower: bool, knows_offsets: bool, between: str
) -> None:
    tokenizer = lossy(lower, PreTrainedTokenizerFast if knows_offsets else NoOffsets)
    tokenizer.chat_template = template
    tokenizer.has_chat_template = template is not None
    script = text_script(tokenizer, between.join(PARAGRAPHS))
    turns = list(script.turns)
    if template == OWN_PROMPT:
        prompt = turns.pop(0)
        assert prompt.role == "system" and "you are helpful" in prompt.text.lower()
        assert prompt.end in (6, 7), "its end token looks like that of any message"
    assert [turn.text for turn in turns] == PARAGRAPHS
    starts = [script.turns[0].end if template == OWN_PROMPT else 0, *(t.end for t in turns[:-1])]
    said = [
        tokenizer.decode(script.spans.token_ids[a : t.end])
        for a, t in zip(starts, turns, strict=True)
    ]
    shown = [part.lower() if lower else part for part in PARAGRAPHS]
    header = 0 if template is None else 1
    assert all(part in text for part, text in zip(shown, said, strict=True))
    assert said[1:3] == shown[1:3]
    assert sum(text.count("Oslo") + text.count("oslo") for text in said) == 2
    assert said[0].count("user") == header and turns[-1].end == len(script.pieces)


def test_a_text_like_its_headers_is_found_behind_them(pair: Pair) -> None:
    script = text_script(pair[1], "user\n\nuser")
    assert [turn.text for turn in script.turns] == ["user", "user"]
    assert "".join(script.pieces[: script.turns[0].end]).count("user") == 2


def test_empty_text_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="empty"):
        text_script(pair[1], " \n")


@pytest.fixture(scope="module")
def traced(pair: Pair) -> tuple[Script, Trace]:
    script = messages_script(pair[1], TALK)
    return script, trace(pair[0], script)


def test_trace_sees_the_states_that_a_plain_run_leaves(
    pair: Pair, traced: tuple[Script, Trace]
) -> None:
    script, found = traced
    ends = [turn.end for turn in script.turns]
    assert set(ends) <= set(found.marks) and found.marks[-1] == ends[-1]
    assert 0.8 * 64 < len(found.marks) < 1.3 * 64
    a, b, last = (dm.memory_state(fed_to(pair, script, end)) for end in (*ends[:2], ends[-1]))
    at = found.marks.index(ends[0])
    cosines = [measures.cosine(a[i], last[i]) for i in a]
    assert found.similarity[at, -1] == pytest.approx(np.mean(cosines), abs=1e-4)
    moved = [measures.change(a[i], b[i]) for i in a]
    assert found.turn_moved[1] == pytest.approx(np.mean(moved), abs=1e-4)
    assert found.turn_moved[0] == 1  # from empty
    assert np.diag(found.similarity) == pytest.approx(1)
    assert np.diag(found.contrast) == pytest.approx(1)


def test_trace_sees_the_gates_of_every_token(pair: Pair, traced: tuple[Script, Trace]) -> None:
    script, found = traced
    seen: dict[int, dict[str, mx.array]] = {}
    cache = make_prompt_cache(pair[0])
    with dm.observe(cache, lambda layer, gates: seen.update({layer: gates})):
        pair[0](mx.array([script.spans.token_ids]), cache=cache)
    write = np.stack([np.array(seen[i]["write"]).mean(axis=(0, 2, 3)) for i in sorted(seen)], 1)
    assert found.write == pytest.approx(write, abs=1e-4)
    keep = np.concatenate([np.array(seen[i]["keep"])[0].reshape(len(write), -1) for i in seen], 1)
    p, q = 10, 30
    share = keep[found.marks[p] : found.marks[q]].prod(axis=0).mean()
    assert found.survival[p, q] == pytest.approx(share, rel=1e-3)
    ends = [found.marks.index(turn.end) for turn in found.turns]
    assert [float(row[end]) for row, end in zip(found.left, ends, strict=True)] == pytest.approx(
        [1.0] * len(ends)
    )
    assert np.isnan(found.left[-1][:-1]).all()


def test_token_by_token_is_the_same_trace(pair: Pair, traced: tuple[Script, Trace]) -> None:
    script, found = traced
    fine = trace(pair[0], script, every_token=True)
    assert fine.steps == list(range(1, len(script.pieces) + 1))
    assert fine.marks == found.marks
    for name in ("write", "similarity", "survival", "turn_moved"):
        assert getattr(fine, name) == pytest.approx(getattr(found, name), abs=1e-3), name
    assert (fine.moved > 0).all()


def test_overwritten_after_is_when_contrast_falls(traced: tuple[Script, Trace]) -> None:
    _, found = traced
    mark = found.turns[0].end
    after = found.overwritten_after(mark)
    row = found.contrast[found.marks.index(mark)]
    assert after is not None and row[found.marks.index(mark + after)] < 0.5
    between = [r for m, r in zip(found.marks, row, strict=True) if mark <= m < mark + after]
    assert min(between) >= 0.5
    assert found.overwritten_after(mark, level=-2) is None


def test_trace_goes_on_from_a_memory(pair: Pair, state: dict[int, mx.array]) -> None:
    before = {i: np.array(s) for i, s in state.items()}
    script = text_script(pair[1], TEXT)
    found = trace(pair[0], script, state=state)
    assert all(np.array_equal(before[i], np.array(s)) for i, s in state.items())
    assert found.marks[0] == 0 and found.survival[0, 0] == 1
    cache = make_prompt_cache(pair[0])
    dm.set_memory_state(cache, state)
    pair[0](mx.array([script.spans.token_ids]), cache=cache)
    last = dm.memory_state(cache)
    cosines = [measures.cosine(before[i], last[i]) for i in before]
    assert found.similarity[0, -1] == pytest.approx(np.mean(cosines), abs=1e-4)
    cache = make_prompt_cache(pair[0])
    dm.set_memory_state(cache, state)
    pair[0](mx.array([script.spans.token_ids[: script.turns[0].end]]), cache=cache)
    moved = [measures.change(before[i], s) for i, s in dm.memory_state(cache).items()]
    assert found.turn_moved[0] == pytest.approx(np.mean(moved), abs=1e-4)


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_every_turn_is_an_ingest_of_its_own(qwen3_tiny: Path, granularity: str) -> None:
    model, tokenizer = pair_of(qwen3_tiny, memory_write_granularity=granularity)
    script = messages_script(tokenizer, TALK)
    found = trace(model, script)
    ends = [turn.end for turn in script.turns]
    assert found.survival is None
    # The system message is written with the message after it, and so never by itself.
    moves = [step for step, moved in zip(found.steps, found.moved, strict=True) if moved > 0]
    assert moves == ends[1:]
    assert found.turn_moved[0] == 0
    cache = make_prompt_cache(model)
    for a, b in ((0, ends[1]), (ends[1], ends[2])):
        message_ids, sentence_ids = script.spans.message_ids, script.spans.sentence_ids
        with dm.write_spans(cache, [message_ids[a:b]], [sentence_ids[a:b]]):
            model(mx.array([script.spans.token_ids[a:b]]), cache=cache)
        states = [np.array(s) for s in dm.memory_state(cache).values()]
        if a == 0:
            first = states
    at = [found.marks.index(end) for end in ends[1:3]]
    cosines = [measures.cosine(x, y) for x, y in zip(first, states, strict=True)]
    assert found.similarity[at[0], at[1]] == pytest.approx(np.mean(cosines), abs=1e-4)


def test_trace_of_several_state_heads_and_a_window(qwen3_tiny: Path) -> None:
    model, tokenizer = pair_of(qwen3_tiny, num_state_heads=4)
    script = text_script(tokenizer, TEXT)
    found = trace(model, script, max_kv_size=16)
    assert found.write.shape == (len(script.pieces), len(found.layers))
    assert np.isfinite(found.similarity).all() and found.similarity.max() <= 1


# --- pictures and words


def check_labels(picture: "Figure") -> None:
    """Every chart has a title and says what its axes are, itself or through a neighbour."""
    charts = [axes for axes in picture.axes if axes.axison and axes.get_label() != "<colorbar>"]
    assert charts
    for axes in charts:
        shares_x = len(axes.get_shared_x_axes().get_siblings(axes)) > 1
        first = axes.get_subplotspec().colspan.start == 0
        assert axes.get_title(loc="left") or picture.get_suptitle()
        assert axes.get_xlabel() or shares_x, axes.get_title(loc="left")
        assert axes.get_ylabel() or axes.get_yticklabels() or not first, axes.get_title(loc="left")


def test_pictures_can_be_read_and_written(
    pair: Pair, state: dict[int, mx.array], traced: tuple[Script, Trace], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views import figures, inspection_plots, memory_plot
    from deltamem_mlx.views.trace_plot import draw_trace

    cache = make_prompt_cache(pair[0])
    dm.set_memory_state(cache, state)
    dm.save_memory(tmp_path / "m.safetensors", cache, pair[0])
    memory = inspect_memory(tmp_path / "m.safetensors")
    odd = text_script(pair[1], "$5 and $6 \u6f22\u5b57 100%_^{x}")
    pictures = {
        "memory": memory_plot.draw_memory(memory),
        "comparison": inspection_plots.draw_comparison(compare(memory, memory)),
        "adapter": inspection_plots.draw_adapter(inspect_adapter(GOLDEN / "tsw_qkvo" / "adapter")),
        "probe": inspection_plots.draw_probe(probe(*pair, state, ["$a$?"], max_tokens=4), "m"),
        "trace": draw_trace(traced[1], "talk"),
        "text": draw_trace(trace(pair[0], odd, state=state, every_token=True), "$", by_token=True),
    }
    for picture in pictures.values():
        check_labels(picture)
    figures.save(pictures["text"], tmp_path / "text.png")  # the command's tests write the others
    assert (tmp_path / "text.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name, bands", [("builtin", 1), ("smollm2-135m-instruct", 0)])
def test_a_band_that_nobody_sees_has_no_legend(name: str, bands: int) -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views.inspection_plots import draw_adapter

    gates = draw_adapter(inspect_adapter(ROOT / "adapters" / name)).axes[1]
    legend = gates.get_legend()
    named = [text.get_text() for text in legend.get_texts()] if legend else []
    assert named == ["smallest to largest", "mean"] * bands
    assert len(gates.collections) == bands


def texts_in(axes: "Axes") -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_words_that_were_written_most_stand_at_their_spikes(
    told: tuple[Pair, dict[int, mx.array]],
) -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views.trace_plot import draw_trace

    model, tokenizer = told[0]
    script = text_script(tokenizer, "anna lives in oslo .\n\nben is a doctor .")
    picture = draw_trace(trace(model, script), "notes.txt")
    gates = next(axes for axes in picture.axes if "strongly" in axes.get_title(loc="left"))
    assert {"oslo", "doctor"} <= set(texts_in(gates))
    legend = gates.get_legend().get_window_extent()
    assert legend.y0 >= gates.get_window_extent().y1 - 12, "above the data"
    for axes in picture.axes:
        if "tokens read" in (axes.get_xlabel(), axes.get_ylabel()):
            assert all(tick == round(tick) for tick in axes.get_xticks()), axes.get_title(
                loc="left"
            )


def test_a_text_of_one_paragraph_has_no_panel_of_what_is_left_and_no_special_tokens(
    told: tuple[Pair, dict[int, mx.array]],
) -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views.trace_plot import draw_trace

    model, tokenizer = told[0]
    one = trace(model, text_script(tokenizer, "anna lives in oslo ."))
    picture = draw_trace(one, "notes.txt")
    titles = [axes.get_title(loc="left") for axes in picture.axes]
    assert not any("still in the memory" in title for title in titles)
    moved = next(axes for axes in picture.axes if "How far" in axes.get_title(loc="left"))
    assert moved.get_xlabel() == "tokens read"
    text = next(axes for axes in picture.axes if "The text" in axes.get_title(loc="left"))
    assert "".join(texts_in(text)).split() == ["user:", "anna", "lives", "in", "oslo."]
    assert any("<|im_start|>" in piece for piece in one.pieces)


def test_what_is_left_is_said_as_the_picture_shows_it(
    told: tuple[Pair, dict[int, mx.array]],
) -> None:
    from deltamem_mlx.views.inspection_words import trace_words

    model, tokenizer = told[0]
    text = "anna lives in oslo .\n\nben is a doctor .\n\nmaria lives in rome ."
    found = trace(model, text_script(tokenizer, text))
    assert found.told_much() == [0, 1]
    shares = [found.left_of(n) for n in found.told_much()]
    assert shares == [row[-1] for row in found.left[:2]] and min(shares) > 0.5
    said = f"{min(shares):.0%} to {max(shares):.0%} of what paragraphs 1–2 wrote"
    assert said in trace_words(found, "notes.txt")
    low = replace(found, left=found.left * 0.1)
    assert f"only {min(shares) * 0.1:.0%}" in trace_words(low, "notes.txt")


def test_many_turns_are_a_few_curves_and_the_others_in_grey(
    told: tuple[Pair, dict[int, mx.array]],
) -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views.trace_plot import draw_trace

    model, tokenizer = told[0]
    names = ["anna", "ben", "chris", "dora", "maria"] * 3
    script = text_script(tokenizer, "\n\n".join(f"{name} lives in oslo ." for name in names))
    picture = draw_trace(trace(model, script), "notes.txt")
    kept = next(
        axes for axes in picture.axes if "still in the memory" in axes.get_title(loc="left")
    )
    assert sum(text.startswith("paragraph ") for text in texts_in(kept)) == 6
    said = [text.get_text() for text in kept.get_legend().get_texts()]
    assert said == ["the other 5", "left out: 3 that wrote little"]


def test_two_memories_are_drawn_with_their_difference_and_layers_left_out_are_counted(
    pair: Pair, state: dict[int, mx.array], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views import inspection_plots, memory_plot

    cache = make_prompt_cache(pair[0])
    dm.set_memory_state(cache, state)
    dm.save_memory(tmp_path / "m.safetensors", cache, pair[0])
    memory = inspect_memory(tmp_path / "m.safetensors")
    picture = inspection_plots.draw_comparison(compare(memory, memory))
    titles = [axes.get_title(loc="left") for axes in picture.axes]
    layer = min(memory.states)
    assert f"A − B, layer {layer}" in titles
    (image,) = picture.axes[titles.index(f"A − B, layer {layer}")].images
    assert not np.asarray(image.get_array()).any()
    many = replace(
        memory,
        states={i: memory.states[layer] for i in range(12)},
        layers=[replace(memory.layers[0], layer=i) for i in range(12)],
    )
    drawn = memory_plot.draw_memory(many)
    assert "5 of 12 layers" in [part.get_suptitle() for part in drawn.subfigs]


def test_json_is_json(traced: tuple[Script, Trace]) -> None:
    from deltamem_mlx.inspection.as_json import adapter_json, trace_json

    adapter = inspect_adapter(GOLDEN / "no_lambda" / "adapter")
    for value in (adapter_json(adapter), trace_json(traced[1], "talk", by_token=True)):
        assert json.loads(json.dumps(value, allow_nan=False)) == value
