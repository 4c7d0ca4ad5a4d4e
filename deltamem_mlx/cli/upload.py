"""`deltamem-mlx upload`: an adapter to a repository of the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from deltamem_mlx.adapters.publish import Upload

Source = Annotated[
    Path,
    typer.Argument(metavar="ADAPTER", help="The folder of the adapter.", show_default=False),
]
Repo = Annotated[
    str,
    typer.Option("--repo", metavar="USER/NAME", help="Where to; made if it is missing."),
]
Branch = Annotated[
    str,
    typer.Option(
        "--revision", "--branch", metavar="BRANCH", help="The branch; made if it is missing."
    ),
]
Private = Annotated[
    bool,
    typer.Option(
        "--private", help="Make the repository private; refused if it is there and public."
    ),
]
Message = Annotated[str, typer.Option("--message", metavar="TEXT", help="Of the commit.")]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="USER/NAME",
        help="The model it was trained on, where the adapter does not say or names a folder.",
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license", metavar="ID", help="For the generated model card, such as apache-2.0."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be uploaded, and neither send nor ask."),
]


@command(
    "deltamem-mlx upload adapters/mine --repo USER/NAME --dry-run",
    "deltamem-mlx upload adapters/mine --repo USER/NAME --private",
    "deltamem-mlx upload adapters/mine --repo USER/NAME --base-model Qwen/Qwen3-4B-Instruct-2507 "
    "--license apache-2.0",
)
def upload(
    adapter: Source,
    repo: Repo,
    revision: Branch = "main",
    private: Private = False,
    message: Message = "Upload δ-mem adapter",
    base_model: BaseModel = None,
    license: License = None,
    dry_run: DryRun = False,
    json: o.Json = False,
) -> None:
    """Upload an adapter to the Hugging Face Hub.

    The adapter is checked first. Its settings and weights go up, nothing else of the folder, with
    its README.md as the model card; without one, a card is generated, which does not replace a card
    that the repository has.

    It takes a login that may write: hf auth login, or HF_TOKEN.
    """
    from deltamem_mlx.adapters.publish import check_repo, prepare, send

    for flag, name in (("--repo", repo), ("--base-model", base_model)):
        try:
            if name is not None:
                check_repo(name)
        except ValueError as error:
            raise UsageError(f"{flag}: {error}") from error
    empty = [flag for flag, x in (("--revision", revision), ("--message", message)) if not x]
    if empty:
        raise UsageError(f"{', '.join(empty)}: an empty text.")
    what = prepare(
        adapter,
        repo,
        branch=revision,
        private=private,
        message=message,
        license=license,
        base_model=base_model,
    )
    _note(what, license)
    values = {"repo": repo, "revision": revision, "private": private, "files": what.sizes}
    if dry_run:
        if json:
            output.result_json(values | {"message": message, "card": what.card})
        else:
            output.result(_shown(what))
        return
    sent = send(what)
    if sent.kept_card:
        output.note("The model card that the repository has stays as it is.")
    if json:
        output.result_json(values | {"url": sent.url, "commit": sent.commit})
    else:
        output.result(sent.url)


def _note(what: "Upload", license: str | None) -> None:
    if what.hidden_base is not None:
        output.note(
            f"The adapter names its base model by a folder, {what.hidden_base}: only the last name "
            "goes up. To say which model of the Hub that is: --base-model USER/NAME"
        )
    if what.card_is_own and license is not None:
        output.note("--license: the adapter has a README.md of its own, which stays as it is.")


def _shown(what: "Upload") -> str:
    """What a dry run prints: all that would go up."""
    width = max(map(len, what.sizes))
    files = [f"  {name:<{width}}  {size:>13,} bytes" for name, size in what.sizes.items()]
    kind = "private" if what.private else "public if it is new"
    card = "of the folder" if what.card_is_own else "generated, unless the repository has one"
    return "\n".join(
        [
            f"Repository: {what.repo} ({kind}), branch {what.branch}",
            f"Commit message: {what.message}",
            f"Files: {sum(what.sizes.values()):,} bytes",
            *files,
            f"README.md ({card}):",
            "",
            what.card.rstrip("\n"),
        ]
    )
