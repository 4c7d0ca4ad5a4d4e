"""Train the built-in pair's base model from scratch: a tiny Qwen3 chat model, fixed seeds, CPU.

    python examples/builtin_pair/train_base.py --out deltamem_mlx/builtin/base

Three stages: bare statements with repeated subjects, short dense chats, longer chats. A small model
learns to look facts up in minutes only because of how it starts: the first layer's four heads look
1, 2, 3 and 4 tokens back, so that every token knows the words before it; the second layer matches
what the first wrote, prefers values, and copies; words that say little start small.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import tokens
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3 import Model, ModelArgs

from deltamem_mlx.builtin import language
from deltamem_mlx.builtin import words as vocabulary
from deltamem_mlx.builtin.language import LittleTalk

IDS = {w: i for i, w in enumerate(tokens.vocabulary())}
START, END, ASSISTANT = IDS["<|im_start|>"], IDS["<|im_end|>"], IDS["assistant"]
ANSWERS = {IDS[w] for w in [*tokens.value_words(), vocabulary.UNKNOWN]}

GAIN = 10.0
FUNCTION = 0.05
VALUE = 0.15
CLASS = 2.0
CONTENT = ANSWERS | {IDS[w] for r in vocabulary.RELATIONS for w in r.subjects.all()}
CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": len(IDS),
    "max_position_embeddings": 4096,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 0,
}


@dataclass
class Stage:
    """One stage of the curriculum: sequence length, batch, facts at most, steps, kind of text."""

    length: int
    batch: int
    facts: int
    steps: int
    kind: str


STAGES = (
    Stage(64, 32, 6, 150, "bare"),
    Stage(112, 32, 4, 200, "chat"),
    Stage(192, 16, 8, 400, "chat"),
)


# ---------------------------------------------------------------- model


def make_model(seed: int) -> Model:
    """Returns a new model with the initialisation described above."""
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(CONFIG))
    dims = CONFIG["hidden_size"]
    shared = mx.where(mx.random.uniform(shape=(dims,)) < 0.5, -1.0, 1.0)
    size = mx.full((len(IDS), 1), FUNCTION)
    size[mx.array(sorted(CONTENT))] = 0.15
    kind = mx.where(mx.random.uniform(shape=(dims,)) < 0.5, -1.0, 1.0)
    is_value = mx.zeros((len(IDS), 1))
    is_value[mx.array(sorted(IDS[w] for w in tokens.value_words()))] = 1.0
    model.model.embed_tokens.weight = (
        size * mx.random.normal((len(IDS), dims)) + 0.15 * shared + VALUE * is_value * kind
    )
    for layer in model.layers:
        layer.self_attn.o_proj.weight *= 0.2
        layer.mlp.down_proj.weight *= 0.2
    look_back(model.layers[0].self_attn, shared)
    look_up(model.layers[1].self_attn, model.layers[0].self_attn, shared, kind)
    return model


def look_back(attention: nn.Module, shared: mx.array, sharpness: float = 1.8) -> None:
    """Start head h as "the token h + 1 back": keys and rotated queries made of the shared part."""
    heads, width = attention.n_heads, CONFIG["head_dim"]
    half, unit = width // 2, shared / math.sqrt(shared.size)
    turns = CONFIG["rope_theta"] ** (-np.arange(half) / half)
    used = np.zeros(half, np.float32)
    used[:5] = 1.0  # the fast rotations alone: they tell neighbours apart
    query = []
    for head in range(heads):
        angle = -(head + 1) * turns
        query.append(np.concatenate([used * np.cos(angle), used * np.sin(angle)]))
    rows = mx.array(np.concatenate(query), dtype=mx.float32)
    key = mx.array(np.concatenate([used, 0 * used]), dtype=mx.float32)
    attention.q_proj.weight = 0.1 * attention.q_proj.weight + rows[:, None] * unit
    attention.k_proj.weight = 0.1 * attention.k_proj.weight + key[:, None] * unit
    attention.q_norm.weight = mx.full((width,), sharpness)
    attention.k_norm.weight = mx.full((width,), sharpness)
    value = attention.v_proj.weight
    attention.v_proj.weight = value - (value @ unit)[:, None] * unit
    out = attention.o_proj.weight[:, :width]
    attention.o_proj.weight = mx.concatenate([out] * heads, axis=1) * GAIN


def look_up(attention: nn.Module, before: nn.Module, shared: mx.array, kind: mx.array) -> None:
    """Start heads that match what ``before`` wrote, prefer values, and copy what they find."""
    heads, width = attention.n_heads, CONFIG["head_dim"]
    written = before.o_proj.weight[:, :width].T
    written = written / mx.linalg.norm(written, axis=1, keepdims=True)
    slow = np.zeros(width, np.float32)  # rotations too slow to matter
    slow[width // 4 : width // 2] = slow[3 * width // 4 :] = CLASS / math.sqrt(width / 2)
    unit = math.sqrt(shared.size)
    query = written + mx.array(slow)[:, None] * shared / unit
    key = written + mx.array(slow)[:, None] * kind / unit
    attention.q_proj.weight = 0.3 * attention.q_proj.weight + mx.concatenate([query] * heads)
    attention.k_proj.weight = 0.3 * attention.k_proj.weight + key
    attention.o_proj.weight = attention.o_proj.weight + mx.concatenate(
        [attention.v_proj.weight.T] * heads, axis=1
    )


# ---------------------------------------------------------------- data


def encode(messages: list[language.Message]) -> tuple[list[int], list[float]]:
    """Token ids of the rendered messages, and each token's loss weight."""
    ids: list[int] = []
    weights: list[float] = []
    for m in messages:
        words = [IDS[w] for w in m["content"].split()]
        ids += [START, IDS[m["role"]], *words, END]
        if m["role"] == "user":
            weights += [0.02] * (len(words) + 3)
        else:
            weights += [0.1, 0.1, *(3.0 if w in ANSWERS else 1.0 for w in words), 1.0]
    return ids, weights


