"""What the package imports is what it says that it needs."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED_OTHERWISE = {"yaml": "pyyaml", "markdown_it": "markdown-it-py"}
IMPORTED = ("torch", "plot", "eval", "structured")  # extras of the package itself


def declared(lists: list[list[str]]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", line)[0].lower() for lines in lists for line in lines}


def imported(files: list[Path]) -> dict[str, set[str]]:
    """Top-level module of others → the files that import it."""
    found: dict[str, set[str]] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules = [node.module]
            else:
                continue
            for module in modules:
                found.setdefault(module.partition(".")[0], set()).add(file.name)
    own = {*sys.stdlib_module_names, "deltamem_mlx"}
    return {module: where for module, where in found.items() if module not in own}


def distribution(module: str) -> str:
    return NAMED_OTHERWISE.get(module, module.replace("_", "-"))


def test_every_import_of_the_package_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    needed = declared([PROJECT["dependencies"], *(extras[extra] for extra in IMPORTED)])
    found = imported(sorted((ROOT / "deltamem_mlx").rglob("*.py")))
    missing = {m: files for m, files in found.items() if distribution(m) not in needed}
    assert not missing, f"imported, but not in pyproject.toml: {missing}"


def test_every_declared_dependency_is_imported() -> None:
    found = {distribution(m) for m in imported(sorted((ROOT / "deltamem_mlx").rglob("*.py")))}
    assert declared([PROJECT["dependencies"]]) <= found
