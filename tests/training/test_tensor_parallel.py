"""Training an adapter of a model whose parts lie in several processes."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from forked import Nursery
from launching import launch
from safetensors.numpy import load_file
from spread_train_run import first_gradients, train


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapters.safetensors")


@pytest.mark.slow
def test_an_adapter_trains_as_on_one_machine(tmp_path: Path, nursery: Nursery) -> None:
    done = launch(nursery, ROOT / "tests/helpers/spread_train_run.py", tmp_path, timeout=240)
    assert (tmp_path / "stopped" / "0000004_adapters.safetensors").exists(), done.stderr[-3000:]
    group = mx.distributed.init()
    gradients, figures = first_gradients(group)
    with np.load(tmp_path / "gradients.npz") as two:
        assert two["labelled"] == figures.labelled
        assert two["tokens"] == figures.tokens
        assert abs(two["loss"] - figures.loss) < 1e-5 * figures.loss
        for name, expected in gradients.items():
            limit = 2e-5 * np.abs(expected).max() + 1e-8
            assert np.abs(two[name] - expected).max() <= limit, name
            assert np.abs(expected).max() > 0, name
    train(tmp_path / "one", group)
    one, whole, stopped = (weights(tmp_path / name) for name in ("one", "whole", "stopped"))
    assert max(np.abs(one[name] - whole[name]).max() for name in one) < 1e-4
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)
