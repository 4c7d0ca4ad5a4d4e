"""Load on `deltamem-mlx serve` whose model lies in several processes of this machine.

    python tests/helpers/serve_load_ranks.py --ranks 2 --clients 50 --sessions 20 --seconds 60
    python tests/helpers/serve_load_ranks.py --ranks 2 --pipeline --seconds 60

The clients are those of `serve_load.py`, the model a tiny random one of Qwen3-MoE, which mlx-lm
spreads in either way, or --model and --adapter. Checked: no error; every token is the greedy choice
of a `MemorySession` in one process that is told the same, alone, so no session hears of another.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from launching import ranks_of, started
from loading import Load, Session
from serve_load import TIE, figures, replay, wait_for
from serving import Client, free_port
from tiny import strong_pair, tiny_model_folder

import deltamem_mlx as dm


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="with --adapter; default: a tiny random pair")
    parser.add_argument("--adapter")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pipeline", action="store_true", help="default: tensor parallel")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=16, help="length of an answer")
    parser.add_argument("--processes", type=int, default=2, help="for the replay; all load MODEL")
    return parser.parse_args()


def pair_of(args: argparse.Namespace, folder: Path) -> tuple[str, str]:
    if args.model is not None:
        return args.model, args.adapter
    # A window that holds a round: beyond it a server drops the context, and the replay does not.
    config = {"num_hidden_layers": 4, "max_position_embeddings": 4096}
    model = tiny_model_folder(folder / "model", "qwen3_moe", **config)
    dm.save_adapter(strong_pair(model)[0], folder / "adapter")
    return str(model), str(folder / "adapter")


def loaded(args: argparse.Namespace, pair: tuple[str, str], kept: Path) -> tuple[Load, bool]:
    """What the clients were answered, and whether the server was still there at last."""
    ends = sorted(dm.load(*pair)[1].eos_token_ids)
    port = free_port()
    words = ["serve", "--model", pair[0], "--adapter", pair[1], "--port", str(port)]
    words += ["--memory-dir", str(kept), "--wait", "300", "--quiet"]
    words += ["--pipeline"] if args.pipeline else []
    with started("-m", "deltamem_mlx", *words, size=args.ranks, fused=True) as server:
        client = Client(f"http://127.0.0.1:{port}")
        wait_for(client, server)
        sessions = [Session(i, in_order=False) for i in range(args.sessions)]
        first = ranks_of(server.pid)[0]
        load = Load("ranks", client, first, True, sessions, args.clients, args.tokens, ends)
        load.warm_up()
        load.measure(args.seconds)
        if server.poll() is not None:
            sys.exit(server.communicate()[1])
        there = client.request("GET", "/health").status == 200
    return load, there


def main() -> int:
    args = options()
    with tempfile.TemporaryDirectory() as folder:
        pair = pair_of(args, Path(folder))
        load, there = loaded(args, pair, Path(folder) / "kept")
        if load.errors:
            sys.exit("\n".join(map(str, load.errors[:10])))
        told, others, gap = replay(load, pair, args.processes)
    passed = {"no error": True, "no cross-talk": gap < TIE, "still there": there}
    replayed = {"turns": told, "tokens_not_the_likeliest": others, "largest_gap": gap}
    result = {"settings": vars(args), **figures(load), "replayed": replayed, "passed": passed}
    print(json.dumps(result, indent=2))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
