"""An adapter to a repository of the Hugging Face Hub: what would go up, and sending it.

Logins and transfers are huggingface_hub's own, so ``hf auth login``, ``HF_TOKEN``, ``HF_ENDPOINT``
and its progress bars work as they do everywhere else.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .._version import __version__
from ..files import read_json
from ..forms import ADAPTER_NAMES, MLX_LM, form_in
from ..hub import REPO_ID, endpoint
from ..model.names import public_name
from .card import model_card
from .check import check_tensors
from .files import AdapterFiles, read_adapter
from .publish_errors import said

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
MESSAGE = "Upload δ-mem adapter"
MAIN = "main"


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub.

    Args:
        repo (str): ``user/name``.
        branch (str): Made if it is missing.
        private (bool): Whether a repository that is not there yet is made private.
        message (str): Of the commit.
        files (dict[str, Path | bytes]): Name in the repository → the file here, or its content
          where that differs from any file.
        card_is_own (bool): Whether the model card is the folder's own, not a generated one.
        hidden_base (str): The local path of the base model, where a name went up in its place.
    """

    repo: str
    branch: str
    private: bool
    message: str
    files: dict[str, Path | bytes]
    card_is_own: bool
    hidden_base: str | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """File → bytes."""
        return {name: _size(content) for name, content in self.files.items()}

    @property
    def card(self) -> str:
        """The text of the model card."""
        card = self.files[CARD]
        content = card if isinstance(card, bytes) else card.read_bytes()
        return content.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Sent:
    """Where an upload is to be found.

    Args:
        url (str): Page of the repository, or of its branch.
        commit (str): Forty hex digits.
        kept_card (bool): Whether a card that was there was left as it is.
    """

    url: str
    commit: str
    kept_card: bool


def check_repo(repo: str) -> None:
    """Raise ValueError unless the Hub could have a repository ``user/name`` of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    found = REPO_ID.fullmatch(repo)
    if found is None or found["revision"]:
        raise ValueError(f"{repo!r} is no repository name; expected USER/NAME.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no repository name: {error}") from error


def prepare(
    folder: str | Path,
    repo: str,
    *,
    branch: str = MAIN,
    private: bool = False,
    message: str = MESSAGE,
    license: str | None = None,
    base_model: str | None = None,
) -> Upload:
    """Check the adapter in a local folder and collect what is to be uploaded; nothing is sent.

    These are the files that make the adapter, and a model card: the folder's README.md, else a
    generated one. A base model that is a folder of this machine goes up by its last name only.

    Args:
        folder (Path): A local folder with an adapter in any form.
        repo (str): ``user/name``.
        branch, private, message: As in ``Upload``.
        license (str): For a generated card.
        base_model (str): The base model's name on the Hub. Default: as the adapter has it.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no adapter.
        ValueError: If the adapter is damaged, or a name is none that the Hub could have.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {str(folder)!r}. Expected the folder of an adapter.")
    for name in (repo, base_model):
        if name is not None:
            check_repo(name)
    adapter = read_adapter(folder)
    check_tensors(adapter)
    given = adapter.base_name
    name = base_model or public_name(given)
    adapter = replace(adapter, base_model=adapter.base_model | ({"name": name} if name else {}))
    files: dict[str, Path | bytes] = {file: folder / file for file in form_in(folder).files}
    if MLX_LM.config in files and name != given:
        files[MLX_LM.config] = _config_with(adapter)
    own = folder / CARD
    if own.is_file():
        files[CARD] = own
    else:
        sizes = {file: _size(content) for file, content in files.items()}
        shown = branch if branch != MAIN else None
        card = model_card(adapter, repo, sizes, branch=shown, license=license)
        files[CARD] = card.encode()
    hidden = given if given and name != given and base_model is None else None
    return Upload(repo, branch, private, message, files, own.is_file(), hidden)


def send(upload: Upload) -> Sent:
    """Make the repository and the branch if they are missing, and commit all files at once.

    A generated card does not replace one that the branch has.

    Raises:
        PermissionError: If nobody is logged in, or may not write there, or a repository that should
          be private is public.
        ValueError: If the branch holds an adapter in another form, or the Hub refuses the files.
        ConnectionError: If the Hub does not answer.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise PermissionError(
            "Nobody is logged in to the Hub. Log in with a token that may write: hf auth login"
        )
    try:
        return _send(HfApi(library_name="deltamem-mlx", library_version=__version__), upload)
    except Exception as error:
        sentence = said(error, upload.repo)
        if sentence is error:
            raise
        raise sentence from error


def _send(api: "HfApi", upload: Upload) -> Sent:
    from huggingface_hub import CommitOperationAdd

    repo, branch = upload.repo, upload.branch
    api.create_repo(repo, private=upload.private or None, exist_ok=True)
    if upload.private and not api.model_info(repo).private:
        raise PermissionError(
            f"{repo!r} is there already, and public: nothing was uploaded. Make it private at "
            f"{endpoint()}/{repo}/settings, or leave --private out."
        )
    if branch != MAIN:
        api.create_branch(repo, branch=branch, exist_ok=True)
    there = set(api.list_repo_files(repo, revision=branch))
    # With two of them in a folder it would not be clear which is meant.
    others = (there & {*ADAPTER_NAMES}) - upload.files.keys()
    if others:
        raise ValueError(
            f"{repo!r} holds an adapter in another form on the branch {branch!r} "
            f"({', '.join(sorted(others))}). Delete those files there, or give another branch "
            "or repository."
        )
    kept = CARD in there and not upload.card_is_own
    files = {name: x for name, x in upload.files.items() if not (kept and name == CARD)}
    commit = api.create_commit(
        repo,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=upload.message,
        revision=branch,
    )
    page = f"{endpoint()}/{repo}"
    return Sent(page if branch == MAIN else f"{page}/tree/{branch}", commit.oid, kept)


def _config_with(adapter: AdapterFiles) -> bytes:
    values = read_json(adapter.folder / MLX_LM.config) | {"base_model": adapter.base_model}
    return (json.dumps(values, indent=2) + "\n").encode()


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
