"""`deltamem-mlx demo`: the built-in pair remembers what its context has lost."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.progress import answering
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from deltamem_mlx.evals.recall.builtin_data import Story
    from deltamem_mlx.evals.recall.demo import Told

EACH = 32
MAX_TOKENS = 16  # the pair's answers have ten words at most

HEADINGS = {
    "memory": "with memory",
    "none": "without memory",
    "foreign": "with another's memory",
}
NEXT = (
    "With a real model:  deltamem-mlx chat --model mlx-community/Qwen3-4B-Instruct-2507-4bit "
    "--adapter ofthetrees/delta-mem-qwen3-4b-instruct-mlx-adapter"
)


Words = Annotated[
    bool,
    typer.Option("--words", help="Say how to speak to the pair instead: its patterns and words."),
]


@command("deltamem-mlx demo", "deltamem-mlx demo --words")
def demo(words: Words = False, json: o.Json = False) -> None:
    """Show on the built-in pair what a memory does; needs no network and about a minute.

    A small model is told about several people, and the context is dropped. It is then asked with
    its memory, without, and with the memory of another conversation. A short evaluation follows.
    """
    if words:
        _show_words(json)
    else:
        show(as_json=json)


def _show_words(as_json: bool) -> None:
    from deltamem_mlx.builtin.phrasebook import patterns, small_talk, words
    from deltamem_mlx.views.columns import table

    if as_json:
        output.result_json(
            {"patterns": patterns(), "words": words(), "small_talk": small_talk()},
        )
        return
    output.result(table(["<Tell it", "<ask it"], patterns()))
    output.result("\nAll in small letters. To tell it that something has changed: actually , …\n")
    for name, listed in words().items():
        output.result(f"{name}: {' '.join(listed)}")
    output.result(f"\nSmall talk: {' | '.join(small_talk())}")


def show(
    base: Path | None = None,
    adapter: Path | None = None,
    *,
    each: int = EACH,
    as_json: bool = False,
) -> None:
    """Runs the demonstration and prints it as it goes.

    Args:
        base, adapter (Path): Other folders in place of the built-in pair's.
        each (int): Questions of each kind in the evaluation.
        as_json (bool): One JSON document instead.
    """
    began = time.perf_counter()
    from deltamem_mlx.evals.recall.builtin_data import builtin_episodes, builtin_story, load_builtin
    from deltamem_mlx.evals.recall.demo import CELLS, CONDITIONS, short_scores, tell_story
    from deltamem_mlx.evals.runner import Runner

    runner = Runner(*load_builtin(base, adapter), batch_size=EACH, max_tokens=MAX_TOKENS)
    story, episodes = builtin_story(), builtin_episodes()
    told = tell_story(runner, story)
    if not as_json:
        _show_story(story, told)
    with answering(each * len(CELLS) * len(CONDITIONS)) as on_answers:
        cells = short_scores(runner, episodes, each, on_answers)
    seconds = time.perf_counter() - began
    if as_json:
        output.result_json(
            {
                "tell": story.tell,
                "other": story.other,
                "answers": [answer._asdict() for answer in told.answers],
                "memory_bytes": told.memory_bytes,
                "cells": cells,
                "seconds": round(seconds, 1),
            }
        )
        return
    _show_scores(cells)
    output.note(f"Took {seconds:.0f} s.")


def _show_story(story: "Story", told: "Told") -> None:
    from rich.markup import escape

    from deltamem_mlx.views.scores import as_text, table

    said = table("Told to the model", "and, in another conversation", left=2)
    ours, theirs = (_said(messages) for messages in (story.tell, story.other))
    for i in range(max(len(ours), len(theirs))):
        cells = (escape(texts[i]) if i < len(texts) else "" for texts in (ours, theirs))
        said.add_row(*cells)
    output.result(as_text(said))
    size = f"{told.memory_bytes:,} bytes"
    output.result(f"\nThe context is dropped. What is left is a memory of {size}. Now asked:\n")
    asked = table("Question", *HEADINGS.values(), left=4)
    for answer in told.answers:
        row = [_marked(answer.said[name], answer.correct[name]) for name in HEADINGS]
        asked.add_row(escape(answer.question), *row)
    output.result(as_text(asked))


def _said(messages: list) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


def _marked(said: str, correct: bool) -> str:
    from rich.markup import escape

    return f"[green]✓[/] {escape(said)}" if correct else f"[dim]✗ {escape(said)}[/]"


def _show_scores(cells: list) -> None:
    from deltamem_mlx.views.scores import as_text, table

    made = table("Answered correctly", "questions", *HEADINGS.values())
    for cell in cells:
        shares = [cell["conditions"].get(name) for name in HEADINGS]
        row = [f"{100 * share['accuracy']:.0f} %" if share else "–" for share in shares]
        made.add_row(_name(cell), str(cell["questions"]), f"[bold green]{row[0]}[/]", *row[1:])
    output.result("\n" + as_text(made))
    output.result("\nMore, with intervals:  deltamem-mlx eval recall")
    output.result(NEXT)


def _name(cell: dict) -> str:
    count = f"{cell['facts']} fact{'s' if cell['facts'] > 1 else ''}"
    return {
        "updated": f"one of {count} changed later",
        "never": f'asked beyond {count}: "I do not know"',
    }.get(cell["kind"], f"{count} told")
