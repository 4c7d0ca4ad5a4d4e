"""What a completion asks, checked: the body of a request as values.

Whatever mlx-lm would take on trust or leave undone is refused here, before anything waits for it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message as Headers

from ..errors import ApiError, refuse
from ..settings import ServeSettings
from .bodies import SNIPPETS, MemoryOptions, memory_options
from .fields import Fields
from .sampling import Parameters, check_known, read_parameters, read_stop
from .shapes import Shape, read_choice, read_format, shape_of

_MOST_TOOLS = 256
# Settings of the chat template that are the server's own affair.
_NOT_THEIRS = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
    "documents", "max_length", "messages", "padding", "return_assistant_tokens_mask",
    "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip
_SHARED = {"model", "stream", "stream_options", "memory", *SNIPPETS}
_CHAT = _SHARED | {
    "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "chat_template_kwargs", "reasoning_effort", "role_mapping",
}  # fmt: skip
_TEXT = _SHARED | {"prompt"}


@dataclass(frozen=True)
class Completion:
    """A request for an answer.

    Attributes:
        model (str): The model's name.
        parameters (Parameters): Of the sampling.
        stop (list[str]): Texts that end the answer.
        stream (bool): Send the answer piece by piece.
        include_usage (bool): At the end of a stream, say what was used.
        memory (MemoryOptions): What it asks of a memory; None: nothing.
        messages (list[dict]): The conversation; empty where a text is to be continued.
        prompt (str): That text.
        tools (list): That the model may call; None: none.
        role_mapping (dict[str, str]): For tokenizers without a chat template.
        template_kwargs (dict): Settings of the chat template.
        shape (Shape): What the answer has to be; None: whatever the model says.
    """

    model: str
    parameters: Parameters
    stop: list[str]
    stream: bool
    include_usage: bool
    memory: MemoryOptions | None = None
    messages: list[dict[str, object]] | None = None
    prompt: str = ""
    tools: list[object] | None = None
    role_mapping: dict[str, object] | None = None
    template_kwargs: dict[str, object] | None = None
    shape: Shape | None = None


def read_completion(
    body: dict[str, object],
    headers: Headers,
    settings: ServeSettings,
    vocabulary: int,
    *,
    chat: bool,
) -> Completion:
    """A completion's body as values.

    Args:
        body (dict): Without what is null.
        headers (Headers): Of the request: they may name a memory.
        settings (ServeSettings): Of the server.
        vocabulary (int): Width of the model's logits.
        chat (bool): It has messages; else a prompt.

    Raises:
        ApiError: Naming the first field that is not as it has to be.
    """
    fields = Fields(body)
    check_known(fields, _CHAT if chat else _TEXT)
    parameters, stream = read_parameters(fields, settings, vocabulary), fields.flag("stream")
    memory = memory_options(body, headers, settings)
    if memory is not None and not chat:
        raise ApiError(400, "A memory takes messages: use /v1/chat/completions.", param="memory")
    tools = _tools(fields)
    return Completion(
        model=fields.text("model", "default_model"),
        parameters=parameters,
        stop=read_stop(fields),
        stream=stream,
        include_usage=_include_usage(fields),
        memory=memory,
        messages=_messages(fields) if chat else None,
        prompt="" if chat else _prompt(fields),
        tools=tools,
        role_mapping=_role_mapping(fields),
        template_kwargs=with_effort(
            template_kwargs_of(fields), fields.values.get("reasoning_effort"), "reasoning_effort"
        ),
        shape=_shape(fields, tools),
    )


def _include_usage(fields: Fields) -> bool:
    expected = '{"include_usage": true or false}'
    wanted = fields.mapping("stream_options", expected).get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        refuse("stream_options", expected)
    return bool(wanted)


def _prompt(fields: Fields) -> str:
    return fields.text("prompt", "") or refuse("prompt", "text")


def _messages(fields: Fields) -> list[dict[str, object]]:
    messages = fields.values.get("messages")
    if not isinstance(messages, list) or not messages:
        refuse("messages", "a list with at least one message")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _message(where: str, message: object) -> dict[str, object]:
    if not isinstance(message, dict):
        refuse(where, "an object")
    if not isinstance(message.get("role"), str) or not message["role"]:
        refuse(f"{where}.role", "text")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        refuse(f"{where}.tool_calls", "calls with a function's name and its arguments as JSON")
    content = message.get("content")
    if content is None and not calls and message["role"] == "assistant":
        return message | {"content": ""}  # an answer as clients send it back that said nothing
    if isinstance(content, list):
        if not all(isinstance(part, dict) and _is_text(part) for part in content):
            refuse(f"{where}.content", 'text, or parts {"type": "text", "text": ...}')
    elif not isinstance(content, str) and (content is not None or not calls):
        refuse(f"{where}.content", "text")
    return message


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


def _tools(fields: Fields) -> list[object] | None:
    tools = fields.values.get("tools", [])
    if not isinstance(tools, list) or len(tools) > _MOST_TOOLS:
        refuse("tools", f"a list of at most {_MOST_TOOLS} tools")
    if not all(isinstance(tool, dict) for tool in tools):
        refuse("tools", "objects")
    return None if fields.values.get("tool_choice") == "none" else tools or None


def _shape(fields: Fields, tools: list[object] | None) -> Shape | None:
    given = fields.values.get("response_format", {"type": "text"})
    schema = read_format(given, "response_format")
    return shape_of(schema, "response_format", read_choice(fields), tools)


def _role_mapping(fields: Fields) -> dict[str, object] | None:
    mapping = fields.mapping("role_mapping", "an object of texts")
    if not all(isinstance(value, str) for value in mapping.values()):
        refuse("role_mapping", "an object of texts")
    return mapping or None


def with_effort(
    kwargs: dict[str, object] | None, effort: object, param: str
) -> dict[str, object] | None:
    """Settings of the chat template, with how much a model that thinks is to think.

    Args:
        kwargs (dict): Those that are given; they come first.
        effort (object): As a request says it; None: it does not.
        param (str): Where it says so.
    """
    if effort is None:
        return kwargs
    if not isinstance(effort, str):
        refuse(param, "text")
    # By the names that templates of models that think have for it.
    return {"reasoning_effort": effort, "enable_thinking": effort != "none"} | (kwargs or {})


def template_kwargs_of(fields: Fields) -> dict[str, object] | None:
    """Settings of the chat template."""
    kwargs = fields.mapping("chat_template_kwargs")
    if _NOT_THEIRS & set(kwargs):
        refuse("chat_template_kwargs", "an object with settings of the model's own template")
    return kwargs or None
