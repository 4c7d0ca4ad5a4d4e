"""How long a prompt may be."""

import json
from collections.abc import Iterator, Mapping, Sequence

from ...text.messages import Message, template_messages
from ...text.rendering import Template
from ..errors import ApiError
from ..provider import ServedPair
from ..settings import ServeSettings
from .history import parts_of, place_of
from .job import ServedRequest

_SLICE = 1 << 14  # characters
# Messages: too few to take long; too many for a turn, which takes time with their square.
_FEW, _MOST = 32, 2048


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


def check_texts(
    request: ServedRequest,
    template_kwargs: Mapping[str, object],
    pair: ServedPair,
    settings: ServeSettings,
) -> None:
    """Raises ApiError if what a request says is by far too long.

    For the request's own thread: to tokenize megabytes would hold up everybody's answers, and so
    would a turn of many messages, which is rendered as often. So this is done in slices, which does
    not count exactly, and only where there is much.
    """
    most, whose = _longest(pair, settings)
    said = [request.prompt, request.messages, request.tools, template_kwargs, _remembered(request)]
    few = len(request.messages) <= _FEW
    if few and len(json.dumps(said, ensure_ascii=False, default=str)) <= 4 * most:
        return
    messages = _new_messages(request)
    if request.memory is not None and len(messages) > _MOST:
        raise ApiError(
            400,
            f"{len(messages)} messages that this memory was not told; expected at most {_MOST} at "
            "once. Send them in several turns.",
            code="bad_messages",
            param="messages",
        )
    tokens, borders = 0, 0
    for text in _texts(request, messages, template_kwargs, pair):
        for start in range(0, len(text), _SLICE):
            piece = text[start : start + _SLICE]
            tokens += len(pair.tokenizer.encode(piece, add_special_tokens=False, verbose=False))
            borders += 1
            if tokens > most + 8 * borders:
                raise _too_long(f"more than {most}", most, whose)


def _remembered(request: ServedRequest) -> Sequence[str]:
    return request.options.remember if request.memory and request.options else ()


def _texts(
    request: ServedRequest,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, object],
    pair: ServedPair,
) -> Iterator[str]:
    """What will be fed."""
    yield request.prompt
    yield from _remembered(request)
    try:
        lead, rest = parts_of(messages)
        rendered = template_messages([*lead, *rest])
        yield Template(pair.tokenizer, template_kwargs, rendered).render(rendered, True)
    except Exception:  # whatever it is, who feeds them says it
        yield from _contents(messages)


def _new_messages(request: ServedRequest) -> Sequence[Message]:
    """Without those that the memory was told."""
    if request.memory is None or request.options is None or request.options.reset:
        return request.messages
    held = request.memory.contents
    lead, rest = parts_of(request.messages)
    return [*lead, *rest[place_of(rest, held, request.options).known :]]


def _contents(messages: Sequence[Message]) -> Iterator[str]:
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
