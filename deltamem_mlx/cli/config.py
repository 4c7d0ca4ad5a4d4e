"""`deltamem-mlx config`: what stands in where a command line says nothing."""

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options import shared as o


@command("deltamem-mlx config", "DELTAMEM_MEMORY=work deltamem-mlx config")
def config(json: o.Json = False) -> None:
    """Show your defaults, and where they and your memories lie.

    generate, chat, remember, serve, inspect and memories take them where the command line says
    nothing: from the environment (DELTAMEM_MODEL, DELTAMEM_ADAPTER, DELTAMEM_MEMORY; an empty one
    counts as no default), else from a file with lines such as 'model: user/repo', which you write
    yourself.

    Model, adapter and memory belong together: a command line that names a model or an adapter
    takes none of them from here.
    """
    from deltamem_mlx.cli.frame.defaults import KEYS, PAIR, as_flag, defaults
    from deltamem_mlx.files.places import defaults_file, memories_folder
    from deltamem_mlx.views.columns import fields

    found, file = defaults(), defaults_file()
    if json:
        values = {
            as_flag(key): {"value": default.text, "from": default.source}
            for key, default in found.items()
        }
        output.result_json(
            {"defaults": values, "file": str(file), "memories": str(memories_folder())}
        )
        return
    shown = {
        as_flag(key): f"{found[key].text}   (from {found[key].source})"
        if key in found
        else "not set"
        for key in KEYS
        if key in found or key in PAIR
    }
    there = "" if file.is_file() else " (not there yet)"
    places = {"file": f"{file}{there}", "memories": str(memories_folder())}
    output.result(fields(shown | places))
    if "memory" not in found:
        output.note("To set one: a line such as 'memory: work' in that file.")
