"""What a request for a message asks, checked."""

from email.message import Message as Headers

from ..errors import ApiError, refuse
from ..requests.bodies import SNIPPETS, memory_options
from ..requests.completions import Completion, template_kwargs_of, with_effort
from ..requests.fields import Fields
from ..requests.sampling import Parameters, read_parameters, read_stop
from ..requests.shapes import ToolChoice, read_format, shape_of
from ..settings import ServeSettings
from .blocks import read_messages, read_text

_MOST_TOOLS = 256
_OWN = {
    "model", "messages", "system", "max_tokens", "stop_sequences", "stream", "tools",
    "tool_choice", "thinking", "output_config", "memory", "chat_template_kwargs", *SNIPPETS,
}  # fmt: skip
# What changes nothing in an answer.
_IGNORED = {
    "metadata", "service_tier", "cache_control", "context_management", "inference_geo", "speed",
}  # fmt: skip
_FORMAT = "output_config.format"
_KNOWN = _OWN | _IGNORED | set(Parameters.__dataclass_fields__) - {"logprobs", "top_logprobs"}


def read_message(
    body: dict[str, object],
    headers: Headers,
    settings: ServeSettings,
    vocabulary: int,
    *,
    count: bool = False,
) -> Completion:
    """A request's body as values; arguments as of ``read_completion``.

    With ``count`` its tokens are asked for only, and ``max_tokens`` may be missing.

    Raises:
        ApiError: Naming the first field that is not as it has to be.
    """
    fields = Fields(body)
    for name in set(body) - _KNOWN:
        raise ApiError(
            400,
            f"This server knows no parameter {name[:40]} here. Leave it out.",
            param=name[:40],
            code="unknown_parameter",
        )
    messages = read_messages(body.get("messages"))
    system = read_text("system", body.get("system", ""))
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    tools = _tools(fields)
    return Completion(
        model=fields.text("model", "default_model"),
        parameters=_parameters(fields, settings, vocabulary, count=count),
        stop=_stop(body),
        stream=fields.flag("stream"),
        include_usage=True,
        memory=memory_options(body, headers, settings),
        messages=messages,
        tools=tools,
        template_kwargs=_template_kwargs(fields),
        shape=shape_of(_schema(fields), _FORMAT, _choice(fields), tools),
    )


def _stop(body: dict[str, object]) -> list[str]:
    try:
        return read_stop(Fields({"stop": body.get("stop_sequences", [])}))
    except ApiError as error:
        refuse("stop_sequences", str(error).partition("expected ")[2].rstrip("."))


def _parameters(
    fields: Fields, settings: ServeSettings, vocabulary: int, *, count: bool
) -> Parameters:
    if "max_tokens" not in fields.values and not count:
        refuse("max_tokens", "a number of tokens")
    return read_parameters(fields, settings, vocabulary)


def _tools(fields: Fields) -> list[object] | None:
    tools = fields.values.get("tools", [])
    if not isinstance(tools, list) or len(tools) > _MOST_TOOLS:
        refuse("tools", f"a list of at most {_MOST_TOOLS} tools")
    found: list[object] = []
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict) or (tool.get("type") or "custom") != "custom":
            refuse(f"tools[{i}].type", '"custom" or none: this server has no tools of its own')
        schema = tool.get("input_schema", {})
        if not isinstance(tool.get("name"), str) or not isinstance(schema, dict):
            refuse(f"tools[{i}]", "a tool with name and input_schema, an object")
        function = {"name": tool["name"], "parameters": schema}
        if isinstance(tool.get("description"), str):
            function["description"] = tool["description"]
        found.append({"type": "function", "function": function})
    none = fields.mapping("tool_choice").get("type") == "none"
    return None if none else found or None


def _choice(fields: Fields) -> ToolChoice | None:
    """What ``tool_choice`` forces; None: nothing."""
    given = Fields(fields.mapping("tool_choice"))
    one = given.flag("disable_parallel_tool_use")
    match given.values.get("type", "auto"):
        case "any":
            return ToolChoice(one=one)
        case "tool":
            return ToolChoice(given.text("name", ""), one=True)
        case "auto" | "none":
            return None
    refuse("tool_choice.type", '"auto", "none", "any" or "tool"')


def _output_config(fields: Fields, name: str) -> object:
    """What is asked of the answer by this name; None: nothing."""
    expected = "an object with effort, format"
    given = fields.mapping("output_config", expected)
    if not given.keys() <= {"effort", "format"}:
        refuse("output_config", expected)
    return given.get(name)


def _schema(fields: Fields) -> dict[str, object] | None:
    given = _output_config(fields, "format")
    return None if given is None else read_format(given, _FORMAT)


def _template_kwargs(fields: Fields) -> dict[str, object] | None:
    kwargs = template_kwargs_of(fields) or {}
    if "thinking" in fields.values:
        kind = fields.mapping("thinking").get("type")
        if kind not in ("enabled", "adaptive", "disabled"):
            refuse("thinking.type", '"enabled", "adaptive" or "disabled"')
        # By the name that templates of models that think have for it.
        kwargs = {"enable_thinking": kind != "disabled", **kwargs}
    effort = _output_config(fields, "effort")
    return with_effort(kwargs or None, effort, "output_config.effort")
