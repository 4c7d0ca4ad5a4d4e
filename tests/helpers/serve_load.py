"""Load on `deltamem-mlx serve`, and the same load on mlx-lm's own server with the plain model.

    python tests/helpers/serve_load.py --clients 50 --sessions 20 --seconds 120
    python tests/helpers/serve_load.py --model MODEL --adapter ADAPTER
    python tests/helpers/serve_load.py --seconds 60 --mixed-seconds 60 --bar 0.9

Clients share sessions: whoever has no request running takes the next message of its session. A
session is a script of messages that begins anew when all were answered. Our server gets each
message alone, several of a session at once, and says by `usage.memory.turns` in which order it took
them. mlx-lm's has no sessions: it gets the whole history each time, so that a message waits for the
answer before it, and its prompt cache has room for all sessions. Messages and lengths of answers
are the same for both, decoding is greedy, and each has the machine to itself in turn. With
`--mixed-seconds` clients then speak to ours through the chat route, Responses and Messages in turn,
in other sessions.

Checked: no error; every token is the greedy choice of a `MemorySession` that is told the same,
alone (so no session hears of another); the server's memory does not grow: the least that it has in
the last third of the time, beside the first, once every session was through its script (then all
contexts have been as long as they get); tokens a second beside mlx-lm's. On a machine that does
other things too, the CPU time a token says more.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx
from loading import Load, Session, Turn, floors
from mlx_lm.sample_utils import make_logits_processors
from mlx_lm.tokenizer_utils import TokenizerWrapper
from serving import Client, free_port, module

import deltamem_mlx as dm
from deltamem_mlx import builtin

# Of log-probability: what another size of batch may change by rounding.
TIE = 1e-3
# Tokens that are tried where only the text of an answer is known.
LIKELY = 8
# Of RSS. Where nothing is kept it differs by 5 %; 10 kB a turn over 120 s made it 17 % more.
GROWTH = 1.1


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
    parser.add_argument("--processes", type=int, default=2, help="for the replay; all load MODEL")
    parser.add_argument(
        "--replay", type=int, default=0, help="so many turns a session at most; 0: all"
    )
    parser.add_argument(
        "--mixed-seconds", type=float, default=0, help="of load through all APIs, after that"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    args = options()
    tokenizer = dm.load(args.model, args.adapter)[1]
    ends = sorted(tokenizer.eos_token_ids)
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
        mixed = Load(
            "mixed",
            ours.client,
            ours.pid,
            True,
            [Session(i, in_order=False) for i in range(args.sessions)],
            args.clients,
            args.tokens,
            ends,
            apis=("chat", "responses", "messages"),
        )
        rss = {"at start": ours.rss()}
        for load in loads:
            load.warm_up()
        rss["when warm"] = ours.rss()
        for i in range(args.slices):
            for load in loads if i % 2 == 0 else reversed(loads):
                load.measure(args.seconds / args.slices)
        if args.mixed_seconds:
            mixed.measure(args.mixed_seconds)
            loads.append(mixed)
    if errors := [f"{load.name}: {error}" for load in loads for error in load.errors]:
        sys.exit("\n".join(errors[:10]))
    rss["least in the first third"], rss["least in the last"] = floors(ours.sizes)
    rss["at most"] = max(ours.sizes)
    found = {load.name: figures(load) for load in loads}
    ratio = ours.tokens_a_second() / theirs.tokens_a_second()
    print(f"ratio of tokens a second: {ratio:.3f}; telling turns again …", file=sys.stderr)
    began = time.perf_counter()
    told, others, gap = 0, 0, 0.0
    for load in (load for load in loads if load.ours):
        found_in = replay(load, (args.model, args.adapter), args.processes, args.replay)
        told, others, gap = told + found_in[0], others + found_in[1], max(gap, found_in[2])
    passed = {
        "no error": not any(load.errors for load in loads),
        "answers are those of serial runs": gap < TIE,
        "memory flat": rss["least in the last"] < GROWTH * rss["least in the first third"],
        f"ratio >= {args.bar}": ratio >= args.bar,
    }
    result = {
        "settings": vars(args),
        "servers": found,
        "ratio": round(ratio, 3),
        "cpu_ratio": round(theirs.cpu_a_token() / ours.cpu_a_token(), 3),
        "rss_mb": {when: round(size / 1e6, 1) for when, size in rss.items()},
        "replayed": {"turns": told, "tokens_not_the_likeliest": others, "largest_gap": gap},
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
    sizes = ", ".join(f"{size} MB {when}" for when, size in result["rss_mb"].items())
    told = result["replayed"]
    lines += [
        f"RSS of {names[0]}: {sizes}",
        f"serial replay of {told['turns']} turns: {told['tokens_not_the_likeliest']} tokens were "
        f"not the likeliest, largest gap {told['largest_gap']:.1e} ({result['replay_seconds']} s)",
        f"ratio of tokens a second: {result['ratio']}, of tokens a CPU second: "
        f"{result['cpu_ratio']}",
        *(f"{'passed' if good else 'FAILED'}: {what}" for what, good in result["passed"].items()),
    ]
    return "\n".join(lines)


# Turns of sessions that began alike are told once: (message, answer, its length) → what followed.
Tree = dict[tuple[str, tuple[int, ...] | str, int], "Tree"]


def tree_of(rounds: Sequence[Sequence[Turn]]) -> Tree:
    """Rounds in the order in which the server took their turns."""
    tree: Tree = {}
    for turns in rounds:
        at = tree
        for turn in sorted(turns, key=lambda turn: turn.number):
            at = at.setdefault((turn.asked, turn.said, turn.usage["completion_tokens"]), {})
    return tree


def size_of(tree: Tree) -> int:
    """How many turns are in it."""
    return sum(1 + size_of(after) for after in tree.values())


def replay(
    load: Load, pair: tuple[str, str], processes: int, most: int = 0
) -> tuple[int, int, float]:
    """Tells each session's turns to a MemorySession, alone; rounds that began alike, that once.

    Args:
        load (Load): What was answered.
        pair (tuple): Model and adapter, as `dm.load` takes them; each process loads them.
        processes (int): How many there are.
        most (int): Turns of a session, the last ones, by rounds; 0: all.

    Returns:
        How many turns were told, how many tokens another than the most likely one was given, and
        by how much at most.
    """
    rounds = [session.rounds for session in load.sessions]
    if most:
        rounds = [part[-max(1, most // len(part[0])) :] for part in rounds]
    trees = [tree_of(part) for part in rounds]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, Teller.begin, (pair, load.ends)) as pool:
        found = list(pool.map(Teller.tell, trees))
    others, worst = zip(*found, strict=True)
    return sum(map(size_of, trees)), sum(others), max(worst)


class Teller:
    """What a process that tells turns again has loaded."""

    pair: tuple
    bias: list

    @classmethod
    def begin(cls, pair: tuple[str, str], ends: Sequence[int]) -> None:
        """Load it."""
        cls.pair = dm.load(*pair)
        cls.bias = make_logits_processors(logit_bias=dict.fromkeys(ends, -1e4))

    @classmethod
    def tell(cls, tree: Tree, told: dm.MemorySession | None = None) -> tuple[int, float]:
        """Tokens that were not the most likely, and by how much at most."""
        others, worst = 0, 0.0
        told = told or dm.MemorySession(*cls.pair)
        for (asked, said, length), after in tree.items():
            alone = told.fork()
            forced = Spelled(cls.pair[1], said) if isinstance(said, str) else Forced(said)
            alone.ask(asked, max_tokens=length, sampler=forced, logits_processors=cls.bias)
            gaps = mx.array(forced.gaps[:length])
            later, gap = cls.tell(after, alone)
            others += int((gaps > 0).sum()) + later
            worst = max(worst, gaps.max().item(), gap)
        return others, worst


class Forced:
    """A sampler that takes these tokens, and notes how much likelier the likeliest ones were."""

    def __init__(self, tokens: Sequence[int]):
        self._tokens, self.gaps = [*tokens, tokens[-1]], []

    def __call__(self, logprobs: mx.array) -> mx.array:
        token = self._tokens[min(len(self.gaps), len(self._tokens) - 1)]
        self.gaps.append(logprobs.max() - logprobs[0, token])
        return mx.array([token])


class Spelled:
    """A sampler that takes the likeliest tokens that spell a text, and notes the same."""

    def __init__(self, tokenizer: TokenizerWrapper, text: str):
        self._tokenizer, self._text = tokenizer, text.strip()
        self._taken: list[int] = []
        self.gaps: list[mx.array] = []

    def __call__(self, logprobs: mx.array) -> mx.array:
        best = mx.argsort(-logprobs[0])[:LIKELY].tolist()
        # None of them: the likeliest, which then counts as one that was not given.
        token = next((t for t in best if self._spells([*self._taken, t])), None)
        gap = mx.array(float("inf")) if token is None else logprobs.max() - logprobs[0, token]
        self._taken.append(best[0] if token is None else token)
        self.gaps.append(gap)
        return mx.array([self._taken[-1]])

    def _spells(self, tokens: Sequence[int]) -> bool:
        """White space at the ends of an answer is not part of it."""
        text = self._tokenizer.decode(tokens).lstrip().rstrip("\N{REPLACEMENT CHARACTER}")
        return self._text.startswith(text) or text.rstrip() == self._text


if __name__ == "__main__":
    sys.exit(main())
