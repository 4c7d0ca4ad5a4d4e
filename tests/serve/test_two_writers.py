"""A server and another program on one memory: what either has acknowledged is in it."""

import os
import subprocess
import sys
from pathlib import Path

import memory_writer
import pytest
from serving import FACT, Client, builtin_pair

import deltamem_mlx as dm
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


@pytest.mark.slow
@pytest.mark.parametrize("how, times", [("save", 200), ("generate", 12)])
def test_nothing_that_was_acknowledged_is_lost(how: str, times: int, tmp_path: Path) -> None:
    pair = builtin_pair()
    told = dm.MemorySession(*pair)
    told.ask(memory_writer.TOLD, max_tokens=1)
    with Server(*pair, "builtin", ServeSettings(port=0, memory_dir=tmp_path)) as serving:
        client = Client(serving.url)
        written = client.chat(FACT, "shared", max_tokens=1).memory["tokens_written"]
        (file,) = tmp_path.glob("*.safetensors")
        helpers = Path(memory_writer.__file__)
        with subprocess.Popen(
            [sys.executable, helpers, file, how, str(times)],
            env=os.environ | {"PYTHONPATH": str(helpers.parents[2])},
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            answered = refused = 0
            while other.poll() is None or answered < times:
                reply = client.chat(FACT, "shared", max_tokens=1)
                assert reply.status == 200 or reply.code == "memory_changed"
                answered += reply.status == 200
                refused += reply.status != 200
                written += reply.memory["tokens_written"] if reply.status == 200 else 0
            acknowledged = int(other.stdout.read())
    assert refused or how == "generate"  # which is slower than the server, and seldom first
    assert acknowledged == times or how == "generate"
    theirs = acknowledged * told.stats()["tokens_written"]
    assert read_memory(file).tokens_written == [written + theirs]
