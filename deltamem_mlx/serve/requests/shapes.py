"""What an answer has to be: JSON, JSON of a schema, or a call of one of the tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import refuse
from .fields import Fields

_KINDS = "text, json_object or json_schema"


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name (str): Its name.
        parameters (dict): JSON Schema of its arguments.
    """

    name: str
    parameters: dict[str, object]


@dataclass(frozen=True)
class Shape:
    """What an answer has to be.

    Attributes:
        param (str): The field of the request that says so.
        schema (dict): JSON Schema of its text; None: there is no text.
        tools (tuple[Tool, ...]): Those that it may call instead; all there is, without a schema.
        one (bool): Of a tool, one call and no more.
    """

    param: str
    schema: dict[str, object] | None
    tools: tuple[Tool, ...] = ()
    one: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """Which tools have to be called.

    Attributes:
        named (str): The one that is; None: any.
        one (bool): One call and no more.
    """

    named: str | None = None
    one: bool = False


def read_choice(fields: Fields) -> ToolChoice | None:
    """What ``tool_choice`` forces, in OpenAI's two forms; None: nothing.

    Raises:
        ApiError: If it is none of them.
    """
    given = fields.values.get("tool_choice", "auto")
    parallel = fields.flag("parallel_tool_calls", True)
    if given in ("auto", "none"):
        return None
    if given == "required":
        return ToolChoice(one=not parallel)
    name = None
    if isinstance(given, dict) and given.get("type") == "function":
        function = given.get("function", given)
        name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        refuse("tool_choice", '"none", "auto", "required" or {"type": "function"} with a name')
    return ToolChoice(name, one=True)


def read_format(given: object, param: str) -> dict[str, object] | None:
    """The JSON Schema that ``response_format`` or ``text.format`` asks for; None: any text.

    Args:
        given (object): The chat route has name and schema one level deeper than the other.
        param (str): Its name.

    Raises:
        ApiError: If it is not understood.
    """
    if not isinstance(given, dict):
        refuse(param, f"an object with a type: {_KINDS}")
    inner = given.get("json_schema", given)
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema" if isinstance(inner, dict):
            where = f"{param}.json_schema" if inner is not given else param
            fields = Fields({f"{where}.{name}": x for name, x in inner.items() if x is not None})
            for name in ("name", "description"):
                fields.text(f"{where}.{name}", "")
            fields.flag(f"{where}.strict")
            if f"{where}.schema" not in fields.values:
                refuse(f"{where}.schema", "a JSON Schema, an object")
            return fields.mapping(f"{where}.schema", "a JSON Schema, an object")
    refuse(f"{param}.type", _KINDS)


def shape_of(
    schema: dict[str, object] | None,
    param: str,
    choice: ToolChoice | None,
    tools: Sequence[object] | None,
) -> Shape | None:
    """What an answer has to be; None: whatever the model says.

    Args:
        schema (dict): Of its text, as ``read_format`` gave it.
        param (str): The field that said so.
        choice (ToolChoice): What ``read_choice`` gave.
        tools (Sequence): The request's, in the form of chat templates.

    Raises:
        ApiError: If a tool has to be called that is not there.
    """
    found = tuple(_tool(i, tool) for i, tool in enumerate(tools or [])) if schema or choice else ()
    if choice is None:
        return None if schema is None else Shape(param, schema, found)
    wanted = tuple(tool for tool in found if choice.named in (None, tool.name))
    if not wanted:
        refuse("tool_choice", "tools, and the name of one of them")
    return Shape("tool_choice", None, wanted, choice.one)


def _tool(place: int, tool: Any) -> Tool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or not isinstance(function, dict):
        refuse(f"tools[{place}].function.name", "text")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, dict):
        refuse(f"tools[{place}].function.parameters", "a JSON Schema, an object")
    return Tool(name, {"type": "object", **parameters})
