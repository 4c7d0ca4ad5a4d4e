"""Benchmark data: a local file, a folder, or a dataset repository of the Hub."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import checked_file, json_lines, parse_json, read_text
from ...hub import resolve
from ...problems import first_few, raise_problems, shortened, unusable_parts

Rows = list[Mapping[str, Any]]

MOST_BYTES = 4 << 30  # many times the largest of these benchmarks


def data_files(name: str, patterns: Sequence[str]) -> list[Path]:
    """The files behind a name: the file itself, or those of a folder or dataset repository.

    Args:
        name (str): A file, a folder, or ``user/repo`` or ``user/repo@revision`` on the Hub.
        patterns (Sequence[str]): Globs of the files that are wanted of a folder or repository.

    Raises:
        FileNotFoundError: If there is no such file, folder or repository, or none of the files.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.suffix.lower() in READERS:
        raise FileNotFoundError(f"No file {name!r}. Check the path.")
    folder = resolve(name, allow_patterns=patterns, repo_type="dataset")
    found = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if not found:
        raise FileNotFoundError(
            f"{name!r} has none of the files {', '.join(patterns)}. Name the file itself."
        )
    return found


def read_rows(path: Path) -> Rows:
    """The objects in a .json (a list), .jsonl or .parquet file.

    Raises:
        ValueError: If the file cannot be read, is of another kind, or holds other things.
        ModuleNotFoundError: If a .parquet file is read without pyarrow (the ``eval`` extra).
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path} is no data file. Expected one ending in {', '.join(READERS)}.")
    rows = read(path)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no rows. Expected a list of objects.")
    wrong = [i for i, row in enumerate(rows) if not isinstance(row, Mapping)]
    if wrong:
        raise ValueError(
            f"{path}: row {wrong[0]} is {type(rows[wrong[0]]).__name__}, not an object."
        )
    return rows


def _json(path: Path) -> object:
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is {error}. Fetch it again.") from None


def _json_lines(path: Path) -> object:
    rows = list(json_lines(path))
    for line in rows:
        if line.wrong:
            raise ValueError(f"{path}:{line.number} is {line.wrong}. Fetch it again.")
    return [line.value for line in rows]


def _parquet(path: Path) -> object:
    import pyarrow  # optional: the `eval` extra
    from pyarrow import parquet

    checked_file(path, MOST_BYTES)
    rows: Rows = []
    size = 0  # of what the rows unpack to: equal texts are stored once
    try:
        # ParquetFile, not read_table: that would look for a dataset in the path's folders.
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            size += batch.nbytes
            if size > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes.")
            rows += batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        said = shortened(str(error).partition("\n")[0], 200)[1:-1].rstrip(".")
        raise ValueError(f"{path} cannot be read as parquet: {said}. Fetch it again.") from error
    for i, row in enumerate(rows):
        for field, why in unusable_parts(row):
            raise ValueError(f"{path}: row {i}: {field.lstrip('.')} {why}.")
    return rows


READERS = {".json": _json, ".jsonl": _json_lines, ".parquet": _parquet}


def raise_duplicates(places: Iterable[tuple[str, str]]) -> None:
    """Raise one ValueError if an id is there twice: answers would be counted under one of them.

    Args:
        places (Iterable[tuple[str, str]]): Each id, and the file and row that has it.
    """
    first: dict[str, str] = {}
    problems = []
    for name, place in places:
        if name in first:
            problems.append(f"{place}: id {shortened(name)} is also that of {first[name]}")
        first.setdefault(name, place)
    raise_problems(problems, "Ids that are there twice", "Give every row an id of its own.")


def raise_schema(path: Path, problems: Iterable[str], expected: str) -> None:
    """Raise one ValueError that lists problems with a file's rows, if there are any."""
    problems = list(problems)
    if problems:
        shown = "\n  ".join(first_few(problems, 10))
        raise ValueError(f"{path} has another schema:\n  {shown}\n{expected}")
