"""What a request for a response asks, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.message import Message as Headers

from ..errors import refuse
from ..kept.items import Item, as_messages, new_id, read_items
from ..requests.bodies import SNIPPETS, check_key, keys_in, memory_options
from ..requests.completions import Completion, template_kwargs_of, with_effort
from ..requests.fields import Fields
from ..requests.sampling import Parameters, check_known, read_parameters
from ..requests.shapes import Shape, read_choice, read_format, shape_of
from ..settings import ServeSettings

_MOST_TOOLS = 256
_MOST_NOTES, _LONGEST_NAME, _LONGEST_NOTE = 16, 64, 512  # of metadata: OpenAI's
_KNOWN = {
    "model", "input", "instructions", "previous_response_id", "conversation", "store", "stream",
    "stream_options", "max_output_tokens", "tools", "tool_choice", "parallel_tool_calls", "text",
    "reasoning", "include", "background", "truncation", "max_tool_calls", "memory",
    "chat_template_kwargs", *SNIPPETS,
}  # fmt: skip
_LEFT_OUT = {"max_tokens", "max_completion_tokens", "stop", "logprobs", "top_logprobs"}
_INCLUDED = ("reasoning.encrypted_content",)  # for other servers' models
_TEXT = {"type": "text"}


@dataclass(frozen=True)
class ResponseRequest:
    """A request for a response.

    Attributes:
        id (str): That the response will have.
        asked (Completion): As the model is asked.
        items (list[Item]): The input.
        store (bool): The response is kept, and what it makes of a memory.
        previous (str): The id of the response that it goes on from; None: of none.
        conversation (str): The conversation that it is said in; None: in none.
        named (bool): The client names the memory: it outlives the response.
        echo (dict): What the response says of the request.
    """

    id: str
    asked: Completion
    items: list[Item]
    store: bool
    previous: str | None
    conversation: str | None
    named: bool
    echo: dict[str, object] = field(default_factory=dict)

    def after(self, messages: list[dict[str, object]]) -> "ResponseRequest":
        """The same request, with messages that come before its input."""
        lead = 1 if self.echo.get("instructions") else 0
        own = self.asked.messages or []
        return replace(
            self, asked=replace(self.asked, messages=[*own[:lead], *messages, *own[lead:]])
        )


def read_response(
    body: dict[str, object], headers: Headers, settings: ServeSettings, vocabulary: int
) -> ResponseRequest:
    """A request's body as values; arguments as of ``read_completion``.

    Raises:
        ApiError: Naming the first field that is not as it has to be.
    """
    fields = Fields(body)
    _check(fields)
    items = read_items(body.get("input", []))
    previous, conversation = _text_or_none(fields, "previous_response_id"), _conversation(fields)
    if previous is not None and conversation is not None:
        refuse("previous_response_id", "nothing beside conversation: they name different ends")
    id, store = new_id("resp"), fields.flag("store", True)
    session = _names_a_memory(fields, headers, settings)
    named = session or conversation is not None
    if previous is not None and session:
        refuse("previous_response_id", "nothing beside the name of a memory: it is a place in one")
    key = conversation or (id if not named and (store or previous is not None) else None)
    said = body if key is None else _with_key(body, key)
    memory = memory_options(said, headers, settings)
    if memory is not None and (previous is not None or conversation is not None):
        memory = replace(memory, goes_on=True)
    if memory is not None and key == id:
        # Each response has a memory of its own: the way back is by their ids.
        memory = replace(memory, takes_back=False)
    instructions = _text_or_none(fields, "instructions")
    lead: list[dict[str, object]] = []
    if instructions:
        lead = [{"role": "system", "content": instructions}]
    tools = _tools(fields)
    asked = Completion(
        model=fields.text("model", "default_model"),
        parameters=_parameters(fields, settings, vocabulary),
        stop=[],
        stream=fields.flag("stream"),
        include_usage=True,
        memory=memory,
        messages=[*lead, *as_messages(items)],
        tools=tools,
        template_kwargs=_template_kwargs(fields),
        shape=_shape(fields, tools),
    )
    if not items:
        refuse("input", "text, or a list with at least one item")
    echo = _echo(fields, asked.parameters) | {"store": store, "previous_response_id": previous}
    echo["conversation"] = None if conversation is None else {"id": conversation}
    return ResponseRequest(id, asked, items, store, previous, conversation, named, echo)


def _check(fields: Fields) -> None:
    """Raises ApiError for what would be left undone."""
    for name in _LEFT_OUT & set(fields.values):
        if fields.values[name] not in (0, False):
            refuse(name, "nothing: this API has max_output_tokens, and no such parameter here")
    check_known(Fields({n: v for n, v in fields.values.items() if n not in _LEFT_OUT}), _KNOWN)
    if fields.flag("background"):
        refuse("background", "false: this server answers at once")
    if fields.text("truncation", "auto") not in ("auto", "disabled"):
        refuse("truncation", '"auto" or "disabled"')
    include = fields.values.get("include", [])
    if not isinstance(include, list) or any(name not in _INCLUDED for name in include):
        refuse("include", "nothing: this server has none of it")
    fields.mapping("stream_options")
    read_metadata(fields)


def read_metadata(fields: Fields) -> dict[str, object]:
    """The client's own notes about a thing: short texts by name."""
    expected = f"an object of at most {_MOST_NOTES} texts, of {_LONGEST_NOTE} characters each"
    notes = fields.mapping("metadata", expected)
    fit = all(
        len(name) <= _LONGEST_NAME and isinstance(text, str) and len(text) <= _LONGEST_NOTE
        for name, text in notes.items()
    )
    return notes if fit and len(notes) <= _MOST_NOTES else refuse("metadata", expected)


