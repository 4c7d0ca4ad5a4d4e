"""Run by `mlx.launch`: one command after the other, in the same processes.

usage: spread_commands_run.py COMMANDS.json SAID.json

The first file has the words of each command, the second gets code and output of each.
"""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from deltamem_mlx.cli.frame import launched
from deltamem_mlx.cli.main import app


def said(words: list[str]) -> tuple[int, str, str]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as notes:
        code = app(words, standalone_mode=False)
    return int(code or 0), out.getvalue(), notes.getvalue()


if __name__ == "__main__":
    commands, answers = map(Path, sys.argv[1:])
    found = [said(words) for words in json.loads(commands.read_text())]
    if not launched.follows():
        answers.write_text(json.dumps(found))
