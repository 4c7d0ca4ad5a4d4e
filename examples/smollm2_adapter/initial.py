"""Make an adapter to begin training from: what is written comes out again, if a little blurred.

    python examples/smollm2_adapter/initial.py MODEL DATA/train.jsonl OUT

Freshly drawn weights have to find out how a word gets into a state and out of it before they can
learn which word. Here least squares over some conversations gives both a start, layer by layer:

- value: 16 directions of the word embeddings (other ones in every layer), fitted to the token at
  hand; the correction of o puts them back. Embedding and head of SmolLM2 are one matrix, so what
  was written becomes a little more likely to be said.
- query: directions of the hidden state; key: the same directions of the token before, fitted to
  the token at hand. A token is found where its predecessor looks like the token that asks.
"""

import argparse
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import deltamem_mlx as dm
from deltamem_mlx.patch import memory_layers

RANK, ALPHA, LAYERS = 16, 32.0, tuple(range(18, 30))
DIRECTIONS = 64  # best predicted ones, of which queries and keys of a layer are 16 mixtures
GAIN, VALUE_SCALE = 80.0, 3.0
CONFIG = dm.DeltaMemConfig(
    rank=RANK,
    alpha=ALPHA,
    delta_heads=("q", "o"),
    state_update_mode="no_lambda",
    target_layers=LAYERS,
)


class Tap(nn.Module):
    """A norm that keeps what it gives."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        vars(self).update(norm=norm, seen=[])

    def __call__(self, x: mx.array) -> mx.array:
        y = self.norm(x)
        self.seen.append(y[0])
        return y


def attention_inputs(model: nn.Module, conversations: list[list[int]]) -> dict[int, np.ndarray]:
    """What each layer's attention gets, [tokens, D] by layer, over all conversations."""
    taps = {}
    for layer in LAYERS:
        block = model.layers[layer]
        taps[layer] = block.input_layernorm = Tap(block.input_layernorm)
    for tokens in conversations:
        model(mx.array([tokens]))
        mx.eval([tap.seen[-1] for tap in taps.values()])
    for layer, tap in taps.items():
        model.layers[layer].input_layernorm = tap.norm
    return {layer: np.concatenate([np.array(x) for x in tap.seen]) for layer, tap in taps.items()}


def fit(
    x: np.ndarray, before: np.ndarray, words: np.ndarray, basis: np.ndarray, mix: np.ndarray
) -> dict[str, np.ndarray]:
    """The weights of one layer.

    Args:
        x, before (np.ndarray): [N, D] attention inputs of tokens, and of the tokens before them.
        words (np.ndarray): [N, D] centred embeddings of the tokens.
        basis (np.ndarray): [r, D] directions of embeddings that this layer keeps.
        mix (np.ndarray): [r, DIRECTIONS] orthonormal rows.
    """
    mean = x.mean(0)
    x, before = x - mean, before - mean
    usual = np.linalg.norm(before, axis=1) < 4 * np.sqrt(np.square(x).sum(1).mean())
    x, before, words = x[usual], before[usual], words[usual]
    cov = x.T @ x
    ridge = cov + np.eye(len(cov)) * np.trace(cov) / len(cov) * 1e-2
    to_word = np.linalg.solve(ridge, x.T @ words)
    sizes, axes = np.linalg.eigh(cov / len(x))
    whiten = axes[:, -160:] / np.sqrt(sizes[-160:])
    now, _, then = np.linalg.svd((x @ whiten).T @ (before @ whiten) / len(x))
    # Without a bias, what all tokens share has to be left out by the weights.
    centre = np.eye(len(mean)) - np.outer(mean, mean) / (mean @ mean)
    return {
        "memory_q_proj": mix @ then[:DIRECTIONS] @ whiten.T @ centre,
        "memory_k_proj": mix @ now[:, :DIRECTIONS].T @ whiten.T @ centre,
        "memory_v_proj": VALUE_SCALE * basis @ to_word.T @ centre,
        "delta_q_proj": 0,
        "delta_o_proj": GAIN / VALUE_SCALE * basis.T * RANK / ALPHA,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="SmolLM2-135M-Instruct, float32: its folder")
    parser.add_argument("data", type=Path, help="train.jsonl, of which some rows are read")
    parser.add_argument("out", type=Path, help="folder of the adapter")
    parser.add_argument("--rows", type=int, default=160)
    args = parser.parse_args()

    model, tokenizer = dm.load(args.model)
    with args.data.open(encoding="utf-8") as file:
        rows = [
            json.loads(line)["messages"] for line, _ in zip(file, range(args.rows), strict=False)
        ]
    conversations = [list(dm.message_spans(tokenizer, row).token_ids) for row in rows]
    inputs = attention_inputs(model, conversations)
    tokens = np.concatenate(conversations)
    first = np.zeros(len(tokens), bool)
    first[np.cumsum([0, *map(len, conversations[:-1])])] = True

    embeddings = np.array(model.model.embed_tokens.weight)
    embeddings -= embeddings[:30000].mean(0)  # without the rarest, some of them never trained
    bases = np.linalg.svd(embeddings[200:30000], full_matrices=False)[2]
    dm.attach(model, CONFIG, seed=0)
    rng = np.random.default_rng(0)
    for i, (layer, attention) in enumerate(memory_layers(model).items()):
        mix = np.linalg.qr(rng.normal(size=(DIRECTIONS, RANK)))[0].T
        basis = bases[i : len(LAYERS) * RANK : len(LAYERS)]
        x = inputs[layer]
        weights = fit(
            x[~first], x[np.flatnonzero(~first) - 1], embeddings[tokens[~first]], basis, mix
        )
        for name, weight in weights.items():
            attention[name] = mx.broadcast_to(mx.array(weight, mx.float32), attention[name].shape)
    dm.save_adapter(model, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
