"""What an answer has to be, as a grammar in llguidance's Lark dialect."""

import json

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import json_tools

from ..errors import refuse
from ..requests.shapes import Shape, Tool

# Between two values a space, or a new line and its indentation. Where any white space is allowed a
# model may never say anything else.
_OPTIONS = {"whitespace_pattern": r" |\n {0,32}|\n\t{0,8}", "lenient": False}


def grammar_text(shape: Shape, tokenizer: TokenizerWrapper) -> str:
    """The grammar of an answer.

    Args:
        shape (Shape): What it has to be.
        tokenizer (TokenizerWrapper): Of the model, which has a form of its own for calls.

    Raises:
        ApiError: If that form is none that can be asked for.
    """
    rules, starts = [], []
    if shape.schema is not None:
        starts.append("answer")
        rules.append(f"answer: {_json(shape.schema)}")
    if shape.tools and (shape.schema is None or tokenizer.has_tool_calling):
        starts.append("call" if shape.one else 'call ("\\n" call)*')
        rules += _calls(shape, tokenizer)
    return "\n".join([f"start: {' | '.join(starts)}", *rules])


def _calls(shape: Shape, tokenizer: TokenizerWrapper) -> list[str]:
    """mlx-lm's ``json_tools``: JSON between two marks."""
    known = tokenizer.has_tool_calling
    if tokenizer.tool_parser is not json_tools.parse_tool_call:
        what = "nothing beside tools" if shape.schema is not None else '"auto" or "none"'
        form = "tools in another form than JSON between <tool_call> marks"
        refuse(shape.param, f"{what}: this model calls {form if known else 'no tools'}")
    start = _mark(tokenizer.tool_call_start, tokenizer.tool_call_start_tokens)
    end = _mark(tokenizer.tool_call_end, tokenizer.tool_call_end_tokens)
    names = " | ".join(f"call{i}" for i in range(len(shape.tools)))
    rules = [f'call: {start} "\\n" ({names}) "\\n" {end}']
    for i, tool in enumerate(shape.tools):
        rules += [
            f'call{i}: {_text(_head(tool))} args{i} "}}"',
            f"args{i}: {_json(tool.parameters)}",
        ]
    return rules


def _head(tool: Tool) -> str:
    return f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '


def _json(schema: dict[str, object]) -> str:
    return f"%json {json.dumps(schema | {'x-guidance': _OPTIONS})}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _mark(text: str, tokens: tuple[int, ...]) -> str:
    return f"<[{tokens[0]}]>" if len(tokens) == 1 else _text(text)
