"""A process that kills itself at a given point: runs `deltamem-mlx` with the rest.

usage: dying.py RANK MODULE:FUNCTION CALL WORDS...

Process RANK (0 without mlx.launch) ends by SIGKILL where FUNCTION, of the class or module that
MODULE names, is called for the CALLth time.
"""

import os
import signal
import sys
from importlib import import_module
from itertools import count

from deltamem_mlx.cli.main import main


def die_at(place: str, call: int) -> None:
    """Replace a function by one that ends this process."""
    module, _, path = place.partition(":")
    owner = import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), count(1)

    def deadly(*args: object, **kwargs: object) -> object:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    rank, place, call, *words = sys.argv[1:]
    if os.environ.get("MLX_RANK", "0") == rank:
        die_at(place, int(call))
    sys.argv[1:] = words
    main()
