"""The episode objective: the authors' numbers; padding, spans and checkpoints change nothing."""

import gc
from collections.abc import Callable
from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import build
from golden import GOLDEN, TOLERANCE, base_model, cases, read_case
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tiny import TOKENIZER, tiny_model

import deltamem_mlx as dm
from deltamem_mlx.model.patch import config_of, memory_layers
from deltamem_mlx.training.batching import EpisodeBatch, pad_batch
from deltamem_mlx.training.episode_settings import EpisodeSettings
from deltamem_mlx.training.episodes import NO_WRITE, Episode, View, WritePart, build_episodes
from deltamem_mlx.training.grad_checkpoint import checkpointed
from deltamem_mlx.training.objective import Objective, Sparsity, Terms
from deltamem_mlx.training.read_parts import ReadPart

Gradients = dict[str, np.ndarray]
LIMITS = TOLERANCE["train"]


def golden_modes() -> list[tuple[str, str, str]]:
    return [
        (name, *key.split(".")) for name in cases("train") for key in read_case(name)[0]["results"]
    ]


def golden_batch(arrays: dict[str, np.ndarray], mode: str) -> EpisodeBatch:
    prefix = "batch.state_only_" if mode == "state_only" else "batch."
    reads = arrays[prefix + "input_ids"]
    nothing = np.zeros((len(reads), 0), np.int32)
    writes = {} if mode == "no_memory" else arrays
    tokens = writes.get(prefix + "write_input_ids", nothing)
    ids = {
        f"{kind}_ids": writes.get(f"{prefix}write_{kind}_ids", np.full_like(tokens, -1))
        for kind in ("message", "sentence")
    }
    lengths = writes.get(prefix + "write_attention_mask", nothing).sum(axis=1, dtype=np.int32)
    return EpisodeBatch(
        read_tokens=reads,
        read_labels=arrays[prefix + "labels"],
        read_lengths=arrays[prefix + "attention_mask"].sum(axis=1, dtype=np.int32),
        write_tokens=tokens,
        write_lengths=lengths,
        teachers=(None,) * len(reads),
        plains=(None,) * len(reads),
        **ids,
    )


def gradients_of(
    model: nn.Module, batch: EpisodeBatch, sparsity: Callable[[mx.array], mx.array] | None = None
) -> tuple[float, Terms, Gradients]:
    """The loss, its terms, and the gradient of every adapter parameter by its name in files."""
    objective = Objective(model)
    sparsity = sparsity or Sparsity()

    def loss(batch: EpisodeBatch) -> tuple[mx.array, Terms]:
        terms = objective.terms(objective.inputs(batch))
        return terms.ce + sparsity(terms.read_beta), terms

    model.train()
    (value, terms), gradients = nn.value_and_grad(model, loss)(batch)
    return value.item(), terms, {k: np.array(v) for k, v in tree_flatten(gradients)}


def assert_same_gradients(got: Gradients, expected: Gradients, relative: float) -> None:
    assert got.keys() == expected.keys()
    for name, wanted in expected.items():
        limit = relative * np.abs(wanted).max() + LIMITS["grad_abs_floor"]
        assert np.abs(got[name] - wanted).max() <= limit, name


@pytest.mark.parametrize(("name", "variant", "mode"), golden_modes())
def test_authors_losses_and_gradients(name: str, variant: str, mode: str) -> None:
    case, expected = read_case(name)
    model = dm.load_adapter(base_model(case["model"]), GOLDEN / name / "adapter")
    # With a mask the authors divide the sum of a token's gates by the tokens alone.
    gates = config_of(model).gate_width if variant == "eager" else 1

    batch = golden_batch(expected, mode)
    value, terms, gradients = gradients_of(model, batch, lambda beta: Sparsity()(gates * beta))

    key = f"{variant}.{mode}"
    beta = gates * np.array(terms.read_beta)
    assert value == pytest.approx(expected[f"{key}.total_loss"], abs=LIMITS["loss_abs"])
    assert terms.ce.item() == pytest.approx(expected[f"{key}.ce_loss"], abs=LIMITS["loss_abs"])
    regulariser = np.square(beta - 0.05).mean()
    assert regulariser == pytest.approx(expected[f"{key}.write_reg"], abs=LIMITS["loss_abs"])
    for layer, value in enumerate(beta):
        wanted = expected[f"{key}.read.layer{layer}.beta_mean"]
        assert value == pytest.approx(wanted, abs=LIMITS["gate_mean_abs"])
    assert_same_gradients(
        gradients,
        {n: expected[f"{key}.grad.{n}"] for n in case["trainable_parameters"]},
        LIMITS["grad_of_tensor_max"],
    )


