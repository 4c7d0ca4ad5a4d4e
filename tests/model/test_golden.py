"""Numbers of the authors' code, reproduced through the public names."""

import mlx.core as mx
import numpy as np
import pytest
from golden import GOLDEN, TOLERANCE, base_model, cases, read_case, real_tokens, replay
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm

pytestmark = pytest.mark.fused


@pytest.mark.parametrize("name", cases("forward"))
def test_forward(name: str) -> None:
    _, expected = read_case(name)
    tolerance = TOLERANCE["forward"]
    for step, logits, cache in replay(name):
        difference = np.abs(np.array(logits) - expected[f"{step['name']}.logits"])
        difference = difference * real_tokens(step, difference)
        assert difference.max() <= tolerance["logits_abs"], step["name"]
        for layer, state in dm.memory_state(cache).items():
            wanted = expected[f"{step['name']}.layer{layer}.state"].reshape(state.shape)
            assert np.abs(np.array(state) - wanted).max() <= tolerance["state_abs"], step["name"]


@pytest.mark.parametrize("name", ["tsw_qo", "msw_heads4", "uncoupled_lambda"])
def test_gate_means(name: str) -> None:
    case, expected = read_case(name)
    model = dm.load_adapter(base_model(case["model"]), GOLDEN / name / "adapter")
    seen: dict[int, dict[str, mx.array]] = {}
    ids = mx.array(case["steps"][0]["input_ids"])
    cache = make_prompt_cache(model)
    with dm.observe(cache, lambda layer, gates: seen.__setitem__(layer, gates)):
        model(ids, cache=cache)
    assert seen
    for layer, gates in seen.items():
        # The reference sums over a token's gates and takes the mean over tokens.
        beta, keep = (gates[g].sum(axis=(2, 3)).mean().item() for g in ("write", "keep"))
        tolerance = TOLERANCE["forward"]["gate_mean_abs"]
        assert beta == pytest.approx(expected[f"step0.layer{layer}.beta_mean"], abs=tolerance)
        assert keep == pytest.approx(expected[f"step0.layer{layer}.lambda_mean"], abs=tolerance)


@pytest.mark.parametrize("variant", list(read_case("init")[0]["variants"]))
def test_init(variant: str) -> None:
    case, expected = read_case("init")
    entry = case["variants"][variant]
    model = base_model(entry["model"])
    base_names = {name for name, _ in tree_flatten(model.parameters())}
    dm.attach(model, dm.DeltaMemConfig.from_dict(entry["config"]), seed=0)
    parameters = dict(tree_flatten(model.parameters()))
    trainable = dict(tree_flatten(model.trainable_parameters()))
    assert set(parameters) - base_names == set(entry["tensors"])
    for name, tensor in entry["tensors"].items():
        assert list(parameters[name].shape) == tensor["shape"], name
        assert (name in trainable) == tensor["trainable"], name
        if f"{variant}.{name}" in expected:
            wanted = expected[f"{variant}.{name}"]
            assert np.abs(np.array(parameters[name]) - wanted).max() <= 1e-6, name
        else:
            gain = 1 if ".memory_" in name else dm.DeltaMemConfig().online_gain
            bound = gain / np.sqrt(tensor["shape"][1])
            drawn = np.abs(np.array(parameters[name]))
            assert 0.8 * bound < drawn.max() <= bound, name
