"""The house: imports run one way through the rooms, and nothing in it grows out of hand."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "deltamem_mlx"

# From the ground up. A room knows rooms of floors below its own, and none beside it.
FLOORS = (
    ("ops", "builtin", "problems", "_version"),
    ("files",),
    ("forms",),
    ("compat", "config", "hub", "ranks"),
    ("model", "text"),
    ("adapters",),
    ("memory", "training"),
    ("session", "bench"),
    ("inspection", "evals", "serve"),
    ("views", "training/course"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
SERVE_FLOORS = (
    ("errors", "settings", "metrics", "log", "page"),
    ("requests", "kept"),
    ("provider", "grammars"),
    ("memories",),
    ("turns",),
    ("batching",),
    ("serving",),
    ("http",),
    ("messages", "responses"),
    ("handler",),
    ("server",),
)
SERVE_FLOOR = {room: height for height, rooms in enumerate(SERVE_FLOORS) for room in rooms}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60


@cache
def parsed() -> dict[str, ast.Module]:
    """File, from the package's root → what is in it."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(name: str, node: ast.stmt) -> Iterator[str]:
    """The package's files that a statement of the file ``name`` imports."""
    if isinstance(node, ast.Import):
        targets = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        folder = ["deltamem_mlx", *Path(name).parent.parts]
        start = folder[: len(folder) - node.level + 1] if node.level else []
        module = [*start, *(node.module.split(".") if node.module else [])]
        targets = [[*module, alias.name] for alias in node.names]
    else:
        return
    for first, *rest in targets:
        if first == "deltamem_mlx":
            whole, parent = "/".join(rest), "/".join(rest[:-1])
            candidates = (f"{whole}.py", f"{whole}/__init__.py", f"{parent}.py")
            found = next((file for file in candidates if file in parsed()), None)
            yield found or (f"{parent}/__init__.py" if parent else "__init__.py")


@cache
def imports() -> dict[str, set[str]]:
    """File → those it imports, lazily and for types only included."""
    return {
        name: {file for node in ast.walk(tree) for file in imported(name, node)} - {name}
        for name, tree in parsed().items()
    }


def room(name: str) -> str:
    """The room of a file; one inside of another counts for itself, if it is named."""
    first, *rest = Path(name).parts
    inner = f"{first}/{rest[0]}" if rest else ""
    return inner if inner in FLOOR else first.removesuffix(".py")


def test_every_file_is_in_a_room_that_is_named() -> None:
    assert {room(name) for name in parsed()} <= set(FLOOR)


def test_imports_run_one_way_through_the_rooms() -> None:
    broken = [
        f"{name} ({room(name)}) imports {other} ({room(other)})"
        for name, others in imports().items()
        for other in sorted(others)
        if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert not broken, "\n".join(broken)


def test_imports_run_one_way_through_the_server() -> None:
    def place(name: str) -> str:
        return Path(name).parts[1].removesuffix(".py")

    inside = {name for name in parsed() if room(name) == "serve" and place(name) != "__init__"}
    assert {place(name) for name in inside} == set(SERVE_FLOOR)
    broken = [
        f"{name} imports {other}"
        for name in sorted(inside)
        for other in sorted(imports()[name] & inside)
        if place(name) != place(other) and SERVE_FLOOR[place(other)] >= SERVE_FLOOR[place(name)]
    ]
    assert not broken, "\n".join(broken)


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {name: set(others) for name, others in imports().items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    circle = [f"{name} imports {', '.join(sorted(o & left.keys()))}" for name, o in left.items()]
    assert not circle, "in a circle, or above one:\n" + "\n".join(circle)


def test_no_file_and_no_function_is_too_long() -> None:
    files = [
        f"{name}: {length} lines"
        for name in parsed()
        if (length := len((PACKAGE / name).read_text().splitlines())) > MOST_LINES
    ]
    functions = [
        f"{name}:{node.lineno} {node.name}: {length} lines"
        for name, tree in parsed().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1)
        > MOST_LINES_OF_A_FUNCTION
    ]
    assert not files + functions


def test_a_class_name_is_used_once() -> None:
    names = Counter(
        node.name
        for tree in parsed().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert not {name: count for name, count in names.items() if count > 1}


def test_no_module_hides_a_public_name() -> None:
    import deltamem_mlx as dm

    modules = {Path(name).stem for name in parsed() if len(Path(name).parts) == 1}
    assert not (modules | {room(name) for name in parsed()}) & set(dm.__all__)


def test_names_of_test_files_are_used_once() -> None:
    """pytest takes two files of one name for one."""
    found = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, n in found.items() if n > 1] == []
