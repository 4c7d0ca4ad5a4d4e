"""`deltamem-mlx memories`: one command for each thing that is done to a memory file."""

import typer

from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.memories.ask import ask
from deltamem_mlx.cli.memories.change import copy, export, rename, take_in
from deltamem_mlx.cli.memories.look import list_all, show
from deltamem_mlx.cli.memories.remove import remove
from deltamem_mlx.cli.memories.undo import redo, undo
from deltamem_mlx.cli.options import memories as m
from deltamem_mlx.cli.options import shared as o

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    folder: m.Folder = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List, show, ask, rename, copy, undo, redo and remove memories; take them out and in.

    --memory NAME names one in a folder of yours; --folder is another, a server's for instance.
    Without a command, the memories are listed.
    """
    if ctx.invoked_subcommand is None:
        list_all(folder=folder, json=json)
    elif folder is not None or json:
        flag = "--json" if folder is None else "--folder"
        raise UsageError(
            f"{flag} comes after the command: memories {ctx.invoked_subcommand} … {flag}"
        )


app.command("list")(list_all)
app.command("show")(show)
app.command("ask")(ask)
app.command("rename")(rename)
app.command("copy")(copy)
app.command("undo")(undo)
app.command("redo")(redo)
app.command("remove")(remove)
app.command("export")(export)
app.command("import")(take_in)
