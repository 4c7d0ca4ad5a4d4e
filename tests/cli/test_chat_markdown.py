"""`chat --markdown`: an answer laid out while it comes, and nothing in it does anything."""

import sys

import pexpect
import pyte
import pytest
from conftest import ROOT

from deltamem_mlx.cli.chat.markdown import blocks

ANSWER = """# Title

**Bold**, [red]no colour[/red], <script>alert(1)</script>, a [link](https://example.org/x).

```python
import os

os.system("rm -rf /")
```

| a | b |
|---|---|
| 1 | 2 |

[here]: https://example.org/y

The end."""

# Waits for a line on standard input after each part, so that what is shown then can be looked at.
WRITER = """
import sys
from rich.console import Console
from deltamem_mlx.cli.chat.markdown import MarkdownAnswer
answer = MarkdownAnswer(Console())
for part in sys.argv[1:]:
    for letter in part:
        answer.add(letter)
    input()
answer.end()
"""


def test_in_a_terminal_what_has_ended_is_laid_out_and_the_rest_is_there_as_it_comes() -> None:
    before, middle, after = ANSWER.partition("os.system")
    screen = pyte.Screen(70, 40)
    stream = pyte.ByteStream(screen)
    child = pexpect.spawn(
        sys.executable,
        ["-c", WRITER, before + middle, after],
        env={"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
        dimensions=(40, 70),
        echo=False,
    )

    def shown() -> list[str]:
        return [line.rstrip() for line in screen.display if line.strip()]

    while not shown() or shown()[-1] != "os.system":
        stream.feed(child.read_nonblocking(1 << 16, 60))
    title, *rest = shown()
    assert title.strip() == "Title"
    assert " ".join(rest[:2]) == (
        "Bold, [red]no colour[/red], <script>alert(1)</script>, a link (https://example.org/x)."
    )
    assert rest[2:] == ["```python", "import os", "os.system"]
    child.sendline("")
    child.sendline("")
    while child.isalive() or not shown() or shown()[-1] != "The end.":
        try:
            stream.feed(child.read_nonblocking(1 << 16, 60))
        except pexpect.EOF:
            break
    code = [" import os", ' os.system("rm -rf /")']
    table = [" a  b", " ────", " 1  2"]
    assert shown()[3:] == [*code, *table, "[here]: https://example.org/y", "The end."]
    bold = screen.buffer[2]
    assert [bold[column].bold for column in (0, 3, 4)] == [True, True, False]


@pytest.mark.parametrize(
    "text, done",
    [
        ("one\n\ntwo", 1),
        ("one\n\n", 0),
        ("one\n\n\n \ntwo\n\nthree", 2),
        ("1. one\n\n   more\n\n2. two", 1),
        ("```\na\n\nb\n```\n\nc", 1),
        ("````\n```\n\na\n````\n\nb", 1),
        ("~~~\n```\n\na", 0),
        ("```x``` is code\n\na", 1),
        ("", 0),
        ("\n\n\n", 0),
    ],
)
def test_a_block_ends_where_the_next_begins(text: str, done: int) -> None:
    found, rest = blocks(text)
    assert len(found) == done
    assert "".join(found) + rest == text
    pieces, left = [], ""
    for letter in text:
        more, left = blocks(left + letter)
        pieces += more
    assert (pieces, left) == (found, rest)
