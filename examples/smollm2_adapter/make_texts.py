"""Write texts of many kinds, as a model writes them by itself: a beginning, and how it goes on.

    python examples/smollm2_adapter/make_texts.py MODEL build/smollm2/texts.jsonl --count 256

Whatever a model writes at temperature 1, without a prompt's form around it, is text as it expects
it: trained on beside facts, it keeps the predictions of any text as they were. ``make_data.py
--talk`` mixes it in. It needs nothing but the model, and costs about as long as training on it.
"""

import argparse
import random
from pathlib import Path

import mlx.core as mx
import words
from make_data import Message, messages_of, write_rows
from make_talk import filled, replies, whole_sentences
from mlx_lm import load

PROMPT, REPLY = 300, 120  # characters: at most of what is said, and at least of the reply
BEGINNINGS = (
    ("The history of {}", words.CITIES + words.COUNTRIES + words.FOODS + words.SUBJECTS),
    ("# {}\n\n", words.SUBJECTS + words.HOBBIES + words.THINGS),
    ("Chapter 1\n\n{} had", words.NAMES),
    ("Dear {},\n\nThank you for", words.NAMES),
    ("{}: Hey {}! It has been a while.\n", words.NAMES),
    ("{}: What did you do at the weekend?\n{}:", words.NAMES),
    ("Q: What is {}?\nA:", words.SUBJECTS),
    ("Recipe: {} with {}\n\nIngredients:", words.FOODS),
    ("{}, by our correspondent. The government of", words.CITIES),
    ("Abstract. We study {} and", words.SUBJECTS),
    ("How I learned {}\n\nWhen I was", words.HOBBIES + words.LANGUAGES),
    ("A {} and a {} met in the forest.", words.ANIMALS),
    ("The {} is an animal that", words.ANIMALS),
    ("{} is a city in", words.CITIES),
    ("As a {}, you are responsible for", words.JOBS),
    ("My honest review of this {}: I bought it", words.THINGS),
    ("This manual describes how to use the {}.", words.THINGS + words.INSTRUMENTS),
    ("In the year 18{}, the", words.NUMBERS),
    ("Lesson {}. Today we will learn about", words.NUMBERS),
    ("The {} test failed because", words.WORDS),
    ("import numpy as np\n\n\ndef {}(", [word.lower() for word in words.WORDS]),
    ("NAME\n    {} - ", [word.lower() for word in words.WORDS]),
    ("Minutes of the meeting of {} {}\n\nPresent:", [*words.DAYS, *words.MONTHS]),
    ("Diary, {}. Today {} and I", words.NAMES),
    ("{}\n\nO", words.WORDS),
    ("The court finds that Mr. {}", words.NAMES),
    ("Scientists have found that {}", words.FOODS + words.DRINKS + words.ANIMALS),
    ("Once upon a time in {}", words.CITIES + words.COUNTRIES),
)
BATCH = 32


def turn(beginning: str, rest: str, rng: random.Random) -> list[Message] | None:
    """A text as what is said and the reply, cut at some blank; nothing if it is too short."""
    text = whole_sentences(beginning + rest)
    last = min(PROMPT + 1, len(text) - REPLY)
    blanks = [i for i in range(len(beginning), last) if text[i] == " "]
    if not blanks:
        return None
    cut = rng.choice(blanks)
    return messages_of([(text[:cut], text[cut + 1 :])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="the model that writes: a folder or a Hub name")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--count", type=int, default=256, help="texts to begin")
    parser.add_argument("--max-tokens", type=int, default=200, help="length at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model, tokenizer = load(args.model)
    mx.random.seed(args.seed)
    rng = random.Random(args.seed)
    begun = filled(BEGINNINGS, rng, args.count)
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in begun]
    rest = replies(model, tokenizer, prompts, batch=BATCH, max_tokens=args.max_tokens, temp=1.0)
    turns = [turn(text, more, rng) for text, more in zip(begun, rest, strict=True)]
    texts = [messages for messages in turns if messages]
    write_rows(args.out, texts)
    print(f"wrote {len(texts)} texts to {args.out}")


if __name__ == "__main__":
    main()
