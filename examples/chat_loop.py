"""mlx-lm's chat loop, and the five lines that give it a memory (marked with #).

    python examples/chat_loop.py MODEL ADAPTER [MEMORY.safetensors]

An empty line forgets the context; what was said stays in the memory.
"""

import sys
from pathlib import Path

from mlx_lm import stream_generate
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm  #

if len(sys.argv) not in (3, 4):
    sys.exit(__doc__)
model, tokenizer = dm.load(sys.argv[1], sys.argv[2])  #
file = Path(sys.argv[3] if len(sys.argv) > 3 else "memory.safetensors")
cache = dm.load_memory(file, model) if file.exists() else make_prompt_cache(model)  #

while True:
    try:
        text = input("> ")
    except EOFError:
        break
    if not text:
        dm.forget_context(cache)  #
        continue
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    for response in stream_generate(model, tokenizer, prompt, prompt_cache=cache, max_tokens=256):
        print(response.text, end="", flush=True)
    print()
    dm.save_memory(file, cache, model)  #
