"""A process that writes one memory file again and again: FILE HOW TIMES.

HOW is ``save`` (a session is restored, told something and saved) or ``generate`` (the command).
Prints how often that was acknowledged.
"""

import subprocess
import sys

from serving import builtin_pair

import deltamem_mlx as dm

TOLD = "ben is a doctor ."


def written_by_save(path: str, times: int) -> int:
    pair, done = builtin_pair(), 0
    while done < times:
        session = dm.MemorySession.restore(path, *pair)
        session.ask(TOLD, max_tokens=1)
        try:
            session.save(path)
        except OSError:  # another program was faster
            continue
        done += 1
    return done


def written_by_generate(path: str, times: int) -> int:
    command = [sys.executable, "-m", "deltamem_mlx", "generate", "--memory", path]
    done = 0
    for _ in range(times):
        ran = subprocess.run([*command, "--prompt", TOLD, "-m", "1"], capture_output=True)
        done += ran.returncode == 0
    return done


if __name__ == "__main__":
    file, how, count = sys.argv[1:]
    write = {"save": written_by_save, "generate": written_by_generate}[how]
    print(write(file, int(count)))
