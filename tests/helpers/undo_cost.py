"""What the way back over 64 turns costs a memory shaped as Qwen3-4B's: bytes, and time a turn.

    python tests/helpers/undo_cost.py [--turns 64] [--rounds 5]

The memory is that of the released adapter: 36 layers with one state of 8 by 8 numbers each. The
model around it is narrow and its weights are random, so that what a turn costs beside the model
weighs more here than it does in fact. Sessions with and without the way back take the same turns
alternately; each saves its memory file after every turn, as `chat --memory` does.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.memory.history import HISTORY_TURNS

LAYERS = 36


def narrow_model(vocabulary: int) -> nn.Module:
    """Qwen3-4B's layers and memory, of a width that a CPU can run."""
    args = qwen3.ModelArgs.from_dict(
        {
            "model_type": "qwen3",
            "hidden_size": 64,
            "num_hidden_layers": LAYERS,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "vocab_size": vocabulary,
            "max_position_embeddings": 4096,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        }
    )
    mx.random.seed(0)
    model = qwen3.Model(args)
    mx.eval(model.parameters())
    return dm.attach(model, dm.DeltaMemConfig(delta_heads=("q", "o"), output_init="random"))


def measure(turns: int, rounds: int) -> dict[str, object]:
    """Bytes of the way back in RAM and in a file, and seconds a turn with and without it."""
    tokenizer = dm.load(builtin.base_folder())[1]
    model = narrow_model(len(tokenizer.get_vocab()))
    taken: dict[int, list[float]] = {0: [], turns: []}
    saved: dict[int, list[float]] = {0: [], turns: []}
    with tempfile.TemporaryDirectory() as folder:
        for round in range(rounds):
            sessions = {
                kept: dm.MemorySession(model, tokenizer, undo_turns=kept, max_context=512)
                for kept in taken
            }
            for turn in range(turns + 8):
                order = list(sessions) if (turn + round) % 2 else list(sessions)[::-1]
                for kept in order:
                    path = Path(folder) / f"{kept}-{round}.safetensors"
                    began = time.perf_counter()
                    sessions[kept].ask("anna lives in oslo .", max_tokens=2)
                    asked = time.perf_counter()
                    sessions[kept].save(path, history=min(kept, HISTORY_TURNS))
                    if turn >= turns:  # with as many kept as there will be
                        taken[kept].append(asked - began)
                        saved[kept].append(time.perf_counter() - asked)
        file = read_memory(path.with_name(f"{turns}-0.safetensors"))
        sizes = {kept: (Path(folder) / f"{kept}-0.safetensors").stat().st_size for kept in taken}
    past = sessions[turns]._conversation.past
    return {
        "layers_with_a_state": len(file.states),
        "state_bytes": sum(state.nbytes for state in file.states.values()),
        "turns_kept": len(past),
        "bytes_in_ram": past.nbytes,
        "turns_in_file": len(file.history),
        "file_bytes": sizes[turns],
        "file_bytes_without": sizes[0],
        "turn_ms": 1e3 * statistics.median(taken[turns]),
        "turn_ms_without": 1e3 * statistics.median(taken[0]),
        "save_ms": 1e3 * statistics.median(saved[turns]),
        "save_ms_without": 1e3 * statistics.median(saved[0]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(json.dumps(measure(args.turns, args.rounds), indent=1))
