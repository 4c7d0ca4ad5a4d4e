"""Make an adapter keep quiet on ordinary text: it neither writes what is no fact nor reads there.

    python quiet.py MODEL ADAPTER OUT --text ../../README.md ../../docs/*.md --talk TALK

An adapter trained on facts alone has never seen anything else: on plain text its write gates stand
open and its queries find what is not meant. Here both are corrected by least squares, layer by
layer: as they are where facts are told and asked for; closed, and pointing where no key is, on
ordinary text and talk. `deltamem-mlx train` smooths it afterwards.
"""

import argparse
from pathlib import Path

import mlx.core as mx
import numpy as np
from initial import ELSEWHERE, LAYERS, RANK, ridge
from make_data import Generator, talk_of, vocabulary
from recording import attention_inputs, record, tokens_of

import deltamem_mlx as dm
from deltamem_mlx.model.patch import memory_layers

CLOSED, AWAY = -5.0, 1.5  # logits of gates, and entries of queries that no key has
WINDOW = 256


def change(keep: np.ndarray, quiet: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What to add to weights [D, n] so that outputs at ``quiet`` change by ``wanted`` [N, n].

    Those at ``keep`` shall stay as they are, and count as much.
    """
    share = len(keep) / len(quiet)
    gram = ridge(keep, 1e-3) + share * ridge(quiet, 1e-3)
    return np.linalg.solve(gram, share * quiet.T @ wanted)


def corrected(
    weights: dict[str, np.ndarray], keep: np.ndarray, quiet: np.ndarray
) -> dict[str, np.ndarray]:
    """The gate and the query of one layer, from attention inputs [N, D] of both kinds."""
    logits = quiet @ weights["beta_proj"].T + weights["beta_bias"]
    gate = change(keep, quiet, np.minimum(CLOSED - logits, 0))
    query = quiet @ weights["memory_q_proj"].T
    away = np.zeros_like(query)
    away[:, RANK - ELSEWHERE :] = AWAY
    return {
        "beta_proj": weights["beta_proj"] + gate.T,
        "memory_q_proj": weights["memory_q_proj"] + change(keep, quiet, away - query).T,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="SmolLM2-135M-Instruct, float32: its folder")
    parser.add_argument("adapter", help="folder of the adapter")
    parser.add_argument("out", type=Path, help="folder of the new one")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files of plain text")
    parser.add_argument("--talk", type=Path, required=True, help="conversations of make_talk.py")
    parser.add_argument("--conversations", type=int, default=200, help="with facts")
    parser.add_argument("--seed", type=int, default=8)
    args = parser.parse_args()

    model, tokenizer = dm.load(args.model, args.adapter)
    generator = Generator(args.seed, vocabulary(tokenizer), 0.5)
    facts = record(model, tokenizer, generator, LAYERS, args.conversations, 3).inputs
    parts = []
    for file in args.text:
        tokens = tokenizer.encode(file.read_text(encoding="utf-8"), add_special_tokens=False)
        parts += [tokens[i : i + WINDOW] for i in range(0, len(tokens), WINDOW)]
    parts += [tokens_of(tokenizer, [turn]) for turn in talk_of(args.talk)]
    others = attention_inputs(model, parts, LAYERS)
    for layer, attention in memory_layers(model).items():
        names = ("beta_proj", "beta_bias", "memory_q_proj")
        weights = {name: np.array(attention[name].astype(mx.float32)) for name in names}
        keep, quiet = (x[layer].astype(np.float32) for x in (facts, others))
        for name, value in corrected(weights, keep, quiet).items():
            attention[name] = mx.array(value, mx.float32)
        print(f"layer {layer}", flush=True)
    dm.save_adapter(model, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