def bare(make: LittleTalk, length: int, facts: int) -> tuple[list[int], list[float]]:
    """Statements without a chat around them; the value of a subject seen before counts."""
    relation = make.rng.choice(vocabulary.RELATIONS) if make.rng.random() < 0.7 else None
    known, seen = make.facts(make.rng.randint(2, facts), relation), set()
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        i = make.rng.randrange(len(known))
        if known[i].subject in seen and make.rng.random() < 0.15:
            known[i] = make.changed(known[i])
            seen.discard(known[i].subject)
        words = [IDS[w] for w in known[i].tell(make.rng).split()]
        again = 3.0 if known[i].subject in seen else 0.02
        ids += words
        weights += [again if w in ANSWERS else 0.02 for w in words]
        seen.add(known[i].subject)
    return ids[:length], weights[:length]


def chat(make: LittleTalk, length: int, facts: int) -> tuple[list[int], list[float]]:
    """A conversation, its questions at the end, cut at the left if it is too long."""
    while True:
        low = 1 if make.rng.random() < 0.5 else max(1, facts // 2)
        asked = 3 if length < 128 else 6
        messages = make.conversation(
            (low, facts), distractors=2, updates=0.4, asked=asked, alike=0.5
        )
        ids, weights = encode(messages)
        if len(ids) <= length:
            return ids, weights


def batches(stage: Stage, seed: int) -> Iterator[tuple[mx.array, mx.array]]:
    make = LittleTalk(seed)
    one = bare if stage.kind == "bare" else chat
    while True:
        ids = np.zeros((stage.batch, stage.length), np.int32)
        weights = np.zeros((stage.batch, stage.length), np.float32)
        for row in range(stage.batch):
            i, w = one(make, stage.length, stage.facts)
            ids[row, : len(i)], weights[row, : len(i)] = i, w
        yield mx.array(ids), mx.array(weights)


# ---------------------------------------------------------------- training


def loss(model: Model, ids: mx.array, weights: mx.array, unseen: mx.array) -> mx.array:
    """Weighted cross-entropy; held-out words are no candidates, so they stay as they began."""
    logits = model(ids[:, :-1]) + unseen
    each = nn.losses.cross_entropy(logits, ids[:, 1:]) * weights[:, 1:]
    return each.sum() / weights[:, 1:].sum()


def train(model: Model, seed: int, rate: float, log: int = 50) -> None:
    held = [IDS[w] for w in tokens.heldout_words()]
    unseen = mx.zeros((len(IDS),))
    unseen[mx.array(held)] = -1e4
    total, start = sum(s.steps for s in STAGES), time.time()
    schedule = optim.join_schedules(
        [optim.linear_schedule(0, rate, 50), optim.cosine_decay(rate, total - 50, rate * 0.02)],
        [50],
    )
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.98], weight_decay=0.01)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(ids: mx.array, weights: mx.array) -> mx.array:
        value, grads = nn.value_and_grad(model, loss)(model, ids, weights, unseen)
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        return value

    done = 0
    for number, stage in enumerate(STAGES):
        data = batches(stage, seed * 10 + number)
        for _ in range(stage.steps):
            value = step(*next(data))
            mx.eval(value, state)
            done += 1
            if done % log == 0:
                report = " ".join(f"{n}:{recall(model, n):.2f}" for n in (1, 4, 8))
                print(
                    f"{done} {stage.kind} loss {value.item():.3f} recall {report} "
                    f"{time.time() - start:.0f}s",
                    flush=True,
                )


