"""Bodies as JSON objects, and what a request asks of a memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from email.message import Message as Headers
from typing import Literal, cast

from ...problems import shortened, unusable_parts
from ..errors import ApiError, refuse
from ..settings import ServeSettings
from .fields import Fields

SESSION_HEADERS = ("X-Delta-Mem-Session", "X-Delta-Mem-Session-Key")
TASK_HEADERS = ("X-Delta-Mem-Task", "X-OpenWebUI-Task")
_NO_TASK = {"", "0", "false", "no", "none", "null", "{{task}}"}
SNIPPETS_HEADER = "X-Delta-Attention-State"
SNIPPETS = ("attention_state", "attentionState", "delta_attention_state")
MAX_KEY = 512
_OPTIONS = {
    "session", "read_only", "remember", "reset", "context", "keep_partial", "one_chat", "strengths",
    "task",
}  # fmt: skip


@dataclass(frozen=True)
class MemoryOptions:
    """What a request asks of a memory.

    Attributes:
        session (str): Its key.
        read_only (bool): Answer without writing.
        remember (tuple[str, ...]): Texts to write first; the answer does not see them.
        reset (bool): Begin with an empty memory.
        context (str): ``keep``: see the turns before, as long as they are in RAM; ``drop``: see
          this message only.
        keep_partial (bool): Keep what was said so far if the client goes away.
        one_chat (bool): The request has all in it that the memory is to have been told.
        strengths (bool): Say how strongly each piece of the turn was written.
        task (bool): It is none of what is said in the conversation: answer, and change nothing.
        goes_on (bool): All of the request is new, whatever it is like.
        takes_back (bool): Keep the way back to before this turn.
    """

    session: str
    read_only: bool = False
    remember: tuple[str, ...] = ()
    reset: bool = False
    context: Literal["keep", "drop"] = "keep"
    keep_partial: bool = False
    one_chat: bool = False
    strengths: bool = False
    task: bool = False
    goes_on: bool = False
    takes_back: bool = True


def parse(raw: bytes) -> dict[str, object]:
    """The JSON object of a request, without what is null.

    Raises:
        ApiError: If it is none, or has numbers or text that cannot be.
    """
    try:
        body = json.loads(
            raw.decode(), parse_constant=_no_constant, object_pairs_hook=_each_name_once
        )
        json.dumps(body, allow_nan=False)
    except (ValueError, RecursionError) as error:
        what = (
            error.msg
            if isinstance(error, json.JSONDecodeError)
            else "it has what cannot be, or a name twice"
        )
        at = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, f"The body is not valid JSON: {what}{at}.", code="bad_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object.", code="bad_json")
    for field, why in unusable_parts(body):
        raise ApiError(400, f"{field.lstrip('.') or 'The body'} {why}.", code="bad_json")
    return {name: value for name, value in body.items() if value is not None}


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _each_name_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Programs differ in which of two they take.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("twice")
    return found


def check_key(key: object, param: str = "memory.session") -> str:
    """The key of a memory: any text of 1 to 512 characters, compared as it is."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        refuse(param, f"a key of 1 to {MAX_KEY} characters")
    return key


def keys_in(headers: Headers, settings: ServeSettings) -> list[tuple[str, str]]:
    """The headers of a request that name a memory, and what they say."""
    names = (*SESSION_HEADERS, *settings.session_headers)
    return [(name, key) for name in names for key in headers.get_all(name, [])]


def memory_options(
    body: Mapping[str, object], headers: Headers, settings: ServeSettings
) -> MemoryOptions | None:
    """What is asked of a memory, in the body or in headers; None: nothing.

    Raises:
        ApiError: If it is not understood, contradicts itself, or names different memories.
    """
    expected = f"an object with {', '.join(sorted(_OPTIONS))}"
    given = Fields(body).mapping("memory", expected)
    if unknown := sorted(map(str, set(given) - _OPTIONS)):
        like = get_close_matches(unknown[0], _OPTIONS, 1)
        meant = f", did you mean {like[0]}?" if like else "."
        said = f"memory: expected {expected}; there is no {shortened(unknown[0])}{meant}"
        raise ApiError(400, said, param="memory", code="invalid_value")
    given = {name: value for name, value in given.items() if value is not None}
    keys = {check_key(utf8(key), header) for header, key in keys_in(headers, settings)}
    keys |= {check_key(given["session"])} if "session" in given else set()
    states = [body[name] for name in SNIPPETS if name in body]
    states += headers.get_all(SNIPPETS_HEADER, [])
    if len(states) > 1:
        refuse(SNIPPETS[0], "one of its names: this request has two")
    snippets = states[0] if states else None
    if not keys:
        if given or snippets is not None:
            refuse("memory.session", "the key of a memory, there or in X-Delta-Mem-Session")
        return None
    if len(keys) > 1:
        refuse("memory.session", "one key: body and headers name different ones")
    fields = Fields({f"memory.{name}": value for name, value in given.items()})
    if given.get("context", "keep") not in ("keep", "drop"):
        refuse("memory.context", '"keep" or "drop"')
    remember = _texts("memory.remember", given.get("remember", []))
    remember += _texts(SNIPPETS[0], _snippets(snippets))
    options = MemoryOptions(
        keys.pop(),
        read_only=fields.flag("memory.read_only"),
        remember=tuple(remember),
        reset=fields.flag("memory.reset"),
        context=cast(Literal["keep", "drop"], given.get("context", "keep")),
        keep_partial=fields.flag("memory.keep_partial"),
        one_chat=fields.flag("memory.one_chat", settings.one_chat),
        task=fields.flag("memory.task") or _is_task(headers, settings),
        strengths=fields.flag("memory.strengths"),
    )
    if options.read_only and (options.reset or options.remember):
        which = "memory.reset" if options.reset else "memory.remember"
        refuse(which, "nothing beside read_only, which leaves the memory as it is")
    return options


def _is_task(headers: Headers, settings: ServeSettings) -> bool:
    """Whether a header names a client's task, as Open WebUI's do if they are set up to."""
    given = (headers.get(name, "") for name in (*TASK_HEADERS, *settings.task_headers))
    return any(value.strip().lower() not in _NO_TASK for value in given)


def utf8(header: str) -> str:
    """http.server reads headers as Latin-1; clients write UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _snippets(given: object) -> object:
    """Retrieved texts as the clients of the sidecar send them; in a header, text or JSON."""
    if isinstance(given, str) and given[:1] in '[{"':
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return given
    if isinstance(given, dict):
        given = next((given[k] for k in ("snippets", "items", "memories") if k in given), [given])
    if isinstance(given, list):
        return [_text_of(item) for item in given]
    return [] if given is None else given


def _text_of(item: object) -> object:
    if not isinstance(item, dict):
        return item
    return next((item[name] for name in ("text", "content", "snippet") if name in item), item)


def _texts(param: str, given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        refuse(param, "a text or a list of texts")
    return list(texts)
