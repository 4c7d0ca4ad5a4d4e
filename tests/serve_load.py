"""Load on `deltamem-mlx serve`, and the same load on mlx-lm's own server with the plain model.

    python tests/serve_load.py --clients 50 --sessions 20 --seconds 120
    python tests/serve_load.py --model MODEL --adapter ADAPTER

Clients share sessions: whoever has no request running takes the next message of its session. A
session is a script of messages that begins anew when all were answered. Our server gets each
message alone, several of a session at once, and says by `usage.memory.turns` in which order it took
them. mlx-lm's has no sessions: it gets the whole history each time, so that a message waits for the
answer before it, and its prompt cache has room for all sessions. Messages and lengths of answers
are the same for both, decoding is greedy, and each has the machine to itself in turn.

Checked: no error; every token is the greedy choice of a `MemorySession` that is told the same,
alone (so no session hears of another); the server's memory does not grow; tokens a second beside
mlx-lm's. On a machine that does other things too, the CPU time a token says more.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from loading import Load, Session, replay
from mlx_lm.sample_utils import make_logits_processors
from serving import Client, free_port, module

import deltamem_mlx as dm
from deltamem_mlx import builtin

# Of log-probability: what another size of batch may change by rounding.
TIE = 1e-3


def wait_for(client: Client, server: subprocess.Popen) -> None:
    """Until the server answers."""
    while True:
        try:
            if client.request("GET", "/health").status == 200:
                return
        except OSError:
            time.sleep(0.1)
        if server.poll() is not None:
            sys.exit("a server ended before it answered")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(builtin.base_folder()))
    parser.add_argument("--adapter", default=str(builtin.adapter_folder()))
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120, help="of load on each server")
    parser.add_argument("--slices", type=int, default=3, help="in how many parts, alternately")
    parser.add_argument("--tokens", type=int, default=32, help="length of an answer")
    parser.add_argument("--bar", type=float, default=0.85, help="of mlx-lm's tokens a second")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    args = options()
    pair = dm.load(args.model, args.adapter)
    ends = sorted(pair[1].eos_token_ids)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        room = ["--prompt-cache-size", 3 * args.sessions]
        served = ["--model", args.model, "--adapter", args.adapter, "--memory-dir", folder / "kept"]
        commands = {
            "deltamem-mlx": ["deltamem_mlx", "serve", *served, "--wait", 300],
            "mlx-lm": ["mlx_lm", "server", "--model", args.model, "--log-level", "ERROR", *room],
        }
        loads = []
        for name, command in commands.items():
            port, ours = free_port(), name == "deltamem-mlx"
            started = module(*command, "--port", port, log=folder / f"{name}.log")
            server = stack.enter_context(started)
            client = Client(f"http://127.0.0.1:{port}")
            wait_for(client, server)
            sessions = [Session(i, in_order=not ours) for i in range(args.sessions)]
            asked = (sessions, args.clients, args.tokens, ends)
            loads.append(Load(name, client, server.pid, ours, *asked))
        ours, theirs = loads
        rss = {"start": ours.rss()}
        for load in loads:
            load.warm_up()
        rss["warm"] = ours.rss()
        for i in range(args.slices):
            for load in loads if i % 2 == 0 else reversed(loads):
                load.measure(args.seconds / args.slices)
        rss["end"] = ours.rss()
    if errors := [f"{load.name}: {error}" for load in loads for error in load.errors]:
        sys.exit("\n".join(errors[:10]))
    bias = make_logits_processors(logit_bias=dict.fromkeys(ends, -1e4))
    began = time.perf_counter()
    others, gap = replay(ours, pair, bias)
    found = {load.name: figures(load) for load in loads}
    ratio = ours.tokens_a_second() / theirs.tokens_a_second()
    passed = {
        "no error": not (ours.errors or theirs.errors),
        "answers are those of serial runs": gap < TIE,
        "memory flat": rss["end"] < 1.1 * rss["warm"],
        f"ratio >= {args.bar}": ratio >= args.bar,
    }
    result = {
        "settings": vars(args),
        "servers": found,
        "ratio": round(ratio, 3),
        "cpu_ratio": round(theirs.cpu_a_token() / ours.cpu_a_token(), 3),
        "rss_mb": {when: round(size / 1e6, 1) for when, size in rss.items()},
        "replayed": {"tokens_not_the_likeliest": others, "largest_gap": gap},
        "replay_seconds": round(time.perf_counter() - began, 1),
        "passed": passed,
    }
    print(json.dumps(result, indent=2) if args.json else table(result))
    return 0 if all(passed.values()) else 1


def figures(load: Load) -> dict[str, object]:
    turns = load.turns
    prompts = sum(turn.usage["prompt_tokens"] for turn in turns)
    cached = sum(t.usage.get("prompt_tokens_details", {}).get("cached_tokens", 0) for t in turns)
    return {
        "turns": len(turns),
        "completion_tokens": sum(turn.usage["completion_tokens"] for turn in turns),
        "tokens_a_second": round(load.tokens_a_second(), 1),
        "cpu_ms_a_token": round(1000 * load.cpu_a_token(), 2),
        "prompt_tokens_a_turn": round(prompts / len(turns), 1),
        "fed_tokens_a_turn": round((prompts - cached) / len(turns), 1),
        "asked_again": load.again,
        "errors": load.errors[:5],
    }


def table(result: dict) -> str:
    names = list(result["servers"])
    lines = [f"{'':24}" + "".join(f"{name:>16}" for name in names)]
    for key in result["servers"][names[0]]:
        values = [result["servers"][name][key] for name in names]
        shown = [len(v) if isinstance(v, list) else v for v in values]
        lines.append(f"{key.replace('_', ' '):24}" + "".join(f"{v:>16}" for v in shown))
    lines += [f"error: {e}" for name in names for e in result["servers"][name]["errors"]]
    sizes = ", ".join(f"{size} MB at {when}" for when, size in result["rss_mb"].items())
    told = result["replayed"]
    lines += [
        f"RSS of {names[0]}: {sizes}",
        f"serial replay: {told['tokens_not_the_likeliest']} tokens were not the likeliest, "
        f"largest gap {told['largest_gap']:.1e} ({result['replay_seconds']} s)",
        f"ratio of tokens a second: {result['ratio']}, of tokens a CPU second: "
        f"{result['cpu_ratio']}",
        *(f"{'passed' if good else 'FAILED'}: {what}" for what, good in result["passed"].items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