def _text_or_none(fields: Fields, name: str) -> str | None:
    return fields.text(name, "") if name in fields.values else None


def _conversation(fields: Fields) -> str | None:
    given = fields.values.get("conversation")
    if isinstance(given, dict):
        given = given.get("id")
    elif given is None:
        return None
    return check_key(given, "conversation")


def _names_a_memory(fields: Fields, headers: Headers, settings: ServeSettings) -> bool:
    given = fields.mapping("memory").get("session")
    return given is not None or bool(keys_in(headers, settings))


def _with_key(body: Mapping[str, object], key: str) -> dict[str, object]:
    """The body, with the name of a memory where it says what is asked of one."""
    given = Fields(body).mapping("memory", "an object")
    if given.get("session", key) != key:
        refuse("memory.session", "the same as conversation, or nothing")
    return dict(body) | {"memory": given | {"session": key}}


def _parameters(fields: Fields, settings: ServeSettings, vocabulary: int) -> Parameters:
    limit = settings.max_tokens_limit
    most = fields.whole("max_output_tokens", min(settings.max_tokens, limit), 1)
    known = {n: v for n, v in fields.values.items() if n not in _LEFT_OUT}
    return read_parameters(Fields(known | {"max_tokens": most}), settings, vocabulary)


def _tools(fields: Fields) -> list[object] | None:
    """Tools in the form that chat templates have them."""
    tools = fields.values.get("tools", [])
    if not isinstance(tools, list) or len(tools) > _MOST_TOOLS:
        refuse("tools", f"a list of at most {_MOST_TOOLS} tools")
    found: list[object] = []
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            refuse(f"tools[{i}].type", '"function": this server has no tools of its own')
        if not isinstance(tool.get("name"), str) or not tool["name"]:
            refuse(f"tools[{i}].name", "text")
        function = {n: tool[n] for n in ("name", "description", "parameters") if tool.get(n)}
        found.append({"type": "function", "function": {"parameters": {}} | function})
    return None if fields.values.get("tool_choice") == "none" else found or None


def _shape(fields: Fields, tools: list[object] | None) -> Shape | None:
    schema = read_format(_format(fields), "text.format")
    return shape_of(schema, "text.format", read_choice(fields), tools)


def _format(fields: Fields) -> object:
    given = fields.mapping("text").get("format")
    return _TEXT if given is None else given


def _template_kwargs(fields: Fields) -> dict[str, object] | None:
    effort = fields.mapping("reasoning").get("effort")
    return with_effort(template_kwargs_of(fields), effort, "reasoning.effort")


def _echo(fields: Fields, parameters: Parameters) -> dict[str, object]:
    reasoning = fields.mapping("reasoning")
    return {
        "instructions": _text_or_none(fields, "instructions"),
        "max_output_tokens": fields.values.get("max_output_tokens"),
        "metadata": read_metadata(fields),
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "temperature": parameters.temperature,
        "text": {"format": _format(fields)},
        "tool_choice": fields.values.get("tool_choice", "auto"),
        "tools": fields.values.get("tools", []),
        "top_p": parameters.top_p,
        "truncation": fields.text("truncation", "disabled"),
        "background": False,
    }