def recall(model: Model, facts: int, kind: str = "told", n: int = 48, seed: int = 7) -> float:
    """Share of questions answered exactly with the facts in the context (teacher-forced reply)."""
    make = LittleTalk(seed, test=True)
    rows, starts = [], []
    for _ in range(n):
        e = make.episode(facts, kind)
        head, _ = encode([*e["tell"], language.user(e["question"])])
        ids, _ = encode([*e["tell"], language.user(e["question"]), language.assistant(e["reply"])])
        rows.append(ids)
        starts.append(len(head) + 1)
    width = max(map(len, rows))
    ids = np.zeros((n, width), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    guess = np.array(mx.argmax(model(mx.array(ids)), axis=-1))
    return float(
        np.mean(
            [
                (guess[i, s : len(r) - 1] == np.array(r[s + 1 :])).all()
                for i, (r, s) in enumerate(zip(rows, starts, strict=True))
            ]
        )
    )


def settle(embeddings: mx.array, seed: int) -> mx.array:
    """Place held-out words about the mean of their class, as far from it as the trained ones."""
    table, rng = np.array(embeddings.astype(mx.float32)), np.random.default_rng(seed)
    classes = {c.text: c for r in vocabulary.RELATIONS for c in (r.subjects, r.values)}
    for words in classes.values():
        trained = table[[IDS[w] for w in words.pick(heldout=False)]]
        mean, spread = trained.mean(0), (trained - trained.mean(0)).std()
        for word in words.pick(heldout=True):
            table[IDS[word]] = mean + spread * rng.standard_normal(table.shape[1])
    return mx.array(table).astype(mx.float16)


def save(model: Model, out: Path, seed: int) -> None:
    """Write the model in mlx-lm's form, with its tokenizer.

    The values are those of float16, which pack well; the type is float32, which CPUs multiply.
    """
    tokens.write_tokenizer(out)
    model.set_dtype(mx.float16)
    embedding = model.model.embed_tokens
    embedding.weight = settle(embedding.weight, seed)
    model.set_dtype(mx.float32)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = json.dumps(CONFIG | {"torch_dtype": "float32"}, indent=1)
    (out / "config.json").write_text(config + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("deltamem_mlx/builtin/base"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=3e-3)
    args = parser.parse_args()
    model = make_model(args.seed)
    size = sum(p.size for _, p in tree_flatten(model.parameters()))
    print(f"{size:,} parameters, {len(IDS)} tokens")
    train(model, args.seed, args.rate)
    save(model, args.out, args.seed)
    for n in (1, 2, 4, 8, 16):
        kinds = {k: f"{recall(model, n, k, 256, 99):.3f}" for k in ("told", "updated", "never")}
        print(n, kinds, flush=True)


if __name__ == "__main__":
    main()