@pytest.mark.parametrize(("name", "variant", "mode"), golden_modes())
def test_authors_states_after_the_write_pass(name: str, variant: str, mode: str) -> None:
    case, expected = read_case(name)
    if mode == "no_memory":
        assert not any(".prime." in key for key in expected if f".{mode}." in key)
        return
    model = dm.load_adapter(base_model(case["model"]), GOLDEN / name / "adapter").train()
    gates = config_of(model).gate_width if variant == "eager" else 1
    objective = Objective(model)
    inputs = objective.inputs(golden_batch(expected, mode))
    names = ("write_tokens", "write_mask", "span_ids", "span_counts")
    written = objective.passes.write(*(inputs.get(n) for n in names))
    for layer, memory in written.items():
        prefix = f"{variant}.{mode}.prime.layer{layer}"
        wanted = expected[f"{prefix}.state"].reshape(memory.state.shape)
        assert np.abs(np.array(memory.state) - wanted).max() <= LIMITS["state_abs"]
        beta = gates * memory.beta.item()
        assert beta == pytest.approx(expected[f"{prefix}.beta_mean"], abs=LIMITS["gate_mean_abs"])


# --- padding, spans, rows without a history


def tokens_of(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 96, n).astype(np.int32)


def view_of(write: int, read: int, seed: int, ids: list[int] | None = None) -> View:
    """An episode with so many tokens, the second half of its read part being learned."""
    tokens = tokens_of(read, seed)
    labels = np.where(np.arange(read) >= read // 2, tokens, -100).astype(np.int32)
    if not write:
        return View(NO_WRITE, ReadPart(tokens, labels))
    spans = np.array(ids or np.arange(write) // 3, np.int32)
    return View(WritePart(tokens_of(write, seed + 1), spans, spans), ReadPart(tokens, labels))


def attached(granularity: str = "token", **settings: object) -> nn.Module:
    config = dm.DeltaMemConfig(
        rank=4, output_init="random", online_gain=1.0, memory_write_granularity=granularity
    )
    return dm.attach(tiny_model(**settings), config, seed=1)


VIEWS = [view_of(17, 12, 1), view_of(5, 21, 3), view_of(0, 9, 5)]
GRANULARITIES = ("token", "message_mean", "sentence_mean")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_batch_is_the_sum_of_its_rows(granularity: str) -> None:
    model = attached(granularity)

    def ce(batch: EpisodeBatch) -> tuple[float, Gradients]:
        objective = Objective(model)
        model.train()

        def loss(batch: EpisodeBatch) -> mx.array:
            return objective.terms(objective.inputs(batch)).ce_sum

        value, gradients = nn.value_and_grad(model, loss)(batch)
        return value.item(), {k: np.array(v) for k, v in tree_flatten(gradients)}

    singles = [ce(pad_batch([view])) for view in VIEWS]
    value, gradients = ce(pad_batch(VIEWS, pad_id=7, multiple=16))
    assert value == pytest.approx(sum(v for v, _ in singles), rel=1e-5)
    expected = {name: sum(g[name] for _, g in singles) for name in gradients}
    assert_same_gradients(gradients, expected, 1e-4)
    assert all(np.abs(gradients[name]).max() > 0 for name in gradients if "memory_" in name)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_on_padding_does_not_matter(granularity: str) -> None:
    model = attached(granularity)
    results = [gradients_of(model, pad_batch(VIEWS, pad_id=i, multiple=32)) for i in (0, 50)]
    assert results[0][0] == results[1][0]
    assert_same_gradients(results[0][2], results[1][2], 0.0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_passes_do_what_a_prompt_cache_does(granularity: str) -> None:
    model = attached(granularity)
    view = VIEWS[0]
    cache = make_prompt_cache(model)
    with dm.write_spans(cache, view.write.message_ids[None], view.write.sentence_ids[None]):
        model(mx.array(view.write.tokens)[None], cache=cache)
    dm.forget_context(cache)
    with dm.read_only(cache):
        logits = model(mx.array(view.read.tokens)[None], cache=cache)[0]
    labels = mx.array(view.read.labels)[1:]
    ce = nn.losses.cross_entropy(logits[:-1], mx.maximum(labels, 0)) * (labels >= 0)

    objective = Objective(model.train())
    terms = objective.terms(objective.inputs(pad_batch([view])))
    assert terms.ce_sum.item() == pytest.approx(ce.sum().item(), rel=1e-5)
    norms = [mx.linalg.norm(s.flatten()).item() for s in dm.memory_state(cache).values()]
    assert terms.state_norm.tolist() == pytest.approx(norms, rel=1e-4)


def test_no_gradient_is_nan_where_nothing_is_written() -> None:
    """Absent spans project to exactly zero, where the gradient of a norm is not defined."""
    views = [view_of(9, 12, 1, ids=[-1] * 9), view_of(4, 8, 2, ids=[0, 0, -1, 5]), VIEWS[2]]
    for granularity in GRANULARITIES:
        model = attached(granularity)
        for layer in memory_layers(model).values():
            layer.memory_q_proj = mx.zeros_like(layer.memory_q_proj)
            layer.memory_k_proj = mx.zeros_like(layer.memory_k_proj)
        value, _, gradients = gradients_of(model, pad_batch(views, multiple=16))
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients.values())


def test_without_any_span_every_token_is_written() -> None:
    views = [view_of(9, 12, 1, ids=[-1] * 9)]
    by_span = gradients_of(attached("message_mean"), pad_batch(views))
    by_token = gradients_of(attached("token"), pad_batch(views))
    assert by_span[0] == by_token[0]
    assert_same_gradients(by_span[2], by_token[2], 0.0)


def test_an_empty_memory_changes_nothing() -> None:
    model = attached()
    views = [View(NO_WRITE, view.read) for view in VIEWS]
    objective = Objective(model.train())
    with_adapter = objective.terms(objective.inputs(pad_batch(views))).ce.item()
    logits = dm.detach(model)(mx.array(pad_batch(views).read_tokens))
    batch = pad_batch(views)
    labels = mx.array(batch.read_labels)[:, 1:]
    ce = nn.losses.cross_entropy(logits[:, :-1], mx.maximum(labels, 0)) * (labels >= 0)
    assert with_adapter == pytest.approx(ce.sum().item() / batch.supervised, rel=1e-6)


def test_without_a_memory_nothing_is_written_while_reading_either() -> None:
    """What a validation calls an empty memory is the plain model, however a chat is learned."""
    model = attached()
    plain, live = Objective(model), Objective(model, write_visible=True)
    views = [View(NO_WRITE, view.read) for view in VIEWS]

    def loss(objective: Objective) -> float:
        return objective.terms(objective.inputs(pad_batch(views))).ce.item()

    assert loss(live.reading_only()) == loss(plain) != loss(live)
    assert live.write_visible


ARCHITECTURES = ["gemma2", "qwen3_next", "phi3", "falcon_h1", "llama4", "gpt2", "qwen3_moe"]


@pytest.mark.parametrize("name", ["recurrent_gemma", *ARCHITECTURES])
def test_architectures(name: str) -> None:
    """Windows, recurrent layers, packed projections, nested caches, experts, no KV cache or one."""
    model = dm.attach(build(name), dm.DeltaMemConfig(rank=4, output_init="random"), seed=1)
    views = [view_of(17, 12, 1), view_of(9, 21, 3)]
    expected = 0.0
    for view in views:
        cache = make_prompt_cache(model)
        model(mx.array(view.write.tokens)[None], cache=cache)
        dm.forget_context(cache)
        with dm.read_only(cache):
            logits = model(mx.array(view.read.tokens)[None], cache=cache)[0, :-1]
        labels = mx.array(view.read.labels)[1:]
        ce = nn.losses.cross_entropy(logits.astype(mx.float32), mx.maximum(labels, 0))
        expected += (ce * (labels >= 0)).sum().item()
    _, terms, gradients = gradients_of(model, pad_batch(views, multiple=8))
    assert terms.ce_sum.item() == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())
    with checkpointed(model):
        _, _, again = gradients_of(model, pad_batch(views, multiple=8))
    assert_same_gradients(again, gradients, 1e-6)


def test_a_batch_without_labels_costs_nothing() -> None:
    read = ReadPart(tokens_of(5, 1), np.full(5, -100, np.int32))
    objective = Objective(attached().train())
    terms = objective.terms(objective.inputs(pad_batch([View(NO_WRITE, read)])))
    assert (terms.ce_sum.item(), terms.labelled.item(), terms.ce.item()) == (0, 0, 0)


def test_episodes_count_alike_where_that_is_asked_for() -> None:
    objective = Objective(attached().train(), count_alike=True)
    pooled = Objective(objective.model)
    unlabelled = View(NO_WRITE, ReadPart(tokens_of(5, 1), np.full(5, -100, np.int32)))
    batch = pad_batch([*VIEWS, unlabelled], multiple=8)
    terms = objective.terms(objective.inputs(batch))
    singles = [pad_batch([view]) for view in VIEWS]
    assert len({batch.supervised for batch in singles}) > 1, "tokens would count otherwise"
    means = [pooled.terms(pooled.inputs(single)).ce.item() for single in singles]
    assert (objective.counted(batch), terms.labelled.item()) == (3, pytest.approx(3))
    assert terms.ce.item() == pytest.approx(np.mean(means), rel=1e-5)
    assert pooled.counted(batch) == batch.supervised
    assert pooled.terms(pooled.inputs(batch)).ce.item() != pytest.approx(np.mean(means), rel=1e-5)


# --- gradients through quantized bases and checkpoints


def test_gradients_through_a_quantized_base() -> None:
    model = tiny_model(hidden_size=64, intermediate_size=64)
    nn.quantize(model, group_size=32, bits=4)
    dm.attach(model, dm.DeltaMemConfig(rank=4, output_init="random", online_gain=1.0), seed=1)
    _, _, gradients = gradients_of(model, pad_batch(VIEWS))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_gradients_through_a_half_precision_base(dtype: mx.Dtype) -> None:
    results = []
    for kind in (mx.float32, dtype):
        model = tiny_model()
        model.set_dtype(kind)
        dm.attach(model, dm.DeltaMemConfig(rank=4, output_init="random", online_gain=1.0), seed=1)
        results.append(gradients_of(model, pad_batch(VIEWS)))
    assert results[1][0] == pytest.approx(results[0][0], rel=0.02)
    for name, wanted in results[0][2].items():
        got = results[1][2][name]
        assert got.dtype == np.float32
        assert np.linalg.norm(got - wanted) < 0.2 * np.linalg.norm(wanted), name


@pytest.mark.parametrize("granularity", ["token", "message_mean"])
def test_checkpointing_keeps_every_gradient(granularity: str) -> None:
    model = attached(granularity)
    classes = [type(layer) for layer in model.layers]
    plain = gradients_of(model, pad_batch(VIEWS))
    with checkpointed(model):
        assert [type(layer) for layer in model.layers] != classes
        other = attached(granularity)
        assert [type(layer) for layer in other.layers] == classes
        again = gradients_of(model, pad_batch(VIEWS))
    assert [type(layer) for layer in model.layers] == classes
    assert again[0] == plain[0]
    assert_same_gradients(again[2], plain[2], 1e-6)
    assert np.abs(plain[2]["model.layers.0.self_attn.memory_v_proj"]).max() > 1e-4


def test_checkpointing_takes_less_memory() -> None:
    model = attached(num_hidden_layers=8)
    batch = pad_batch([view_of(256, 64, seed) for seed in range(4)])
    peaks = []
    for context in (nullcontext, lambda: checkpointed(model)):
        with context():
            gradients_of(model, batch)  # compiles, allocates
            gc.collect()
            mx.synchronize()
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            gradients_of(model, batch)
            peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < 0.6 * peaks[0]


# --- one write pass for several replies


def test_visible_replies_share_a_write_pass() -> None:
    roles, texts = (
        ("user", "assistant") * 4,
        ("I am Al.", "Ok.", "Me?", "Al.", "You?", "No.", "A?", "B."),
    )
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    tokenizer = load_tokenizer(TOKENIZER)

    def episodes(mode: str, recent: int) -> list[Episode]:
        settings = EpisodeSettings(assistant_loss_mode=mode, episode_recent_messages=recent)
        return build_episodes(tokenizer, messages, settings)

    (grouped,) = episodes("visible_assistant_turns", 5)
    (last,) = episodes("final_assistant_only", 5)
    assert np.array_equal(grouped.both.write.tokens, last.both.write.tokens)
    assert np.array_equal(grouped.both.read.tokens, last.both.read.tokens)
    learned = tokenizer.decode(grouped.both.read.labels[grouped.both.read.labels >= 0].tolist())
    assert [text for text in texts[1::2] if text in learned] == ["Al.", "No.", "B."]
    assert np.array_equal(grouped.state_only.read.labels, last.state_only.read.labels)


# --- the head


class CountingLinear(nn.Linear):
    rows: list[int]

    def __call__(self, x: mx.array) -> mx.array:
        self.rows.append(x.size // x.shape[-1])
        return super().__call__(x)


def test_the_head_sees_labelled_positions_only() -> None:
    model = attached(tie_word_embeddings=False)
    model.lm_head.__class__ = CountingLinear
    model.lm_head.rows = rows = []
    batch = pad_batch(VIEWS)
    objective = Objective(model.train())
    rows.clear()
    mx.eval(objective.terms(objective.inputs(batch, multiple=1)))
    # The write pass asks for logits as well, but never looks at them.
    assert rows[-1] == batch.supervised < batch.read_tokens.size
    full = model(mx.array(VIEWS[0].read.tokens)[None])
    assert full.shape[1] == len(VIEWS[0].read.tokens)


def test_a_model_that_makes_logits_in_its_own_way() -> None:
    model = attached()
    batch = pad_batch(VIEWS)
    objective = Objective(model.train())
    expected = objective.terms(objective.inputs(batch)).ce.item()
    objective.heads = []
    assert objective.terms(objective.inputs(batch)).ce.item() == pytest.approx(expected, rel=1e-6)
