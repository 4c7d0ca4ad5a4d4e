"""`memories undo`: a memory as it was before its last turns."""

from typing import Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options import memories as m
from deltamem_mlx.cli.options import shared as o

Turns = Annotated[int, typer.Option("--turns", "-n", min=1, help="How many turns.")]


@command(
    "deltamem-mlx memories undo",
    "deltamem-mlx memories undo anna",
    "deltamem-mlx memories undo me.safetensors --turns 2",
    "deltamem-mlx memories undo KEY --folder memories",
)
def undo(
    name: m.DefaultName = None, turns: Turns = 1, folder: m.Folder = None, json: o.Json = False
) -> None:
    """Take back the last turns of a memory, as if they had never been.

    A turn is a question with its answer, or a file that was remembered: to take back what was told
    before a question, take back the question, too. generate, chat, remember and serve keep the last
    64 turns with a memory.
    """
    from deltamem_mlx.memory.file import read_memory
    from deltamem_mlx.memory.shelf import MemoryShelf
    from deltamem_mlx.memory.undo import undo_memory_file

    name = m.or_default(name, folder)
    path = MemoryShelf(folder).path(name)
    before = sum(read_memory(path).tokens_written)
    memory = undo_memory_file(path, turns)
    left, written = len(memory.history), sum(memory.tokens_written)
    if json:
        output.result_json(
            {"path": str(path), "turns": turns, "undo_turns": left, "tokens_written": written}
        )
        return
    output.result(
        f"Took back {turns} turn{'s' * (turns != 1)} of {name}, {before - written:,} tokens: "
        f"{written:,} tokens are written. "
        f"{left or 'No'} more can be."
    )
