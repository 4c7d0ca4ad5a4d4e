"""Write passages of plain text to be continued: the documentation in Python's standard library.

    python examples/smollm2_adapter/make_passages.py build/smollm2/passages.jsonl --count 600

Training on them beside facts keeps a memory from meddling with text that it has nothing to say to:
``make_data.py --talk`` mixes them in. Any Python has them; `pydoc_data.topics`, on which
`deltamem-mlx eval perplexity` was run, is not among them.
"""

import argparse
import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from make_data import Message, messages_of, write_rows

PROMPT, REPLY = 160, 240  # characters, at most
ASKED = ("Continue: {}", "Please go on: {}", "What comes next? {}", "{}", "{}", "{}")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def paragraphs(file: Path) -> Iterator[str]:
    """Running text in the documentation of a module; code, tables and lists are left out."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # files that test the parser
        return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            for part in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(part.split())
                plain = sum(c.isalpha() or c in " ,.'" for c in text) > 0.95 * len(text)
                if len(text) >= PROMPT and plain and text[0].isupper() and text[-1] in ".!?":
                    yield text


def turn(text: str, rng: random.Random) -> list[Message]:
    """The beginning of a text as what is said, and what follows as the reply."""
    cut = text.rindex(" ", 0, rng.randint(60, min(PROMPT, len(text) - 40)))
    rest = text[cut + 1 :]
    if len(rest) > REPLY:
        rest = rest[: rest.rindex(" ", 0, REPLY)]
    said = rng.choice(ASKED).format(text[:cut])
    return messages_of([(said, rest)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--count", type=int, default=600, help="passages")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in library.rglob("*.py") if not {"site-packages", "test"} & {*p.parts})
    found = list(dict.fromkeys(text for file in files for text in paragraphs(file)))
    rng = random.Random(args.seed)
    rng.shuffle(found)
    passages = [turn(text, rng) for text in found[: args.count]]
    write_rows(args.out, passages)
    print(f"wrote {len(passages)} of {len(found)} passages to {args.out}")


if __name__ == "__main__":
    main()
