"""Fit a first adapter in closed form: what is told can be found and said again from the start.

    python examples/smollm2_adapter/initial.py MODEL OUT

Gradients alone take long to find out how a word gets into a state and out of it. Here the weights
of every layer come from least squares over some conversations in which facts are told and, apart,
asked for:

- write gate: open at the words of a value, closed at all others.
- key and query: canonical correlation between the hidden state at a value where it was told and the
  one before it in the answer; the directions in which they agree best.
- query, last entries: large unless a value comes next. No key has those entries, so elsewhere
  little is read.
- value: the word as directions of the head, each layer has its own; the correction of o adds them
  to the residual, so the word becomes more likely to be said.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from make_data import Generator, vocabulary
from recording import Pair, Recording, record

import deltamem_mlx as dm
from deltamem_mlx.model.patch import memory_layers

RANK, LAYERS = 32, tuple(range(18, 30))
ELSEWHERE = 4  # entries of a query that say that no value comes next
GAIN = 6.0
CONFIG = dm.DeltaMemConfig(
    rank=RANK,
    alpha=RANK,
    delta_heads=("o",),
    state_update_mode="no_lambda",
    rankwise_gates=False,
    target_layers=LAYERS,
)


class Words:
    """Words as directions of the head: coordinates in which all are equally likely to matter.

    Args:
        model (nn.Module): A model whose embedding is its head, with a final RMS norm.
        spoken (Sequence[int]): The tokens whose differences count.
    """

    def __init__(self, model: nn.Module, spoken: Sequence[int]):
        head = np.array(model.model.embed_tokens.weight) * np.array(model.model.norm.weight)
        head -= head[list(spoken)].mean(0)
        sizes, axes = np.linalg.eigh(np.cov(head[list(spoken)].T))
        self.spread = (axes / np.sqrt(sizes + 0.05 * sizes.mean())) @ axes.T
        self.axes = axes[:, ::-1].T
        self.coordinates = head @ self.spread


class Samples:
    """Rows of one part of a recording, centred; the few with huge entries are left out."""

    def __init__(self, rows: np.ndarray):
        self.mean = rows.mean(0)
        size = np.linalg.norm(rows - self.mean, axis=1)
        self.usual = size < 3 * np.median(size)
        self.raw = rows[self.usual]
        self.rows = self.raw - self.mean

    def whiten(self) -> np.ndarray:
        sizes, axes = np.linalg.eigh(self.rows.T @ self.rows / len(self.rows))
        return axes / np.sqrt(sizes + 1e-2 * sizes.mean())

    def without_mean(self) -> np.ndarray:
        """What takes the mean to 0 and changes rows least: projections have no bias to do it."""
        weights = np.linalg.solve(ridge(self.rows, 1e-3) / len(self.rows), self.mean)
        return np.eye(len(weights)) - np.outer(self.mean, weights) / (self.mean @ weights)


def ridge(rows: np.ndarray, share: float) -> np.ndarray:
    gram = rows.T @ rows
    return gram + np.eye(len(gram)) * (share * np.trace(gram) / len(gram))


def fit(
    inputs: np.ndarray, written: np.ndarray, pairs: Sequence[Pair], words: Words, axes: np.ndarray
) -> dict[str, np.ndarray]:
    """The weights of one layer.

    Args:
        inputs (np.ndarray): [N, D], what its attention got.
        written (np.ndarray): bool [N], true where facts were told.
        pairs (Sequence[Pair]): Where values were told, and asked for.
        words (Words): Directions of the head.
        axes (np.ndarray): [r, D], those that this layer keeps.
    """
    told, before, tokens = np.array(pairs).T
    telling, asking = Samples(inputs[written]), Samples(inputs[~written])
    values, askers = inputs[told] - telling.mean, inputs[before] - asking.mean

    to_key, to_query = telling.whiten(), asking.whiten()
    keys, agree, queries = np.linalg.svd((values @ to_key).T @ (askers @ to_query) / len(pairs))
    shared = RANK - ELSEWHERE
    weight = np.sqrt(np.minimum(agree[:shared], 1))
    key = np.zeros((RANK, inputs.shape[1]))
    query = np.zeros_like(key)
    key[:shared] = 0.3 * (to_key @ keys[:, :shared] * weight).T @ telling.without_mean()
    query[:shared] = 0.12 * (to_query @ queries[:shared].T * weight).T @ asking.without_mean()
    is_before = np.isin(np.flatnonzero(~written), before)[asking.usual]
    elsewhere = asking.raw.T @ (2.5 * (0.6 - is_before))
    query[shared:] = np.linalg.solve(ridge(asking.raw, 1e-3), elsewhere)

    is_value = np.isin(np.flatnonzero(written), told)[telling.usual]
    centre = telling.raw.mean(0)
    raw = telling.raw - centre
    gate = np.linalg.solve(ridge(raw, 0.02), raw.T @ (is_value - is_value.mean()))
    threshold = is_value.mean() - gate @ centre - 0.25

    to_word = np.linalg.solve(ridge(values, 0.1), values.T @ words.coordinates[tokens])
    return {
        "memory_q_proj": query,
        "memory_k_proj": key,
        "memory_v_proj": axes @ to_word.T @ telling.without_mean(),
        "beta_proj": 12 * gate[None],
        "beta_bias": 12 * threshold[None],
        "delta_o_proj": GAIN * words.spread @ axes.T,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="SmolLM2-135M-Instruct, float32: its folder")
    parser.add_argument("out", type=Path, help="folder of the adapter")
    parser.add_argument("--conversations", type=int, default=700)
    parser.add_argument("--facts", type=int, default=3, help="told in each")
    parser.add_argument("--any-share", type=float, default=0.7, help="of values that are any word")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()

    model, tokenizer = dm.load(args.model)
    spoken = vocabulary(tokenizer)
    generator = Generator(args.seed, spoken, args.any_share)
    recording: Recording = record(
        model, tokenizer, generator, LAYERS, args.conversations, args.facts
    )
    words = Words(model, tokenizer.convert_tokens_to_ids(["Ġ" + word for word in spoken]))
    dm.attach(model, CONFIG, seed=0)
    for i, (layer, attention) in enumerate(memory_layers(model).items()):
        axes = words.axes[i : len(LAYERS) * RANK : len(LAYERS)]
        inputs = recording.inputs[layer].astype(np.float32)
        fitted = fit(inputs, recording.written, recording.pairs, words, axes)
        for name, value in fitted.items():
            if attention[name].shape != value.shape:
                parser.error(f"{name} of layer {layer} has another shape; is this SmolLM2-135M?")
            attention[name] = mx.array(value, mx.float32)
        print(f"layer {layer}")
    dm.save_adapter(model, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
