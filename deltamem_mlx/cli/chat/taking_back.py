"""What of a chat is taken back: its last turns, its last answer, all of it."""

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.chat.keeping import Keeping

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deltamem_mlx.session.undoable import UndoableTurn

_SHOWN = 40  # characters of what a turn said


class TakingBack(Keeping):
    """`/undo`, `/redo`, `/retry`, `/edit` and `/reset`."""

    def __init__(self, *args: Any, sampling: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sampling = sampling or {"temp": 0.0}

    def undo(self, argument: str) -> None:
        """Take the last turns back; asks before one of an earlier chat goes."""
        if argument and not argument.isdecimal():
            raise ValueError("Expected /undo, or /undo N for so many turns.")
        turns = int(argument or 1)
        gone = self.session.undoable()[:turns]
        earlier = sum(turn["earlier"] for turn in gone)
        if earlier and self.saves and turns == len(gone):
            what = "That is a turn" if turns == 1 else f"{earlier} of these {turns} turns are"
            what = f"1 of these {turns} turns is" if earlier == 1 < turns else what
            if not self.may("/undo", argument, f"{what} of an earlier chat ({_tokens(gone)})."):
                return
        self.session.undo(turns)
        self.keep()
        what = f"{turns} turn{'s' * (turns != 1)}"
        if turns == 1 and (said := _said(gone[0])):
            what += f" ({said})"
        elif earlier:
            what += f" ({earlier} of an earlier chat)"
        more = self.session.stats()["undo_turns"]
        self.ui.done("undone", f"{what}, {_tokens(gone)}; {more} more can be; /redo puts it back")

    def redo(self, _: str) -> None:
        """Put back all that was taken back since the last turn."""
        turns = self.session.redo()
        self.keep()
        back = self.session.undoable()[:turns]
        what = f"{turns} turn{'s' * (turns != 1)}"
        if turns == 1 and (said := _said(back[0])):
            what += f" ({said})"
        self.ui.done("put back", f"{what}, {_tokens(back, 'go')}")

    def retry(self, _: str) -> None:
        """The last question again."""
        self._check_last("/retry")
        before = _last_answer(self.session.messages)
        taken = self.session.undo()
        with self._in_place_of_the_last():
            self.answer(taken)
        if _last_answer(self.session.messages) == before:
            self.ui.say(f"the same answer: {_why_the_same(self.sampling['temp'])}", "muted")

    def temp(self, argument: str) -> None:
        """Say or change the temperature."""
        from mlx_lm.sample_utils import make_sampler

        if argument:
            try:
                temp = float(argument)
            except ValueError:
                temp = -1.0
            if not 0 <= temp < float("inf"):
                raise ValueError(f"/temp {argument}: expected a number from 0 on, such as 0.7.")
            self.sampling = self.sampling | {"temp": abs(temp)}
            self.generation = {**self.generation, "sampler": make_sampler(**self.sampling)}
        temp = self.sampling["temp"]
        what = "always the likeliest answer" if temp == 0 else "answers vary"
        self.ui.done("temperature", f"{temp:g}: {what}")

    def edit(self, argument: str) -> None:
        """Another question in place of the last one."""
        if not argument:
            raise ValueError("Expected /edit TEXT: what the last message is to be instead.")
        self._check_last("/edit")
        self.session.undo()
        with self._in_place_of_the_last():
            self.ask(argument)

    def _check_last(self, name: str) -> None:
        """Raise ValueError unless the last turn was a question of this chat."""
        if not self.session.stats()["turns"]:
            raise ValueError("There is no question yet in this chat; /undo goes back before it.")
        last = self.session.undoable()[:1]
        if last and not last[0]["answered"]:
            raise ValueError(f"The last turn was no question: /undo takes it back, then {name}.")

    @contextmanager
    def _in_place_of_the_last(self) -> "Iterator[None]":
        """The turn that was taken back last is there again if none has come in its place."""
        try:
            yield
        finally:
            back = 0
            with suppress(ValueError):  # one has
                back = self.session.redo()
            if back > 1:
                self.session.undo(back - 1)  # those were taken back before
            if back:
                self.keep()
                self.ui.say("the former answer stays", "muted")

    def reset(self, _: str) -> None:
        """Begin anew; asks where a memory that lies in a file would be emptied."""
        ask = self.session.stats()["tokens_written"] if self.ui.interactive else self.saves
        what = f"the memory {self.name}" if self.saves else "the memory"
        if self.branches:
            what = f"the memory of this branch{f'; {self.name} stays' if self.memory else ''}"
        if ask and not self.may("/reset", "", f"This empties {what}."):
            return
        self.session.reset()
        self.question = None
        self.keep()
        self.ui.done("reset", "context and memory cleared; /undo brings them back")


def _why_the_same(temp: float) -> str:
    if temp == 0:
        return "at temperature 0 there is one only; /temp 0.7 lets it vary"
    return f"drawn anew, it came out alike; /temp {temp + 0.5:g} lets it vary more"


def _last_answer(messages: "Sequence[Any]") -> object:
    return messages[-1].get("content") if messages else None


def _tokens(turns: "Sequence[UndoableTurn]", less: str = "come back") -> str:
    """How many tokens these turns wrote; ``less`` is what becomes of those that one emptied."""
    count = sum(turn["tokens_written"] for turn in turns)
    what = f"{abs(count):,} token{'s' * (abs(count) != 1)}"
    return f"{what} {less}" if count < 0 else what


def _said(turn: "UndoableTurn") -> str:
    """The beginning of what a turn was told; that of an earlier chat has no text."""
    if turn["earlier"]:
        return "of an earlier chat"
    text = " ".join(str(message.get("content")) for message in turn["new"]).split()
    shown = " ".join(text)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
