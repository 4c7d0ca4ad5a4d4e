"""Tasks that chat clients give a model beside a conversation: a title, tags, what to ask next.

They come under the same chat's id as its messages, and are none of them: a memory that was told
them would know the client's instructions, and not recognise the history that is re-sent next.
"""

import re
from collections.abc import Sequence

from ...text.messages import Message

# Open WebUI's templates open with the first or wrap the conversation in the second.
_MARKED = re.compile(r"\s*#{1,6} Task:?\s*\n|.*<chat_history>", re.DOTALL | re.IGNORECASE)
# LibreChat's, NextChat's and others' ask in a sentence for a title of the conversation ...
_VERB = r"(analy[sz]e|create|generate|give|produce|provide|suggest|summari[sz]e|write)"
_TITLE = re.compile(
    rf"\s*(please\s+)?{_VERB}\b(?=.{{0,200}}\btitle\b)(?=.{{0,200}}\b(chat|conversation)\b)",
    re.DOTALL | re.IGNORECASE,
)
# ... and say how it is to be written, as people seldom do.
_FORM = re.compile(r"\b(punctuation|quotation|title case|words?|characters|only)\b", re.IGNORECASE)


def is_task(new: Sequence[Message]) -> bool:
    """Whether the last of the messages that a client sends is a task, and nothing that was said."""
    said = new[-1].get("content") if new else None
    if not isinstance(said, str) or new[-1]["role"] != "user":
        return False
    return bool(_MARKED.match(said) or (_TITLE.match(said) and _FORM.search(said)))
