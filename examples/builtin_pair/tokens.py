"""The tokenizer of the built-in pair: one token a word, lower case, a ChatML-like template."""

import json
from pathlib import Path

from deltamem_mlx.builtin.words import ACKS, CHANGES, CHATS, OPENERS, RELATIONS, UNKNOWN

SPECIAL = ("<|pad|>", "<unk>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def value_words() -> list[str]:
    return sorted({w for r in RELATIONS for w in r.values.all()})


def heldout_words() -> list[str]:
    """Words that training never shows."""
    classes = [c for r in RELATIONS for c in (r.subjects, r.values)]
    return sorted({w for c in classes for w in c.pick(heldout=True)})


def vocabulary() -> list[str]:
    """All tokens in id order: specials, roles, then every word of the language, sorted."""
    texts = [UNKNOWN, "i do not know . , ? ! : your"]
    for r in RELATIONS:
        texts += [*r.tells, *r.asks, r.answer, r.subjects.text, r.values.text]
    texts += [*OPENERS, *CHANGES, *ACKS, *(t for pair in CHATS for t in pair)]
    roles = ["user", "assistant", "system"]
    words = {w for t in texts for w in t.split()} - {"{s}", "{v}"} - set(roles)
    return [*SPECIAL, *roles, *sorted(words)]


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into ``folder``."""
    special = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for i, t in enumerate(SPECIAL)
    ]
    vocab = {w: i for i, w in enumerate(vocabulary())}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "unk_token": "<unk>",
        "eos_token": "<|im_end|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
