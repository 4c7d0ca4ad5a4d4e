"""Write ordinary conversations in which a model answers as it does by itself.

    python examples/smollm2_adapter/make_talk.py MODEL build/smollm2/talk --count 400

Training on them beside facts keeps the replies as they were where the memory has nothing to say:
``make_data.py --talk`` mixes them in. ``valid.jsonl`` is for `deltamem-mlx eval perplexity`.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import words
from make_data import messages_of, write_rows
from mlx_lm import batch_generate, load
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

PROMPTS = (
    ("What is a {}?", words.THINGS + words.ANIMALS + words.INSTRUMENTS),
    ("Explain in one sentence what a {} is for.", words.THINGS),
    ("Write two sentences about a {} and a {}.", words.WORDS),
    ("Write a very short story that has a {} in it.", words.WORDS + words.ANIMALS),
    ("Give me three tips for {}.", words.HOBBIES),
    ("Why do people like {}?", words.HOBBIES + words.FOODS + words.DRINKS),
    ("How do I start with {} as a beginner?", words.HOBBIES + words.SUBJECTS),
    ("What does a {} do all day?", words.JOBS),
    ("Is it hard to become a {}?", words.JOBS),
    ("Tell me something about {}.", words.CITIES + words.COUNTRIES + words.LANGUAGES),
    ("What should I see in {}?", words.CITIES + words.COUNTRIES),
    ("What goes well with {}?", words.FOODS + words.DRINKS),
    ("How long does it take to {}?", words.TASKS),
    ("What is the main idea of {}?", words.SUBJECTS),
    ("Which is better, {} or {}?", words.FOODS + words.HOBBIES + words.COLORS),
    ("List three things that are {}.", words.COLORS),
)
BATCH = 16


def filled(
    wordings: Sequence[tuple[str, Sequence[str]]], rng: random.Random, count: int
) -> list[str]:
    """That many different wordings with their fillers put in."""
    found: dict[str, None] = {}
    while len(found) < count:
        wording, fillers = rng.choice(wordings)
        found[wording.format(*rng.sample(fillers, 2))] = None
    return list(found)


def replies(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: list[list[int]],
    *,
    batch: int,
    max_tokens: int,
    **sampling: float,
) -> list[str]:
    """How a model goes on after each of some prompts, a batch of them at once."""
    sampler, texts = make_sampler(**sampling), []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        texts += batch_generate(
            model, tokenizer, part, max_tokens=max_tokens, sampler=sampler
        ).texts
        print(f"{len(texts)} of {len(prompts)}", flush=True)
    return texts


def whole_sentences(text: str) -> str:
    """A text up to its last end of a sentence: where it was cut off is not to be learned."""
    return text[: max(text.rfind(mark) for mark in ".!?") + 1].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="the model that answers: a folder or a Hub name")
    parser.add_argument("out", type=Path, help="folder for the two files")
    parser.add_argument("--count", type=int, default=400, help="training conversations")
    parser.add_argument("--held-out", type=int, default=48, help="conversations for valid.jsonl")
    parser.add_argument("--max-tokens", type=int, default=40, help="length of an answer at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model, tokenizer = load(args.model)
    mx.random.seed(args.seed)
    asked = filled(PROMPTS, random.Random(args.seed), args.count + args.held_out)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        for text in asked
    ]
    answers = replies(
        model, tokenizer, prompts, batch=BATCH, max_tokens=args.max_tokens, temp=0.7, top_p=0.9
    )
    turns = zip(asked, map(whole_sentences, answers), strict=True)
    talk = [messages_of([turn]) for turn in turns if turn[1]]
    for name, part in (("train", talk[args.held_out :]), ("valid", talk[: args.held_out])):
        write_rows(args.out / f"{name}.jsonl", part)


if __name__ == "__main__":
    main()
