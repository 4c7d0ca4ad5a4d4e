"""Tasks that chat clients give a model beside a conversation: a title, tags, what to ask next.

They come under the same chat's id as its messages, and are none of them: a memory that was told
them would know the client's instructions, and not recognise the history that is re-sent next.
"""

import re
from collections.abc import Sequence

from ...text.messages import Message
from ..requests.bodies import MemoryOptions

# Open WebUI's templates open with "### Task:", or wrap the conversation in <chat_history>; those of
# emojis, of answers merged and of the choice of tools have openings of their own. What goes before
# a line's end is no line's end itself, here and below: two ways to read blank lines would take
# quadratic time, in which no other thread runs.
_MARKED = re.compile(
    r"\s*#{1,6} Task:?[^\S\n]*\n(?!\s*Respond to the user query using the provided context)"
    r"|.*<chat_history>"
    r"|\s*Your task is to reflect the speaker's likely facial expression"
    r"|\s*You have been provided with a set of responses from various models"
    r"|\s*(Query:\s*)?History:[^\S\n]*\n.*\nQuery: ",
    re.DOTALL | re.IGNORECASE,
)
# Its template for retrieved texts opens like a task, and has what the user said in it.
_RETRIEVED = re.compile(
    r"\s*#{1,6} Task:?[^\S\n]*\n\s*Respond to the user query using the provided context.*</context>"
    r"\s*(?:<user_query>)?(.*)",
    re.DOTALL | re.IGNORECASE,
)
_ENDS = "</user_query>"
# LibreChat's, NextChat's and others' ask in a sentence for a title of the conversation ...
_VERB = r"(analy[sz]e|create|generate|give|produce|provide|suggest|summari[sz]e|write)"
_TITLE = re.compile(
    rf"\s*(please\s+)?{_VERB}\b(?=.{{0,200}}\btitle\b)(?=.{{0,200}}\b(chat|conversation)\b)",
    re.DOTALL | re.IGNORECASE,
)
# ... and say how it is to be written, as people seldom do.
_FORM = re.compile(r"\b(punctuation|quotation|title case|words?|characters|only)\b", re.IGNORECASE)


def is_task(new: Sequence[Message], options: MemoryOptions) -> bool:
    """Whether a client's last message is a task, and nothing that was said; or it says so itself.

    Where it says what is new (it names a conversation or a response, or the memory is a response's
    own), nothing else comes under the same id: a text that only looks like a task is what was said.

    Args:
        new (Sequence[Message]): What it sends.
        options (MemoryOptions): What it asks of the memory.
    """
    said = new[-1].get("content") if new else None
    says_what_is_new = options.goes_on or not options.takes_back
    if options.task or says_what_is_new or not isinstance(said, str) or new[-1]["role"] != "user":
        return options.task
    return bool(_MARKED.match(said) or (_TITLE.match(said) and _FORM.search(said)))


def as_said(messages: Sequence[Message]) -> list[Message]:
    """Messages as they will be sent again: without texts that a client has put around them."""
    return [_as_said(message) for message in messages]


def _as_said(message: Message) -> Message:
    content = message.get("content")
    if message.get("role") != "user" or not isinstance(content, str):
        return message
    found = _RETRIEVED.fullmatch(content)
    said = found[1].rstrip() if found else ""
    if said[-len(_ENDS) :].lower() == _ENDS:
        said = said[: -len(_ENDS)]
    return {**message, "content": said} if said else message
