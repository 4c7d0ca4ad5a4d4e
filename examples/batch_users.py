"""Several users at once with mlx-lm's batch_generate, each with a memory of their own.

python examples/batch_users.py MODEL ADAPTER
"""

import sys

from mlx_lm import batch_generate
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm

if len(sys.argv) != 3:
    sys.exit(__doc__)
model, tokenizer = dm.load(sys.argv[1], sys.argv[2])
told = {
    "ana": "I live in Porto and my dog is called Rex.",
    "ben": "I am allergic to nuts.",
    "chris": "My train leaves at nine tomorrow.",
}


def prompts(texts: list[str]) -> list[list[int]]:
    turns = [[{"role": "user", "content": text}] for text in texts]
    return [tokenizer.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]


def batch(texts: list[str], caches: list[list]) -> tuple[list[str], list[list]]:
    """One turn of every user; prompts of different lengths are padded, memories do not notice."""
    response = batch_generate(
        model,
        tokenizer,
        prompts(texts),
        prompt_caches=caches,
        max_tokens=30,
        return_prompt_caches=True,
    )
    return response.texts, response.caches


_, caches = batch(list(told.values()), [make_prompt_cache(model) for _ in told])
for cache in caches:
    dm.forget_context(cache)
answers, caches = batch(["What did I tell you?"] * len(told), caches)
for user, answer, cache in zip(told, answers, caches, strict=True):
    size = sum(state.nbytes for state in dm.memory_state(cache).values())
    print(f"{user} ({size} bytes of memory): {answer}")
