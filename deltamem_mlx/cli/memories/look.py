"""`memories list` and `memories show`."""

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options import memories as m
from deltamem_mlx.cli.options import shared as o


@command(
    "deltamem-mlx memories",
    "deltamem-mlx memories list --folder memories",
)
def list_all(folder: m.Folder = None, json: o.Json = False) -> None:
    """List all memories, the last used first."""
    from deltamem_mlx.memory.shelf import MemoryShelf
    from deltamem_mlx.views.memories import memories_json, memories_text

    shelf = MemoryShelf(folder)
    found = shelf.all()
    if json:
        yours = m.default_memory()
        output.result_json([memories_json(one) | {"default": one.path == yours} for one in found])
    elif found:
        output.result(memories_text(found, m.default_memory()))
        output.note(f"They lie in {shelf.folder}.")
    else:
        output.result(f"There are no memories in {shelf.folder}.")
        output.note("To begin one: deltamem-mlx chat --memory NAME")


@command(
    "deltamem-mlx memories show",
    "deltamem-mlx memories show anna",
    "deltamem-mlx memories show KEY --folder memories",
)
def show(name: m.DefaultName = None, folder: m.Folder = None, json: o.Json = False) -> None:
    """Say what is known of one memory.

    deltamem-mlx inspect looks into it: layer by layer, or by asking it.
    """
    from deltamem_mlx.memory.shelf import MemoryShelf
    from deltamem_mlx.views.memories import memories_json, memory_card

    found = MemoryShelf(folder).get(m.or_default(name, folder))
    if json:
        output.result_json(memories_json(found))
    else:
        output.result(memory_card(found))
