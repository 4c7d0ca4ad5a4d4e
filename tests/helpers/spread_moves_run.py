"""Run by `mlx.launch`: memories and sessions that other numbers of processes have saved.

usage: spread_moves_run.py FOLDER

For each way of spreading: writes FOLDER/<way>/by-<processes>, if it is not there, and takes what
others wrote through a model of its own: FOLDER/<way>/by-<others>-through-<processes>.
"""

import json
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import load
from spread_models import adapted, built, config_for, spread
from tiny import TOKENIZER

import deltamem_mlx as dm
from deltamem_mlx import MemorySession
from deltamem_mlx.ranks import Ranks

MODELS = {"tensor": "gpt_oss", "pipeline": "qwen3_moe:4"}


def write(model: nn.Module, folder: Path) -> None:
    session = MemorySession(model, load(TOKENIZER), system_prompt="Be kind.", undo_bytes=5000)
    for text in ("Hi, I am Ann.", "Who?"):
        session.ask(text, max_tokens=3)
    session.save(folder / "session")
    dm.save_memory(folder / "memory.safetensors", session.cache, model, note="é")


def take(model: nn.Module, source: Path, folder: Path) -> list:
    """What follows is the same whoever says it."""
    cache = dm.load_memory(source / "memory.safetensors", model)
    dm.save_memory(folder / "memory.safetensors", cache, model, note="é")
    session = MemorySession.restore(source / "session", model, load(TOKENIZER))
    session.save(folder / "session")
    said = [session.ask("And now?", max_tokens=4), len(session.undo(1))]
    return [*said, session.ask("And then?", max_tokens=4)]


def move(folder: Path, group: mx.distributed.Group) -> None:
    """All of both ways, in one of as many processes as there are."""
    ranks = Ranks(group)
    for way, name in MODELS.items():
        here = folder / way
        made = folder / f"made-{ranks.size}-{ranks.rank}" / way
        whole = adapted(built(name), made, config_for(name))
        part = whole if ranks.alone else dm.load_adapter(spread(built(name), way, group), made)
        own = here / f"by-{ranks.size}"
        if not ranks.by_first(own.exists):
            write(part, own)
        for source in ranks.by_first(lambda here=here: sorted(here.glob("by-?"))):
            new = here / f"{source.name}-through-{ranks.size}"
            said = take(part, source, new)
            if ranks.rank == 0:
                (new / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    mx.set_default_device(mx.cpu)
    move(Path(sys.argv[1]), mx.distributed.init(strict=True))
