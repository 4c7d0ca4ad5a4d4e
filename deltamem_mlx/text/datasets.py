"""Conversations to train on: from a folder, a file, or a dataset of the Hugging Face Hub."""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..hub import REPO_ID, looks_like_path, resolve
from ..problems import Problem, raise_problems
from .json_rows import JSON_SUFFIXES, Rows, json_rows, numbered
from .rows import EXPECTED, ConversationRow, conversation_of

_SPLITS = {
    "train": re.compile(r"train(ing)?([-_.].*)?", re.IGNORECASE),
    "valid": re.compile(r"(valid|validation|val|dev)([-_.].*)?", re.IGNORECASE),
    "test": re.compile(r"test([-_.].*)?", re.IGNORECASE),
}
_HUB_METADATA = re.compile(r"(dataset_infos?|dataset_dict|state|stats|config|.*_config)\.json")


class Splits(NamedTuple):
    """Conversations by use.

    Attributes:
        train, valid, test (list[ConversationRow]): ``test`` may be empty, and so may ``valid`` if
            there is only one conversation or none was to be held out.
        held_out (bool): ``valid`` was taken from the training rows, as there was no such file.
    """

    train: list[ConversationRow]
    valid: list[ConversationRow]
    test: list[ConversationRow]
    held_out: bool = False


def load_conversations(source: str | Path, *, seed: int = 0, valid_fraction: float = 0.1) -> Splits:
    """The conversations of ``--data``.

    Args:
        source (str or Path): A folder with ``train.jsonl`` and, if there are any, ``valid.jsonl``
            and ``test.jsonl`` (or ``.json``); one such file; or a dataset of the Hub, ``user/name``
            or ``user/name@revision``.
        seed (int): Which rows are held out.
        valid_fraction (float): The share of training rows held out for validation, at least one
            row, if the source has no validation part. 0: none.

    Returns:
        Splits: Rows in the order of the files.

    Raises:
        FileNotFoundError: No such file, folder or dataset, or no training file in it.
        ValueError: Rows cannot be used; each is named with file, line and field.
    """
    if not 0 <= valid_fraction < 1:
        raise ValueError(f"valid_fraction is {valid_fraction}; expected 0 or more and less than 1.")
    found: dict[str, list[ConversationRow]] = {}
    problems: list[str] = []
    for split, rows in _sources(source).items():
        found[split] = list(_conversations(rows, problems))
    raise_problems(problems, f"Rows of {str(source)!r} that cannot be used", EXPECTED)
    if not found.get("train"):
        raise ValueError(f"{str(source)!r} has no training rows. {EXPECTED}")
    if found.get("valid") or not valid_fraction:
        return Splits(found["train"], found.get("valid", []), found.get("test", []))
    train, valid = _hold_out(found["train"], seed, valid_fraction)
    return Splits(train, valid, found.get("test", []), held_out=bool(valid))


def _hold_out(
    rows: list[ConversationRow], seed: int, fraction: float
) -> tuple[list[ConversationRow], list[ConversationRow]]:
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    chosen = set(order[:count])
    related = [index for index in order if rows[index].related]
    if len(related) > 1 and chosen.isdisjoint(related):  # or nothing would be held out to remember
        chosen = {*order[: count - 1], related[0]}
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [rows[index] for index in sorted(chosen)]


def _sources(source: str | Path) -> dict[str, Rows]:
    """Split name to (where, row) pairs, none of them read yet."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_splits(_split_files(path.iterdir()), path)
    if path.is_file():
        return {"train": json_rows(path)}
    repo = REPO_ID.fullmatch(source) if isinstance(source, str) else None
    if repo is None or looks_like_path(repo["repo"]):
        raise FileNotFoundError(
            f"No file or folder {str(source)!r}. Expected a folder with train.jsonl, a .jsonl or "
            ".json file, or a Hub dataset as 'user/name' or 'user/name@revision'."
        )
    return _hub_sources(repo["repo"], repo["revision"])


def _read_splits(files: Mapping[str, list[Path]], folder: Path) -> dict[str, Rows]:
    if not files.get("train"):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise FileNotFoundError(
            f"No train.jsonl in {str(folder)!r}, only: {names}. Name the training file "
            "train.jsonl, or give the file itself."
        )
    return {split: _chain(paths) for split, paths in files.items()}


def _chain(paths: Iterable[Path]) -> Rows:
    for path in paths:
        yield from json_rows(path)


def _split_files(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each split by their names; .json files count where there is no .jsonl."""
    paths = sorted(path for path in paths if path.suffix.lower() in JSON_SUFFIXES)
    files: dict[str, list[Path]] = {}
    for split, pattern in _SPLITS.items():
        named = [path for path in paths if pattern.fullmatch(path.stem)]
        lines = [path for path in named if path.suffix.lower() == ".jsonl"]
        if named:
            files[split] = lines or named
    return files


def _hub_sources(repo: str, revision: str | None) -> dict[str, Rows]:
    name = f"{repo}@{revision}" if revision else repo
    # Every repository has .gitattributes: `resolve` does not fail where that is all it finds.
    wanted = ("*.jsonl", "*.json", "*.JSONL", "*.JSON", ".gitattributes")
    folder = resolve(name, allow_patterns=wanted, repo_type="dataset")
    paths = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in JSON_SUFFIXES and not _HUB_METADATA.fullmatch(path.name)
    ]
    files = _split_files(paths)
    if not files and len(paths) == 1:
        files = {"train": paths}
    return _read_splits(files, folder) if paths else _from_datasets(repo, revision)


def _from_datasets(repo: str, revision: str | None) -> dict[str, Rows]:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise ValueError(
            f"The Hub dataset {repo!r} has no .jsonl or .json files. Other kinds (parquet) need "
            "the datasets package: pip install datasets. Or convert it to train.jsonl yourself."
        ) from error
    loaded: Mapping[str, Iterable[object]] = datasets.load_dataset(repo, revision=revision)
    return {
        split: numbered(loaded[name], f"{repo}/{name}: row")
        for split, pattern in _SPLITS.items()
        for name in filter(pattern.fullmatch, loaded)
    }


def _conversations(rows: Rows, problems: list[str]) -> Iterator[ConversationRow]:
    """Yields the usable rows, and notes what is wrong with the others."""
    for where, row in rows:
        if isinstance(row, Problem):
            problems.append(f"{where}: {row.what}")
            continue
        found, wrong = conversation_of(row, where)
        problems += [": ".join(filter(None, (where, p.field, p.what))) for p in wrong]
        if found is not None:
            yield found
