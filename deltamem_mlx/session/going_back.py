"""What a ``MemorySession`` does that goes back: turns are taken back, put back, done anew."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Unpack

from mlx_lm.generate import GenerationResponse

from ..problems import as_whole
from ..text.messages import Message
from ..text.turns import as_messages
from .generation import Generation
from .talk import Talk
from .undoable import UndoableTurn, undoable_turns


class GoingBack(Talk):
    """The turns of a session that go back; arguments and errors are its own."""

    def undo(self, turns: int = 1) -> list[Message]:
        """Go back to before the last turns, as if they had never been.

        A turn is an answer, a ``remember``, a ``rewrite`` or a ``reset``. The memory is then what
        it was, bit for bit; what was visible is visible again.

        Args:
            turns (int): How many.

        Returns:
            list[Message]: What those turns were given, replies left out.

        Raises:
            TypeError: If ``turns`` is no integer.
            ValueError: If so many are not kept, or ``turns`` is less than 1.
        """
        turns = as_whole("turns", turns)
        if turns < 1:
            raise ValueError(f"turns is {turns}; expected 1 or more.")
        with self._lock:
            return self._conversation.undo(turns)

    def redo(self) -> int:
        """Put back all that ``undo`` took since the last turn, as if it had never been taken.

        The memory is then what it was before, bit for bit. What is kept for this is gone with the
        next turn, and is not saved with a session.

        Returns:
            int: How many turns are back.

        Raises:
            ValueError: If there is nothing to put back.
        """
        with self._lock:
            return self._conversation.redo()

    def undoable(self) -> list[UndoableTurn]:
        """The turns that ``undo`` can take back, the last one first.

        Returns:
            list[dict]: ``new``, the messages that the turn was given; ``answered``;
            ``tokens_written`` by it; ``earlier``: known from a memory file only, without a text.
        """
        with self._lock.reading():
            return undoable_turns(self._conversation)

    def regenerate(self, **generation: Unpack[Generation]) -> str:
        """The last answer anew: what it was given is answered again, from the memory before it.

        After an error the session has the former answer again. Arguments as in ``stream``.

        Raises:
            ValueError: If the last turn was not an answer, or is not kept.
        """
        self._check(generation)

        def again() -> Generator[GenerationResponse, None, None]:
            last = self._conversation.past.last()
            if last is not None and last.is_filed:
                raise ValueError(
                    "What the last turn was is not known: a memory file keeps no text. It can be "
                    "taken back with undo()."
                )
            if last is None or not last.answered:
                raise ValueError("The last turn was not answered: there is nothing to regenerate.")
            with self._restored_on_error():
                self._conversation.undo()
                yield from self._answer(last.new, generation, last.write)

        return "".join(response.text for response in self._lock.run(again()))

    def edit(
        self, i: int, text: str | Message | Sequence[Message], **generation: Unpack[Generation]
    ) -> str:
        """Replace the user's message ``i`` by ``text``, and answer from there.

        What came after it is as if it had never been. After an error all is as it was.

        Args:
            i (int): Among the user's messages in ``messages``, from 0; -1 is the last.
            text (str): What it is to be instead.
            **generation: As in ``stream``.

        Raises:
            TypeError: If ``i`` is no integer, or ``text`` no message.
            IndexError: If there is no such message.
            ValueError: If its turn is not kept.
        """
        new, i = as_messages(text), as_whole("i", i)
        self._check(generation)

        def edited() -> Generator[GenerationResponse, None, None]:
            with self._restored_on_error():
                self._conversation.undo_to_user_message(i)
                yield from self._answer(new, generation)

        return "".join(response.text for response in self._lock.run(edited()))

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """What was taken back is there again if nothing has come to replace it."""
        talk = self._conversation
        present = talk.present()
        try:
            yield
        except BaseException:
            last = talk.past.last()  # a new one was kept as far as it was said
            replaced = last is not None and all(last is not turn for turn in present.past)
            if talk.said is not present.before.said and not replaced:
                talk.restore(present)
            raise
