"""What mkdocs does to the pages: links to files of the repository, and the reference's names."""

import inspect
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

import deltamem_mlx as dm

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """The page with its links out of ``docs/`` pointed at the repository."""
    if page.file.src_uri == "reference.md":
        markdown += "\n".join(_references())

    def pointed(link: re.Match[str]) -> str:
        if not (ROOT / link[1]).exists():
            raise PluginError(f"docs/{page.file.src_uri} links to {link[1]}, which is not there.")
        return f"]({config.repo_url}/blob/main/{link[1]})"

    return re.sub(r"\]\(\.\./([^)#]+)\)", pointed, markdown)


def _references() -> list[str]:
    lines = []
    for name in dm.__all__:
        value = getattr(dm, name)
        if inspect.isclass(value) or callable(value):
            _check_documented(name, value)
            lines.append(f"::: {value.__module__}.{value.__qualname__}\n")
    return lines


def _check_documented(name: str, value: object) -> None:
    """Raise if a public name, or a public method of it, has no docstring."""
    members = vars(value).items() if inspect.isclass(value) else ()
    public = {f"{name}.{key}": found for key, found in members if not key.startswith("_")}
    for place, found in {name: value, **public}.items():
        found = getattr(found, "__func__", found)
        if (callable(found) or isinstance(found, property)) and not found.__doc__:
            raise PluginError(f"dm.{place} has no docstring.")
