"""Programs under mlx.launch, on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def launch(
    *words: str | Path, size: int = 2, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in ``size`` processes, and wait for them."""
    program = Path(sys.executable).with_name("mlx.launch")
    if not program.exists():
        pytest.skip("mlx.launch is not installed beside this Python")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    return subprocess.run(
        [program, "-n", str(size), "--", sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
