"""Running text and code that every Python has: its standard library.

`pydoc_data`, on which perplexity is measured, is left out.
"""

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from .beginnings import begun
from .language import Turn

PROMPT, REPLY = 160, 160  # characters of a passage's two parts, at most
MOST = 1200  # characters of a function, at most
ASKED = ("Continue: {}", "Please go on: {}", "What comes next? {}", "{}", "{}", "{}")
LEFT_OUT = {"site-packages", "test", "pydoc_data"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


class Library:
    """Text and code of some modules.

    Args:
        rng (random.Random): Chooses them.
        count (int): How many modules.

    Attributes:
        texts (list[str]): Paragraphs of running text.
        code (list[str]): Functions.
    """

    def __init__(self, rng: random.Random, count: int = 60):
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(p for p in root.rglob("*.py") if not LEFT_OUT & {*p.relative_to(root).parts})
        chosen = rng.sample(files, min(count, len(files)))
        modules = [_parsed(file) for file in chosen]
        texts = (text for _, tree in modules for text in paragraphs(tree))
        self.texts = list(dict.fromkeys(texts))
        self.code = [text for source, tree in modules for text in functions(source, tree)]


def paragraphs(tree: ast.AST) -> Iterator[str]:
    """Running text in the documentation of a module; code, tables and lists are left out."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            for part in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(part.split())
                plain = sum(c.isalpha() or c in " ,.'" for c in text) > 0.95 * len(text)
                if len(text) >= PROMPT and plain and text[0].isupper() and text[-1] in ".!?":
                    yield text


def functions(source: str, tree: ast.AST) -> Iterator[str]:
    """Functions of a module as they stand there."""
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno]).strip()
            if 200 < len(text) < MOST:
                yield text


def _parsed(file: Path) -> tuple[str, ast.AST]:
    try:
        source = file.read_text(encoding="utf-8")
        return source, ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError):  # some are there to test the parser
        return "", ast.parse("")


def passage(text: str, rng: random.Random) -> Turn:
    """The beginning of a text as what is said, and what follows as the reply."""
    cut = text.rindex(" ", 0, rng.randint(60, min(PROMPT, len(text) - 40)))
    return rng.choice(ASKED).format(text[:cut]), begun(text[cut + 1 :], REPLY)
