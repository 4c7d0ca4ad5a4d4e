"""A tiny random model that can say any text: every byte is a token, and some words are."""

import json
import shutil
from pathlib import Path

import mlx.nn as nn
import mlx_lm
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import save_model
from tiny import FIXTURES, tiny_config, tiny_model

import deltamem_mlx as dm

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
VOCABULARY = 448  # wider than the tokenizer's, as models often are
TEMPLATE = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}
{% set tool_call = call.function %}<tool_call>
{"name": {{ tool_call.name | tojson }}, "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>{% endif %}{% endif %}"""


def byte_pair(
    folder: Path,
    arch: str = "qwen3",
    *,
    thinks: bool = False,
    template: str = TEMPLATE,
    seed: int = 0,
) -> tuple[nn.Module, TokenizerWrapper]:
    """The model with a fresh adapter, and its tokenizer.

    - thinks: it knows the marks of thoughts.
    """
    from transformers import AutoTokenizer

    sizes = {"vocab_size": VOCABULARY, "eos_token_id": 2, "max_position_embeddings": 4096}
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, tiny_model(arch, seed=seed, **sizes))
    (folder / "config.json").write_text(json.dumps(tiny_config(arch, **sizes)))
    for file in (FIXTURES / "tokenizers" / "bpe").iterdir():
        shutil.copyfile(file, folder / file.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(MARKS if thinks else MARKS[:2]))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model, wrapped = mlx_lm.load(str(folder))
    return dm.attach(model, dm.DeltaMemConfig(output_init="random"), seed=1), wrapped
