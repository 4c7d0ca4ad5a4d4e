"""How long a prompt may be."""

from collections.abc import Iterator

from ...text.messages import Message
from ..errors import ApiError
from ..provider import ServedPair
from ..settings import ServeSettings
from .history import parts_of, place_of
from .job import ServedRequest

_SLICE = 1 << 14  # characters


def _longest(pair: ServedPair, settings: ServeSettings) -> tuple[int, str]:
    """Tokens that a prompt may have, and who says so."""
    if pair.window is not None and pair.window < settings.max_prompt_tokens:
        return pair.window, "model"
    return settings.max_prompt_tokens, "server"


def check_length(tokens: int, pair: ServedPair, settings: ServeSettings) -> None:
    """Raises ApiError if a prompt is longer than the model, or the server, lets it be."""
    most, whose = _longest(pair, settings)
    if tokens > most:
        raise _too_long(str(tokens), most, whose)


def max_context(pair: ServedPair, settings: ServeSettings) -> int:
    """Tokens that the context of one memory may have: no more than a prompt."""
    most, _ = _longest(pair, settings)
    return most if settings.max_context is None else min(most, settings.max_context)


def check_texts(request: ServedRequest, pair: ServedPair, settings: ServeSettings) -> None:
    """Raises ApiError if what a request says is by far too long.

    For the request's own thread: to tokenize megabytes would hold up everybody's answers. So this
    is done in slices, which does not count exactly, and only where there is much.
    """
    most, whose = _longest(pair, settings)
    texts = list(_texts(request))
    if sum(map(len, texts)) <= 4 * most:
        return
    tokens, borders = 0, 0
    for text in texts:
        for start in range(0, len(text), _SLICE):
            piece = text[start : start + _SLICE]
            tokens += len(pair.tokenizer.encode(piece, add_special_tokens=False, verbose=False))
            borders += 1
            if tokens > most + 8 * borders:
                raise _too_long(f"more than {most}", most, whose)


def _texts(request: ServedRequest) -> Iterator[str]:
    """What will be fed."""
    yield request.prompt
    messages: list[Message] = list(request.messages)
    if request.memory is not None and request.options is not None:
        yield from request.options.remember
        held = request.memory.contents
        if held.told.messages and not request.options.reset:
            lead, rest = parts_of(messages)
            messages = [*lead, *rest[place_of(rest, held, request.options).known :]]
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [{"text": content}]:
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text


def _too_long(has: str, most: int, whose: str) -> ApiError:
    return ApiError(
        400,
        f"The prompt has {has} tokens; the {whose} takes {most}.",
        code="context_length_exceeded",
        param="messages",
    )
