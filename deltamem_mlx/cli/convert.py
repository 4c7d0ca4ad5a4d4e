"""`deltamem-mlx convert`: an adapter from one form to another."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.options import shared as o


class Form(StrEnum):
    """Forms that can be written; all three can be read."""

    MLX_LM = "mlx-lm"
    PUBLISHED = "published"


class NumberType(StrEnum):
    """What the numbers of an adapter may be stored as in every form."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The adapter: a local folder or a Hub repository.",
        show_default=False,
    ),
]
Target = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where to write it.", show_default=False)
]
To = Annotated[
    Form,
    typer.Option(
        "--form",
        help="mlx-lm: adapters.safetensors, as mlx-lm loads it; published: the .npz of the "
        "adapters on the Hub.",
    ),
]
Dtype = Annotated[
    NumberType | None,
    typer.Option(
        "--dtype", help="Round the numbers to this, or widen them.", show_default="as they are"
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an adapter that is in the folder already.")
]


@command(
    "deltamem-mlx convert declare-lab/delta-mem_qwen3_4b-instruct adapters/qwen3-4b",
    "deltamem-mlx convert adapters/qwen3-4b published/qwen3-4b --form published",
    "deltamem-mlx convert adapters/mine adapters/mine-small --dtype float16",
)
def convert(
    source: Source,
    folder: Target,
    form: To = Form.MLX_LM,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    json: o.Json = False,
) -> None:
    """Write an adapter in another form.

    Reads mlx-lm's form, the published .npz, and the authors' PyTorch form (that one needs
    pip install 'deltamem-mlx[torch]'). The numbers stay as they are, unless --dtype is given.
    """
    import mlx.core as mx

    from deltamem_mlx.adapters.loading import convert_adapter
    from deltamem_mlx.forms import MLX_LM, PUBLISHED, files_there

    if folder.is_file():
        raise UsageError(f"{str(folder)!r} is a file; expected a folder to write to.")
    there = files_there(folder)
    if there and not overwrite:
        raise UsageError(
            f"{str(folder)!r} holds an adapter already ({', '.join(there)}). Give another folder, "
            "or --overwrite."
        )
    adapter = convert_adapter(
        source,
        folder,
        form=form.value,
        dtype=None if dtype is None else getattr(mx, dtype.value),
        overwrite=overwrite,
    )
    base = adapter.base_name
    if form is Form.PUBLISHED and base:
        output.note(f"The published form does not say which model it is for. This one: {base}.")
    files = (MLX_LM if form is Form.MLX_LM else PUBLISHED).files
    if json:
        output.result_json({"folder": str(folder), "form": form.value, "files": list(files)})
    else:
        output.result("\n".join(str(folder / name) for name in files))
