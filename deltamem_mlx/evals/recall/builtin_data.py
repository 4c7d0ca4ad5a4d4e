"""The built-in pair and what it is asked: evaluation episodes, the story of its demonstration."""

from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ... import builtin
from ...adapters.loading import load
from ...files import read_json
from ...text.messages import Message
from .episodes import RecallEpisode, read_episodes

EPISODES, STORY = "episodes.jsonl.gz", "story.json"


class Story(NamedTuple):
    """Two conversations about the same people, and questions about them.

    Attributes:
        tell (list[Message]): What is told.
        other (list[Message]): Another conversation, in which other values are told.
        questions (list[tuple[str, str]]): Question and, after ``tell``, the value in its answer.
    """

    tell: list[Message]
    other: list[Message]
    questions: list[tuple[str, str]]


def load_builtin(
    base: str | Path | None = None, adapter: str | Path | None = None
) -> tuple[nn.Module, TokenizerWrapper]:
    """The built-in pair, or other folders in its place, and the tokenizer.

    Raises:
        FileNotFoundError: If this copy of the package was made without it.
    """
    return load(str(base or builtin.base_folder()), adapter or builtin.adapter_folder())


def builtin_episodes() -> list[RecallEpisode]:
    """The episodes of the built-in pair.

    Raises:
        FileNotFoundError: If this copy of the package was made without them.
    """
    return read_episodes(_file(EPISODES))


def builtin_story() -> Story:
    """The story of the built-in pair's demonstration.

    Raises:
        FileNotFoundError: If this copy of the package was made without it.
    """
    values: dict[str, Any] = read_json(_file(STORY))
    pairs = [(row["question"], row["answer"]) for row in values["questions"]]
    return Story(values["tell"], values["other"], pairs)


def _file(name: str) -> Path:
    path = Path(builtin.__file__).parent / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} of the built-in demo pair is not in this copy of deltamem-mlx. Install it "
            "again: pip install --force-reinstall deltamem-mlx"
        )
    return path
