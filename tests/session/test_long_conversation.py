"""Ten thousand turns: nothing grows but the count."""

import os
import time
from pathlib import Path

import mlx.core as mx
import pytest

import deltamem_mlx as dm
from deltamem_mlx import builtin

TURNS = 10_000
NAMES = ["anna", "ben", "chris", "david", "emma", "felix", "karin", "hugo"]
CITIES = ["oslo", "paris", "rome", "london", "berlin", "madrid", "vienna"]


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.timeout(3600)
def test_ten_thousand_turns() -> None:
    model, tokenizer = dm.load(str(builtin.base_folder()), str(builtin.adapter_folder()))
    session = dm.MemorySession(model, tokenizer, max_context=400)
    memory, norms, times = [], [], []
    for turn in range(TURNS):
        name, city = NAMES[turn % len(NAMES)], CITIES[turn % len(CITIES)]
        began = time.perf_counter()
        session.ask(
            f"{name} lives in {city} ." if turn % 2 else f"where does {name} live ?", max_tokens=8
        )
        times.append(time.perf_counter() - began)
        if turn % 500 == 499:
            states = dm.memory_state(session.cache).values()
            norms.append(max(mx.linalg.norm(state).item() for state in states))
            memory.append(resident())
    early, late = memory[len(memory) // 4], memory[-1]
    half = sorted(times[500 : TURNS // 2]), sorted(times[TURNS // 2 :])
    medians = [part[len(part) // 2] for part in half]
    print(f"\nmemory {[m >> 20 for m in memory]} MB, norms {norms}, medians {medians} s")
    assert abs(late - early) < 0.05 * early
    assert all(norm < 4 * norms[0] for norm in norms)
    assert session.stats()["context_tokens"] <= 400
    assert session.stats()["turns"] == TURNS
