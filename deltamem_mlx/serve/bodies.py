"""What a request may say: the body of a completion, and what it asks of a memory.

mlx-lm checks the types of sampling parameters itself. Here is what it takes on trust.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message as Headers

from .errors import ApiError
from .settings import ServeSettings

SESSION_HEADERS = ("X-Delta-Mem-Session", "X-Delta-Mem-Session-Key")
SNIPPETS_HEADER = "X-Delta-Attention-State"
SNIPPETS = ("attention_state", "attentionState", "delta_attention_state")
MAX_KEY = 512
_MAX_STOPS, _MAX_STOP, _MAX_TOOLS, _MAX_BIAS = 16, 256, 256, 1024
# Settings of the chat template that are the server's own affair.
_NOT_THEIRS = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
    "documents", "max_length", "messages", "padding", "return_assistant_tokens_mask",
    "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip
_OPTIONS = {"session", "read_only", "remember", "reset", "context", "keep_partial"}


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
    """

    session: str
    read_only: bool = False
    remember: tuple[str, ...] = ()
    reset: bool = False
    context: str = "keep"
    keep_partial: bool = False


def parse(raw: bytes) -> dict[str, object]:
    """The JSON object of a request, without what is null.

    Raises:
        ApiError: If it is none, or has numbers or text that cannot be.
    """
    try:
        body = json.loads(raw.decode(), parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be decoded"
        at = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, f"The body is not valid JSON: {what}{at}.", code="bad_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object.", code="bad_json")
    return {name: value for name, value in body.items() if value is not None}


def _no_constant(name: str) -> None:
    raise ValueError(name)


def check_completion(body: dict[str, object], settings: ServeSettings, *, chat: bool) -> None:
    """Raises ApiError for what mlx-lm would not refuse in a body, or not in words."""
    for name, value in body.items():
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(name, "a finite number")
        if isinstance(value, bool) and name in _NUMBERS:
            _refuse(name, "a number")
        if name in _INTEGERS and isinstance(value, int) and abs(value) >= 1 << 31:
            _refuse(name, "a smaller number")
    for name in ("max_tokens", "max_completion_tokens"):
        wanted = body.get(name, 1)
        if not isinstance(wanted, int) or not 1 <= wanted <= settings.max_tokens_limit:
            _refuse(name, f"an integer from 1 to {settings.max_tokens_limit}")
    if body.get("n", 1) != 1 or isinstance(body.get("n"), bool):
        _refuse("n", "1: one answer a request")
    for name in ("adapters", "draft_model"):
        if body.get(name, "default_model") != "default_model":
            _refuse(name, "nothing: the server has one model and one adapter")
    _check_stop(body.get("stop", []))
    _check_bias(body.get("logit_bias", {}))
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool):
        _refuse("stream_options", '{"include_usage": true or false}')
    if "stream_options" in body:
        body["stream_options"] = {"include_usage": False} | options
    if chat:
        _check_chat(body)
    elif not isinstance(body.get("prompt"), str) or not body["prompt"]:
        _refuse("prompt", "text")


_NUMBERS = {
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "seed",
    "repetition_penalty", "repetition_context_size", "presence_penalty", "presence_context_size",
    "frequency_penalty", "frequency_context_size", "top_logprobs", "xtc_probability",
    "xtc_threshold", "num_draft_tokens",
}  # fmt: skip
_INTEGERS = {name for name in _NUMBERS if name.endswith(("size", "_k", "seed", "tokens"))}


def _refuse(param: str, expected: str) -> None:
    raise ApiError(400, f"{param}: expected {expected}.", param=param, code="invalid_value")


def _check_stop(stop: object) -> None:
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or len(words) > _MAX_STOPS:
        _refuse("stop", f"text, or a list of at most {_MAX_STOPS} texts")
    if not all(isinstance(word, str) and 0 < len(word) <= _MAX_STOP for word in words):
        _refuse("stop", f"texts of 1 to {_MAX_STOP} characters")


def _check_bias(bias: object) -> None:
    if not isinstance(bias, dict) or len(bias) > _MAX_BIAS:
        _refuse("logit_bias", f"an object of at most {_MAX_BIAS} token ids")
    for token, value in bias.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9 or not _is_number(value):
            _refuse("logit_bias", "token ids with numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _check_chat(body: dict[str, object]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "a list with at least one message")
    for i, message in enumerate(messages):
        _check_message(f"messages[{i}]", message)
    tools = body.get("tools", [])
    if not isinstance(tools, list) or len(tools) > _MAX_TOOLS:
        _refuse("tools", f"a list of at most {_MAX_TOOLS} tools")
    if not all(isinstance(tool, dict) for tool in tools):
        _refuse("tools", "objects")
    kwargs = body.get("chat_template_kwargs", {})
    if not isinstance(kwargs, dict) or _NOT_THEIRS & set(kwargs):
        _refuse("chat_template_kwargs", "an object with settings of the model's own template")
    mapping = body.get("role_mapping", {})
    if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
        _refuse("role_mapping", "an object of texts")


def _check_message(where: str, message: object) -> None:
    if not isinstance(message, dict):
        _refuse(where, "an object")
    if not isinstance(message.get("role"), str) or not message["role"]:
        _refuse(f"{where}.role", "text")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        _refuse(f"{where}.tool_calls", "calls with a function's name and its arguments as JSON")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and _is_text(part) for part in content):
            _refuse(f"{where}.content", 'text, or parts {"type": "text", "text": ...}')
    elif not isinstance(content, str) and (content is not None or not calls):
        _refuse(f"{where}.content", "text")


def _is_text(part: Mapping[str, object]) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_call(call: object) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    arguments = function.get("arguments", "")
    if isinstance(arguments, str) and arguments:
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return False
    return arguments == "" or isinstance(arguments, dict)


def check_key(key: object, param: str = "memory.session") -> str:
    """The key of a memory: any text of 1 to 512 characters, compared as it is."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
        _refuse(param, f"a key of 1 to {MAX_KEY} characters")
    return str(key)


def memory_options(body: Mapping[str, object], headers: Headers) -> MemoryOptions | None:
    """What is asked of a memory, in the body or in headers; None: nothing.

    Raises:
        ApiError: If it is not understood, or a body and a header name different memories.
    """
    given = body.get("memory", {})
    if not isinstance(given, dict) or set(given) - _OPTIONS:
        _refuse("memory", f"an object with {', '.join(sorted(_OPTIONS))}")
    given = {name: value for name, value in given.items() if value is not None}
    keys = {check_key(utf8(headers[h]), h) for h in SESSION_HEADERS if headers[h] is not None}
    keys |= {check_key(given["session"])} if "session" in given else set()
    snippets = next((body[name] for name in SNIPPETS if name in body), headers[SNIPPETS_HEADER])
    if not keys:
        if given or snippets is not None:
            _refuse("memory.session", "the key of a memory, there or in X-Delta-Mem-Session")
        return None
    if len(keys) > 1:
        _refuse("memory.session", "one key: body and headers name different ones")
    for name in ("read_only", "reset", "keep_partial"):
        if not isinstance(given.get(name, False), bool):
            _refuse(f"memory.{name}", "true or false")
    if given.get("context", "keep") not in ("keep", "drop"):
        _refuse("memory.context", '"keep" or "drop"')
    remember = _texts("memory.remember", given.pop("remember", []))
    remember += _texts(SNIPPETS[0], _snippets(snippets))
    return MemoryOptions(**given | {"session": keys.pop(), "remember": tuple(remember)})


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
        _refuse(param, "a text or a list of texts")
    return list(texts)
