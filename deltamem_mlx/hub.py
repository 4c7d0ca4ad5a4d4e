"""Names to folders: a local folder, or a repository of the Hugging Face Hub.

Downloads are huggingface_hub's own, so its progress bars, its cache and its environment variables
(`HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`) work as they do everywhere else. Its
exceptions come back as FileNotFoundError, PermissionError or ConnectionError, in one sentence.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from deltamem_mlx._version import __version__
from deltamem_mlx.forms import ADAPTER_NAMES

# What mlx-lm fetches of a model.
MODEL_FILES = (
    "*.json",
    "*.jsonl",
    "*.jinja",
    "*.txt",
    "*.py",
    "*.tiktoken",
    "tiktoken.model",
    "tokenizer.model",
    "model*.safetensors",
)
# By their names: a model's weights are not fetched where its name stands in an adapter's place, and
# by its settings it is known to be one.
ADAPTER_FILES = (*ADAPTER_NAMES, "config.json")

FILE_SUFFIXES = {
    *(".safetensors", ".npz", ".npy", ".pt", ".pth", ".bin", ".gguf", ".zip"),
    *(".json", ".jsonl", ".yaml", ".yml", ".txt", ".csv", ".parquet", ".py"),
}
REPO_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[^@\s]+))?")
# In an address: all up to the last @ before the path, and all after a question mark.
_LOGIN = re.compile(r"\b([a-zA-Z][\w+.-]*://)[^/\s?#]*@")
_QUERY = re.compile(r"\b([a-zA-Z][\w+.-]*://[^\s?#]*)[?#][^\s'\")>]*")
EXPECTED = "Expected a local folder, or a Hub repository as 'user/repo' or 'user/repo@revision'."


def resolve(
    name_or_path: str | Path,
    *,
    allow_patterns: Sequence[str] | None = None,
    repo_type: str = "model",
) -> Path:
    """The local folder behind a name, downloaded from the Hub where the name is a repository.

    Args:
        name_or_path (str): A local folder, which always wins; else ``user/repo`` or
          ``user/repo@revision``, the revision being a branch, a tag or a commit. A ``Path``, and a
          string that looks like a path, never reach the Hub.
        allow_patterns (Sequence[str]): Globs of the files to fetch. Default: all. A local folder
          is returned as it is.
        repo_type (str): ``model`` or ``dataset``.

    Returns:
        Path: The folder.

    Raises:
        FileNotFoundError: If there is no such folder, repository, revision or file, or it is not
          cached while offline.
        PermissionError: If the repository is gated, or the login is not good for it.
        ConnectionError: If the Hub does not answer and nothing is cached.
    """
    folder = _expanded(name_or_path)
    # An empty name, say an unset shell variable, is not the current folder.
    if folder.is_dir() and str(name_or_path):
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{str(name_or_path)!r} is a file. {EXPECTED}")
    found = REPO_ID.fullmatch(name_or_path) if isinstance(name_or_path, str) else None
    if found is None or looks_like_path(found["repo"]):
        raise FileNotFoundError(f"No folder {str(name_or_path)!r}. {EXPECTED}")
    return _download(found["repo"], found["revision"], allow_patterns, repo_type)


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name of nobody
        return Path(path)


def looks_like_path(name: str) -> bool:
    """Whether a name can only mean something on this disk, by its looks alone."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or _has_file_suffix(name)


def _has_file_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in FILE_SUFFIXES


def _download(
    repo: str, revision: str | None, allow_patterns: Sequence[str] | None, repo_type: str
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            repo,
            revision=revision,
            repo_type=repo_type,
            allow_patterns=list(allow_patterns) if allow_patterns else None,
            library_name="deltamem-mlx",
            library_version=__version__,
        )
    except Exception as error:
        said = translate(error, repo, revision, repo_type)
        if said is error:
            raise
        raise said from error
    folder = Path(snapshot)
    if not folder.is_dir() or not any(folder.iterdir()):
        wanted = ", ".join(allow_patterns or ["any file"])
        raise FileNotFoundError(f"The Hub repository {repo!r} has none of the files: {wanted}.")
    return folder


def translate(
    error: Exception,
    repo: str | None = None,
    revision: str | None = None,
    repo_type: str = "model",
) -> Exception:
    """A failure of huggingface_hub as a builtin exception that says what to do.

    Args:
        error (Exception): What was raised; returned as it is when it did not come from the Hub.
        repo, revision, repo_type (str): What was asked for, where the caller knows.
    """
    from huggingface_hub import constants, errors

    repo = repo or getattr(error, "repo_id", None)
    name = repr(repo) if repo else "the repository"
    cache = constants.HF_HUB_CACHE
    page = f"{endpoint()}/{'datasets/' if repo_type == 'dataset' else ''}{repo or ''}"

    match error:
        case errors.GatedRepoError():
            return PermissionError(
                f"{name} is gated. Ask for access at {page}, then log in: hf auth login"
            )
        case errors.RepositoryNotFoundError():
            return FileNotFoundError(
                f"{name} is neither a local folder nor a {repo_type} repository at {endpoint()}. "
                "Check the name; a private repository needs a login first: hf auth login"
            )
        case errors.RevisionNotFoundError():
            return FileNotFoundError(
                f"{name} has no revision {revision!r}. Its branches and tags are listed at {page}"
            )
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            if _is_offline():
                return FileNotFoundError(
                    f"{name} is not complete in the local cache {cache}, and HF_HUB_OFFLINE is "
                    "set. Unset it to download, or give a local folder."
                )
            return ConnectionError(_unreachable(name, cache, error))
        case errors.EntryNotFoundError():
            return FileNotFoundError(f"A file of {name} is missing on the Hub: {first_line(error)}")
        case errors.HFValidationError():
            return ValueError(f"{name} is no repository name. {EXPECTED}")
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return PermissionError(
                f"{endpoint()} does not let this login see {name}. Log in again: hf auth login"
            )
        case errors.HfHubHTTPError():
            said = first_line(error)
            return ConnectionError(f"{endpoint()} failed on {name}: {said} Try again later.")
    if is_from_network(error):
        return ConnectionError(_unreachable(name, cache, error))
    return error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _unreachable(name: str, cache: str, error: Exception) -> str:
    cause = error.__cause__ or error
    return (
        f"{endpoint()} could not be reached, and {name} is not in the local cache {cache}. Check "
        f"the connection and HF_ENDPOINT, or give a local folder. ({first_line(cause)})"
    )


def is_from_network(error: BaseException) -> bool:
    """Whether an exception is one of the libraries that huggingface_hub talks through."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")


def endpoint() -> str:
    """The address of the Hub, as messages may show it."""
    from huggingface_hub import constants

    return without_secrets(constants.ENDPOINT)


def first_line(error: object) -> str:
    """The first line of a message that goes on for a page, as messages may show it."""
    return without_secrets(str(error).strip().partition("\n")[0])


def without_secrets(text: str) -> str:
    """A text without the user names, passwords and queries that addresses in it have."""
    return _QUERY.sub(r"\1", _LOGIN.sub(r"\1", text))
