"""Where a request goes on from: which of its messages a memory was told, and how far back."""

from collections.abc import Sequence
from typing import NamedTuple

from mlx_lm.server import process_message_content

from ...memory.history import PastTurn
from ...memory.told import MOST_MESSAGES, Fingerprints
from ...text.messages import Message
from ...text.turns import leading_system
from ..errors import ApiError
from ..memories.memory import HeldMemory
from ..requests.bodies import MemoryOptions
from .overlaps import shared_with
from .tasks import as_said, is_task


class StartingPoint(NamedTuple):
    """Where a request goes on from.

    Attributes:
        known (int): So many of its first messages the memory was told by then.
        back (int): So many turns came after that.
    """

    known: int
    back: int = 0


def parts_of(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system messages that open a request, and the others; contents as text."""
    copied = [dict(message) for message in messages]
    process_message_content(copied)
    lead = leading_system(copied)
    return lead, [*copied[len(lead) :]]


def place_of(
    messages: Sequence[Message], held: HeldMemory, options: MemoryOptions
) -> StartingPoint:
    """Where a request goes on from.

    From what the memory holds, if the request ends what that was told, or is new altogether. Else
    from the latest of its last turns whose beginning the request has in it: an answer is asked for
    again, or a message was edited.

    Args:
        messages (Sequence[Message]): Of the request, without the system messages at its start.
        held (HeldMemory): The memory.
        options (MemoryOptions): What the request asks of the memory. With ``one_chat``, it has all
          in it that the memory is to have been told.

    Raises:
        ApiError: If an earlier part of the request is not what this memory was told, so that all
          of it would be written again; or what it goes on from is not kept.
    """
    if options.goes_on:
        return StartingPoint(0)
    told, history = held.told, held.saved.history if held.saved else ()
    sent, aside = told.of(as_said(messages)), is_task(messages, options)
    tolds = _tolds(told, history)
    complete = len(told.messages) < MOST_MESSAGES  # else what was told first is not known
    if options.one_chat and complete and not aside:
        for back, before in enumerate(tolds):
            if before.messages == sent[: len(before.messages)]:
                return StartingPoint(len(before.messages), back)
        raise _conflict(sent, told, history, between=False)
    again = _is_said_again(sent, told, history)
    if again and not (options.read_only and held.has_written(1)):
        return StartingPoint(0, back=1)
    found, between = None, False
    for back, before in enumerate(tolds):
        known = _known(sent[:-1] if back else sent, before)
        if known is None:
            continue
        dropped = history[len(history) - back :]
        if back and not aside and not _of_one_chat(dropped, sent[known], told, before):
            between = True
        elif known >= len(before.messages):
            return StartingPoint(known, back)  # all of it, from its first message
        elif found is None:
            found = StartingPoint(known, back)
    if found is not None:
        return found
    if told.messages and any(message["role"] == "assistant" for message in messages):
        raise _conflict(sent, told, history, between=between)
    return StartingPoint(0)


def _known(sent: tuple[str, ...], told: Fingerprints) -> int | None:
    """How many of the messages sent end with the end of what was told; None: they do not."""
    # From the end backwards: where what was told goes on to its beginning, or to that of what is
    # sent.
    same = shared_with(told.messages[::-1], sent[::-1])
    ends = zip(range(len(sent), 0, -1), same, strict=True)
    return next((end for end, n in ends if n and n == min(end, len(told.messages))), None)


def _tolds(told: Fingerprints, history: Sequence[PastTurn]) -> list[Fingerprints]:
    """What had been told before none, one, two, ... of the last turns."""
    found = [told]
    for turn in reversed(history):
        before = turn.told_before(found[-1])
        found.append(before or told)
    return found


def _is_said_again(sent: tuple[str, ...], told: Fingerprints, history: Sequence[PastTurn]) -> bool:
    """Whether the last turn was just this and an answer, and this asks for that again.

    A client that sends its new message alone may say a thing twice. One that sends all has nothing
    before the first message of a chat.
    """
    if not history or not history[-1].alone or history[-1].added != len(sent) + 1:
        return False
    last = told.messages[-history[-1].added :]
    first = history[-1].turns == 0 or (len(history) > 1 and not history[-2].alone)
    return first and last[:-1] == sent


def _of_one_chat(
    turns: Sequence[PastTurn], following: str, told: Fingerprints, before: Fingerprints
) -> bool:
    """Whether these last turns are of the chat that a request goes on with.

    A turn that came alone may have begun another chat, which is not to be lost; but if the request
    has its first message, that is where it was said.
    """
    place = len(before.messages) - len(turns[0].lost)
    resent = told.messages[place : place + 1] == (following,)
    return (resent or not turns[0].alone) and not any(turn.alone for turn in turns[1:])


def _conflict(
    sent: tuple[str, ...], told: Fingerprints, history: Sequence[PastTurn], *, between: bool
) -> ApiError:
    """How a history that is sent again differs from what was told, and why that is the end."""
    return ApiError(
        409,
        f"{_difference(sent, told, history, between)} Send only the new messages, or the "
        "history as it was, or begin anew with memory.reset.",
        code="history_conflict",
        param="messages",
    )


def _difference(
    sent: tuple[str, ...], told: Fingerprints, history: Sequence[PastTurn], between: bool
) -> str:
    if between:
        return (
            "After these messages the memory was told of another conversation, which an answer "
            "from there would take back."
        )
    known = max(shared_with(sent, told.messages), default=0)
    if not known:
        return "The request re-sends a history that this memory was not told."
    kept = f"the last {len(history)} turns" if history else "no turn"
    back = f"The memory keeps the way back over {kept}, which does not reach as far."
    if known == len(sent):
        return f"This memory was told all of these messages, and more after them. {back}"
    return f"Message {known + 1} of the conversation is not what this memory was told there. {back}"
