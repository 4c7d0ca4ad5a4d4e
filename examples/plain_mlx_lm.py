"""A plain mlx-lm script with a memory: tell it something, drop the context, ask.

python examples/plain_mlx_lm.py MODEL ADAPTER
"""

import sys

from mlx_lm import generate
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm

if len(sys.argv) != 3:
    sys.exit(__doc__)
model, tokenizer = dm.load(sys.argv[1], sys.argv[2])
cache = make_prompt_cache(model)  # the conversation: KV cache and memory


def ask(text: str) -> str:
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return generate(model, tokenizer, prompt, prompt_cache=cache, max_tokens=40)


print(ask("My sister Maria lives in Porto."))
dm.forget_context(cache)  # the tokens are gone, what was written stays
print(ask("Where does Maria live?"))
dm.save_memory("maria.safetensors", cache, model)  # a few kilobytes
cache = dm.load_memory("maria.safetensors", model)  # and back, with an empty context
print(ask("Who lives in Porto?"))
